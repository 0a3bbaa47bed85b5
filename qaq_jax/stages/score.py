"""The score stage: samples and models to one joined score table.

Apart from the other stages because it alone loads models: selecting and
reporting on a finished table start without flax and transformers.
"""

import functools
import pathlib

import jax
import ml_collections

from qaq_jax.data import samples as samples_lib
from qaq_jax.data import types
from qaq_jax.encoding import chat, encoder, published_ifd
from qaq_jax.encoding.options import EncoderOptions
from qaq_jax.models import sharding
from qaq_jax.models.attention import choose as attention
from qaq_jax.runtime import console, processes
from qaq_jax.scoring import join, kinds, parts, scorer
from qaq_jax.scoring import store as score_store
from qaq_jax.scoring.options import ScoreOptions
from qaq_jax.selection import derived
from qaq_jax.stages import artifacts, options
from qaq_jax.stages import model as model_lib
from qaq_jax.workdir import fingerprint
from qaq_jax.workdir.files import StoreError
from qaq_jax.workdir.layout import SAMPLES_KEY, WorkDir

# Of keys that fingerprints of before lack.
_DEFAULTS = {'quantization': ''}


def check(config: ml_collections.ConfigDict) -> None:
  """Refuses what no model can be scored with."""
  c = config.score
  options.of(ScoreOptions, c)
  kinds.wanted(options.of(EncoderOptions, c), c.terms)
  chat.check_reverse_instruction(c.reverse_instruction)
  attention.check(c.attention)
  sharding.mesh_sizes(jax.device_count(), **c.mesh)


def run(config: ml_collections.ConfigDict, workdir: WorkDir) -> dict:
  """Scores the samples with every model, one after the other, and joins.

  Args:
    config: the resolved config.
    workdir: the work directory with prepared samples; gets each model's parts
      and the table.

  Returns:
    Model -> summary of its run, for the run log.

  Raises:
    ValueError: an artifact in the work directory belongs to other inputs,
      or a model or template cannot be used; says what to do.
  """
  store = artifacts.open_samples(config, workdir)
  mesh = sharding.make_mesh(**config.score.mesh.to_dict())
  targets = _prepare_targets(config, workdir)
  mirror = workdir.mirror
  # All of them first: what is wrong with the last should not be found hours
  # later. Weights are loaded one model at a time, and only if they are needed.
  models = {
    name: _Scoring(config, name, mesh, workdir) for name in config.models
  }
  summaries = {}
  for name in config.models:
    model = models.pop(name)
    summaries[name] = model.score(store, workdir.parts(name), mirror)
    if config.score.embeddings:
      path = workdir.embeddings(name)
      folder = workdir.parts(name)
      join.join_embeddings(path, folder, num_rows=store.num_rows)
    if targets:
      folder = workdir.parts(name, 'targets')
      model.score(targets, folder, mirror)
      _check_targets(config.score.targets_path, name, folder)
      path = workdir.embeddings(name, 'targets')
      join.join_embeddings(path, folder, num_rows=targets.num_rows)
  if jax.process_index() == 0:
    _join(config, workdir, store)
  return summaries


def open_model(
  config: ml_collections.ConfigDict,
  workdir: WorkDir,
  name: str,
  *,
  weights: bool = True,
) -> model_lib.Model:
  """Model `name` of the config; `weights` as `model.open_model` has it."""
  c, m = config.score, config.models[name]
  field = f'config.models.{name}'
  model = model_lib.open_model(
    workdir.filled(m.path), m.revision, field=field, weights=weights
  )
  lengths = {f'{field}.max_length': m.max_length or c.max_length}
  for form in published_ifd.FORMS.values():
    if c[form.option]:
      lengths[f'config.score.{form.limit}'] = c[form.limit]
  model.check_lengths(lengths)
  return model


def make_encoder(
  config: ml_collections.ConfigDict,
  workdir: WorkDir,
  name: str,
  model: model_lib.Model,
) -> encoder.Encoder:
  """The encoder of model `name` of the config.

  Where the config leaves the wording to the default, scores that an earlier
  version began with its own default go on with that.
  """
  c, m = config.score, config.models[name]
  wording = c.reverse_instruction
  # Of any model: those of one table are asked in the same words.
  begun = {
    score_store.begun_wording(folder): folder
    for folder in map(workdir.parts, config.models)
  }
  earlier = [w for w in begun if w in types.EARLIER_REVERSE_INSTRUCTIONS]
  if wording == types.REVERSE_INSTRUCTION and earlier:
    if len(earlier) > 1:
      told = '\n'.join(f'  {begun[w]}: {w!r}' for w in earlier)
      raise StoreError(
        f'{workdir} holds scores that were begun with several reverse '
        f'instructions:\n{told}\nSet config.score.reverse_instruction to one '
        'of them, and delete the folders that were begun with another.'
      )
    (wording,) = earlier
    console.say(
      f'{name}: goes on with the reverse instruction that the scores of '
      f'{workdir} were begun with: {wording!r}'
    )
  return model.encoder(
    options=options.of(
      EncoderOptions,
      c,
      template=m.chat_template,
      system_prompt=m.system_prompt or c.system_prompt,
      max_length=m.max_length or c.max_length,
      reverse_instruction=wording,
    )
  )


