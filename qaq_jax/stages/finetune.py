"""The finetune stage: chosen samples to a trained, exported model.

`Job` holds what a config says about fine-tuning; the comparison of rules
trains its cells with it too.
"""

import dataclasses
import functools
import math
import pathlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import ml_collections
from flax import nnx

from qaq_jax.data import samples
from qaq_jax.encoding import chat, encoder
from qaq_jax.encoding import examples as examples_lib
from qaq_jax.encoding import prompts as prompts_lib
from qaq_jax.finetune import loop, optimizer, step
from qaq_jax.finetune import lora as lora_lib
from qaq_jax.generation import generate
from qaq_jax.models import sharding
from qaq_jax.models.hf import checkpoint, export
from qaq_jax.models.hf.families import family_of
from qaq_jax.runtime import console
from qaq_jax.stages import model as model_lib
from qaq_jax.stages import options, training_data
from qaq_jax.workdir import files
from qaq_jax.workdir.layout import WorkDir

_LOOK_TOKENS = 128  # written per query for an early look


def run(config: ml_collections.ConfigDict, workdir: WorkDir) -> dict:
  """Fine-tunes on the chosen samples and exports the model.

  Args:
    config: the resolved config; `config.finetune` above all.
    workdir: with prepared samples, and a selection where that is the data.

  Returns:
    Summary for the run log.

  Raises:
    ValueError: data, model or options cannot be used; says what to do.
  """
  job = Job(config, workdir)
  data, origin = training_data.training_samples(config, workdir)
  train, validation = training_data.split(config, workdir, data)
  console.say(f'fine-tuning {job.model.source.path} on {origin}')
  train = job.examples(train, 'training')
  held_out = job.examples(validation, 'validation') if validation else []
  usable = {example.row for example in held_out}
  shown = [s for s in validation if s.row in usable][: config.finetune.looks]
  folder = workdir.path / config.finetune.folder
  trainer, state = job.start()
  result = job.fit(
    trainer, state, train, folder, validation=held_out, shown=shown
  )
  if result.best_loss is not None and result.best_step != result.steps:
    console.say(
      f'best validation loss {result.best_loss:.4f} after update '
      f'{result.best_step:,}: that checkpoint is exported'
    )
    state = result.load_best()
  else:
    state = result.state
  exported = job.export(trainer, state, folder)
  summary = {
    'examples': len(train),
    'updates': result.steps,
    'tokens': result.tokens,
    'seconds': round(result.seconds, 1),
    'best_step': result.best_step,
    'validation_loss': result.best_loss,
    'exported': [str(path) for path in exported],
    'start': job.fingerprint,
  }
  if jax.process_index() == 0:
    files.write_json(folder / 'result.json', summary)
  console.say('wrote ' + ' and '.join(map(str, exported)))
  return summary


