"""The plan stage: what scoring and fine-tuning would need on a pod.

Needs no accelerator and no weights: sizes come from config.json, lengths from
the user's own data, memory and collectives from the real step, compiled for the
topology.
"""

import functools
import os
import tempfile

import ml_collections

from qaq_jax import artifacts, finetune_stage, scoring_stage
from qaq_jax.data import samples as samples_lib
from qaq_jax.data import tokenization
from qaq_jax.finetune import batches, optimizer
from qaq_jax.models import checkpoint, sharding
from qaq_jax.models import source as source_lib
from qaq_jax.planner import (
    lengths,
    predict,
    score_plan,
    text,
    topology,
    train_plan,
)
from qaq_jax.planner.footprint import Mesh
from qaq_jax.scoring import files
from qaq_jax.scoring import source as rows_lib
from qaq_jax.workdir import WorkDir


def plan(config: ml_collections.ConfigDict, workdir: WorkDir) -> dict:
  """Plans scoring, and fine-tuning where the config's stages have it.

  Prints the plans and writes them to plan.json of the work directory.

  Args:
    config: the resolved config; `config.plan` above all.
    workdir: prepared samples and surveys in it are used.

  Returns:
    Stage and model -> plan.

  Raises:
    ValueError: a field, topology or model cannot be used; says what to do.
  """
  c = config.plan
  if not c.topology:
    raise ValueError(
        'config.plan.topology is empty: say --topology=NAME, as in '
        + ', '.join(topology.EXAMPLES)
    )
  assumed = predict.Assumptions(c.utilisation, c.bandwidth, c.links)
  where = topology.describe(c.topology)
  print(text.header(where))
  mesh = _mesh(config.score.mesh, where)
  result = {'topology': where.name, 'score': {}}
  scored = [] if 'score' not in config.stages else list(config.models)
  surveys = _Surveys(config, workdir)
  for name in scored:
    found = score_plan.plan(
        _score_request(config, workdir, name, surveys), where, mesh, assumed
    )
    result['score'][name] = found
    _say(f'score {name}', found)
  hours = [p['chip_hours'] for p in result['score'].values()
           if 'chip_hours' in p]
  if len(hours) == len(scored) > 1:
    print(f'scoring with all models: {sum(hours):,.2f} chip-hours')
  if 'finetune' in config.stages:
    there = where
    if c.finetune_topology and c.finetune_topology != c.topology:
      there = topology.describe(c.finetune_topology)
      print(text.header(there))
    mesh = _mesh(config.finetune.mesh, there)
    found = train_plan.plan(
        _train_request(config, workdir, mesh, surveys), there, mesh, assumed
    )
    result['finetune'] = found | {'topology': there.name}
    _say('finetune', found)
  files.write_json(workdir.plan, result)
  print(f'wrote {workdir.plan}')
  return result


def _say(what, found):
  print()
  first, *rest = text.describe(found)
  print(f'{what}: {first}')
  for line in rest:
    print(line)


def _mesh(config, where) -> Mesh:
  return Mesh(*sharding.mesh_sizes(where.number, **config.to_dict()))


class _Surveys:
  """Lengths of the config's data under each model's tokenizer, read once."""

  def __init__(self, config, workdir):
    self._config, self._workdir = config, workdir
    self._found = {}
    self._folder = None  # of samples that are prepared for the moment

  def of(self, name, source) -> dict | None:
    """The survey under model `name`, or None with the reason printed."""
    if name not in self._found:
      self._found[name] = self._survey(name, source)
    return self._found[name]

  def _survey(self, name, source):
    config, workdir = self._config, self._workdir
    known = lengths.stored(workdir, name)
    if known:
      return known
    if not config.data.path:
      print(f'{name}: no lengths and no hours: config.data.path is empty')
      return None
    try:
      encoder = scoring_stage.make_encoder(config, name, source.directory)
    except tokenization.TokenizerError as e:
      print(f'{name}: no lengths and no hours: {e}')
      return None
    rows = rows_lib.Source(
        self._samples, encoder,
        rows_lib.wanted_terms(encoder, tuple(config.score.terms) or None),
        config.score.embeddings,
    )
    return lengths.sampled(
        self._samples.num_rows, rows.encode, config.plan.survey_rows
    )

  @functools.cached_property
  def _samples(self):
    """Those of the work directory, else prepared in a folder of its own."""
    config, workdir = self._config, self._workdir
    if workdir.samples.exists():
      return artifacts.open_samples(config, workdir)
    self._folder = tempfile.TemporaryDirectory()
    folder = os.path.join(self._folder.name, 'samples')
    samples_lib.prepare(artifacts.data_source(config, workdir), folder)
    return samples_lib.SampleStore.open(folder)


def _score_request(config, workdir, name, surveys) -> score_plan.Request:
  m = config.models[name]
  source = source_lib.resolve(
      workdir.filled(m.path), m.revision or None, weights=False
  )
  return score_plan.Request(
      name=f'{name} ({m.path})',
      config=checkpoint.read_config(source),
      dtype=m.dtype,
      max_length=m.max_length or config.score.max_length,
      survey=surveys.of(name, source),
      options=scoring_stage.score_options(config),
      embeddings=config.score.embeddings,
      attention=config.score.attention,
      quantized=m.quantization,
  )


def _train_request(config, workdir, mesh, surveys) -> train_plan.Request:
  c = config.finetune
  start = finetune_stage.start_of(config)
  source = source_lib.resolve(
      workdir.filled(start['path']), start['revision'] or None, weights=False
  )
  name = config.roles.get(c.model) or c.model
  survey = surveys.of(name, source) if name in config.models else None
  samples = tokens = None
  if survey:
    share = _share(config, survey)
    samples = round(share * survey['rows'])
    # A row's forward sequence is an example; the other one is as long.
    tokens = round(share * survey['tokens'] / 2)
  return train_plan.Request(
      name=start['path'],
      config=checkpoint.read_config(source),
      dtype=c.dtype,
      layout=batches.Layout(
          max_length=c.max_length,
          packing=c.packing,
          tokens_per_device=c.tokens_per_device,
          shards=mesh.rows,
          batch_size=c.batch_size,
      ),
      optimizer_options=optimizer.OptimizerOptions(**c.optimizer.to_dict()),
      remat=c.remat,
      lora=finetune_stage.lora_options(config),
      samples=samples,
      tokens=tokens,
      epochs=c.epochs,
      attention=c.attention,
  )


def _share(config, survey) -> float:
  """Share of the rows that will be trained on, as far as the config says."""
  budget = config.select.budget
  if config.finetune.data != 'selected':
    return 1.0
  if budget.rows:
    return min(budget.rows / max(survey['rows'], 1), 1.0)
  return budget.share or 0.25  # the rules' own default