class _Scoring:
  """Scoring with one model of the config; its weights on demand."""

  def __init__(self, config, name, mesh, workdir):
    self._c, self._m = config.score, config.models[name]
    self._name, self._mesh = name, mesh
    self._options = options.of(ScoreOptions, config.score)
    self._model = open_model(config, workdir, name)
    self._model.check_weights()
    self._encoder = make_encoder(config, workdir, name, self._model)
    self._attention = attention.choose(
      self._c.attention,
      attention.case_of(self._model.config, self._m.dtype, mesh),
    )

  @functools.cached_property
  def _decoder(self):
    return self._model.load(
      mesh=self._mesh,
      dtype=self._m.dtype,
      attention=self._c.attention,
      quantized=self._m.quantization,
    )

  def score(self, store, out_dir: pathlib.Path, mirror=None) -> dict:
    """Scores one sample store into `out_dir`."""
    info = self._encoder.info()
    lines = [
      f'{self._model.source.path}, {self._m.dtype}'
      f'{self._m.quantization and ", " + self._m.quantization}; template '
      f'{info["template"]}; system prompt: {info["system_prompt"]}; BOS: '
      f'{info["bos"]}; attention: {self._attention}',
      *info['notes'],
    ]
    for line in lines:
      console.say(f'{self._name}: {line}')
    return scorer.score(
      store,
      self._encoder,
      lambda: self._decoder,
      name=self._name,
      out_dir=out_dir,
      fingerprint=self._fingerprint(store),
      options=self._options,
      mesh=self._mesh,
      mirror=mirror,
    )

  def _fingerprint(self, store) -> dict:
    """Everything that can change a number, besides the scorer's version."""
    return fingerprint.written(
      {
        'samples': store.content_hash,
        **self._model.fingerprint(),
        'encoder': self._encoder.fingerprint(),
        'dtype': self._m.dtype,
        'quantization': self._m.quantization,
        # What 'auto' has always been; a kernel goes by its own name.
        'attention': (
          self._c.attention if self._attention == 'xla' else self._attention
        ),
      },
      _DEFAULTS,
    )


def _prepare_targets(config, workdir):
  """The examples of the target tasks as a sample store, or None."""
  if not (config.score.embeddings and config.score.targets_path):
    return None
  folder = workdir.target_samples
  source = samples_lib.DataSource(config.score.targets_path, split='')
  prepare = functools.partial(samples_lib.prepare, source, folder)
  if workdir.mirror:
    prepare()  # each process into its own copy
  else:
    processes.by_the_first(prepare, 'targets')
  return samples_lib.SampleStore.open(folder)


def _check_targets(path, name, folder):
  """Refuses target examples that have no embedding."""
  for part in parts.read_parts(folder):
    for row in part.to_pylist():
      if row[f'status_{name}'] not in ('ok', 'truncated'):
        raise ValueError(
          f'config.score.targets_path: row {row["row"]} of {path} is '
          f'{row[f"status_{name}"]} ({row[f"reason_{name}"]}): mend or '
          'remove it, since every target takes turns'
        )


def _join(config, workdir, store):
  """Writes scores.parquet: stored columns, then derived ones."""
  models = list(config.models)
  roles = {r: m for r, m in config.roles.items() if m}
  join.join_scores(
    workdir.scores,
    {name: workdir.parts(name) for name in models},
    num_rows=store.num_rows,
    ids=(lambda: (s.id for s in store.iter_rows())) if store.has_id else None,
    derive=lambda path: derived.derive(
      path,
      models,
      roles=roles,
      num_strata=config.strata.num_strata,
      by=config.strata.by,
      include_truncated=config.select.include_truncated,
    ),
    metadata={SAMPLES_KEY: store.content_hash},
  )
  console.say(f'wrote {workdir.scores}: {store.num_rows:,} rows')