class Job:
  """Fine-tuning as a config describes it: a start, and settings."""

  def __init__(self, config: ml_collections.ConfigDict, workdir: WorkDir):
    """Resolves the start and its tokenizer; loads no weights yet.

    Raises:
      ValueError: the start is not known or its files cannot be used.
    """
    c = self._c = config.finetune
    self._seed = config.seed
    self.model = open_model(config, workdir)
    self.encoder = make_encoder(config, self.model)
    self._template = start_of(config)['chat_template']
    self._lora = lora_options(config)
    self.mesh = sharding.make_mesh(**c.mesh.to_dict())
    self.optimizer_options = optimizer.OptimizerOptions(**c.optimizer.to_dict())

  def examples(self, data, what: str) -> list[examples_lib.Example]:
    """Renders samples, tells what became of them.

    Raises:
      ValueError: none is left.
    """
    rendered = examples_lib.make_examples(
      data, self.encoder, training_options(self._c)
    )
    for line in rendered.describe():
      console.say(f'{what}: {line}')
    if not rendered.examples:
      raise ValueError(
        f'no {what} sample can be used: {dict(rendered.skipped)}; '
        'config.finetune.max_length and on_long decide about long ones'
      )
    return rendered.examples

  def start(self, seed: int | None = None):
    """Loads the start.

    Args:
      seed: of adapters; None is the config's.

    Returns:
      The Trainer and its state before the first update.
    """
    model = self.model.load(
      mesh=self.mesh,
      dtype=self._c.dtype,
      # Masters keep what the files hold; frozen weights are only computed
      # with.
      param_dtype=None if self._lora else jnp.float32,
      attention=self._c.attention,
    )
    if self._lora:
      seed = self._seed if seed is None else seed
      model = lora_lib.add(model, self._lora, seed=seed)
    trainer = step.Trainer(
      model,
      optimizer.make(self.optimizer_options),
      step.StepOptions(remat=self._c.remat),
    )
    return trainer, trainer.state

  def fit(
    self,
    trainer,
    state,
    examples: Sequence[examples_lib.Example],
    folder: pathlib.Path,
    *,
    validation: Sequence[examples_lib.Example] = (),
    shown: Sequence[samples.Sample] = (),
    seed: int | None = None,
    quiet: bool = False,
  ) -> loop.FitResult:
    """Trains in `folder`, going on from what is there.

    Args:
      trainer: from `start`.
      state: from `start`; donated.
      examples: to train on.
      folder: of the run.
      validation: to evaluate on.
      shown: samples whose queries the model answers at each validation, into
        samples.jsonl.
      seed: of the order; None is the config's.
      quiet: print no plan and no bar.
    """
    c = self._c
    return loop.fit(
      trainer,
      state,
      examples,
      folder,
      options=loop.FitOptions(
        batch_size=c.batch_size,
        epochs=c.epochs,
        max_steps=c.max_steps,
        max_length=c.max_length,
        packing=c.packing,
        tokens_per_device=c.tokens_per_device,
        seed=self._seed if seed is None else seed,
        log_every=c.log_every,
        eval_every=c.eval_every,
        save_every=c.save_every,
        keep=c.keep,
        trackers=tuple(c.trackers),
        progress=not quiet,
      ),
      optimizer_options=self.optimizer_options,
      validation=validation,
      sample_fn=self._writer(trainer, shown) if shown else None,
      fingerprint=self.fingerprint,
      reserve=self._export_bytes,
    )

  def _writer(self, trainer, shown):
    """Function from a state to what its model answers to some queries."""
    prompts = [
      prompts_lib.chat_prompt(self.encoder, s.query, system=s.system)
      for s in shown
    ]

    def write(state):
      generator = generate.Generator(
        trainer.model(state),
        self.encoder.tokenizer,
        max_new_tokens=_LOOK_TOKENS,
        batch_size=len(prompts),
        mesh=self.mesh,
      )
      found = generator.generate(prompts, stop_ids=(self.encoder.stop_id,))
      return [
        {
          'row': sample.row,
          'query': sample.query,
          'answer': g.text,
          'finish_reason': g.finish_reason,
        }
        for sample, g in zip(shown, found, strict=True)
      ]

    return write

  @functools.cached_property
  def fingerprint(self) -> dict:
    """What the weights depend on besides examples and options."""
    return {
      **self.model.fingerprint(),
      'lora': dataclasses.asdict(self._lora) if self._lora else None,
    }

  @property
  def _export_bytes(self) -> int:
    shapes = checkpoint.expected_tensors(self.model.config)
    size = jnp.dtype(self._c.export_dtype).itemsize
    return size * sum(math.prod(shape) for shape in shapes.values())

  def _on_exact_base(self, model):
    """The adapters on the start's weights as they are in its files.

    The frozen weights of the training are in the dtype of the computation.
    """
    base = self.model.load(mesh=self.mesh, dtype=jnp.float32)
    exact = lora_lib.add(base, self._lora)
    trained = {
      path: variable
      for path, variable in nnx.to_flat_state(nnx.state(model))
      if '_lora_' in path[-1]
    }
    nnx.update(exact, nnx.from_flat_state(trained))
    return exact

  def export(self, trainer, state, folder: pathlib.Path) -> list[pathlib.Path]:
    """Writes folder/model, and for LoRA folder/adapter before it is merged.

    Returns:
      The folders.
    """
    model, written = trainer.model(state), []
    if self._lora:
      if not family_of(model.config).has_fused_heads:  # as PEFT has it
        export.save_adapter(
          model,
          folder / 'adapter',
          base=self.model.source.path,
          rank=self._lora.rank,
          alpha=self._lora.alpha,
        )
        written.append(folder / 'adapter')
      model = lora_lib.merge(self._on_exact_base(model))
    template = None
    if self._template not in (chat.AUTO, chat.PLAIN):
      template, _ = chat.find_template(
        self.encoder.tokenizer.hf, self._template
      )
    export.save_model(
      model,
      folder / 'model',
      source=self.model.source,
      dtype=jnp.dtype(self._c.export_dtype),
      chat_template=template,
      stop_ids=(self.encoder.stop_id,),
    )
    return [folder / 'model', *written]


def open_model(
  config: ml_collections.ConfigDict, workdir: WorkDir, *, weights: bool = True
) -> model_lib.Model:
  """The start; `weights` as `model.open_model` has it."""
  start = start_of(config)
  model = model_lib.open_model(
    workdir.filled(start['path']),
    start['revision'],
    field=start['field'],
    weights=weights,
  )
  model.check_lengths(
    {'config.finetune.max_length': config.finetune.max_length}
  )
  return model


def make_encoder(
  config: ml_collections.ConfigDict, model: model_lib.Model
) -> encoder.Encoder:
  """The encoder of training examples."""
  start = start_of(config)
  return model.encoder(
    ending=True,
    template=start['chat_template'],
    system_prompt=start['system_prompt'],
    reverse_instruction='{answer}',  # not used, and takes no room
    max_length=config.finetune.max_length,
    date_string=config.score.date_string,
  )


def training_options(
  c: ml_collections.ConfigDict,
) -> examples_lib.TrainingOptions:
  """Of the examples, from `config.finetune`."""
  return examples_lib.TrainingOptions(
    max_length=c.max_length,
    prompt_weight=c.prompt_weight,
    response_weight=c.response_weight,
    on_long=c.on_long,
  )


def lora_options(
  config: ml_collections.ConfigDict,
) -> lora_lib.LoraOptions | None:
  """The adapters that the config asks for; None trains all parameters.

  Raises:
    ValueError: a negative rank.
  """
  found = options.of(lora_lib.LoraOptions, config.finetune.lora)
  return found if found.rank else None


def start_of(config: ml_collections.ConfigDict) -> dict:
  """field, path, revision, chat_template, system_prompt of the start."""
  c = config.finetune
  name = config.roles.get(c.model) or c.model
  model = config.models.get(name)
  if model is None and not c.path:
    raise ValueError(
      f'config.finetune.model is {c.model!r}; it is a role or one of '
      f'config.models ({", ".join(config.models) or "none"}), or give '
      'config.finetune.path'
    )
  own = model if model is not None and not c.path else None
  return {
    'field': 'config.finetune.path' if c.path else f'config.models.{name}',
    'path': c.path or own.path,
    'revision': c.revision or (own.revision if own else ''),
    'chat_template': (
      c.chat_template or (own.chat_template if own else chat.AUTO)
    ),
    'system_prompt': (
      c.system_prompt
      or (own.system_prompt if own else '')
      or config.score.system_prompt
    ),
  }
