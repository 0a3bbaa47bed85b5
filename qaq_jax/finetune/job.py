"""Fine-tuning with plain arguments: a model, options, samples, a folder.

model = open_model('Qwen/Qwen2.5-Coder-0.5B', field='model')
job = Job(model, JobOptions(fit=FitOptions(epochs=1)))
job.run(samples, 'out')
"""

import contextlib
import dataclasses
import functools
import math
import os
import pathlib
from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from qaq_jax.data import samples
from qaq_jax.encoding import chat, encoder
from qaq_jax.encoding import examples as examples_lib
from qaq_jax.encoding.options import EncoderOptions
from qaq_jax.finetune import looks, loop, optimizer, step
from qaq_jax.finetune import lora as lora_lib
from qaq_jax.finetune.options import MESH, JobOptions
from qaq_jax.models import sharding
from qaq_jax.models.hf import checkpoint, export
from qaq_jax.models.hf.families import family_of
from qaq_jax.runtime import console
from qaq_jax.workdir import checksums, files

_DEFAULTS = JobOptions()


def make_encoder(
  model,
  max_length: int,
  *,
  template: str = EncoderOptions.template,
  system_prompt: str = EncoderOptions.system_prompt,
  date_string: str = EncoderOptions.date_string,
) -> encoder.Encoder:
  """The encoder of training examples.

  Args:
    model: the model from `stages.model.open_model`.
    max_length: tokens of an example.
    template: see `EncoderOptions`.
    system_prompt: see `EncoderOptions`.
    date_string: see `EncoderOptions`.

  Raises:
    ValueError: the model has no positions for such a length, or see `Job`.
  """
  return model.encoder(
    ending=True,
    reverse_instruction='{answer}',  # not used, and takes no room
    max_length=max_length,
    template=template,
    system_prompt=system_prompt,
    date_string=date_string,
  )


class Job:
  """Fine-tuning of one model with one set of options."""

  def __init__(
    self,
    model,
    options: JobOptions = _DEFAULTS,
    *,
    mesh: jax.sharding.Mesh | None = None,
    template: str = EncoderOptions.template,
    system_prompt: str = EncoderOptions.system_prompt,
    date_string: str = EncoderOptions.date_string,
  ):
    """Reads the tokenizer; loads no weights yet.

    Args:
      model: where training starts, from `stages.model.open_model`.
      options: how it is trained.
      mesh: the mesh to train on; None: all devices share one copy.
      template: see `EncoderOptions`.
      system_prompt: see `EncoderOptions`.
      date_string: see `EncoderOptions`.

    Raises:
      ValueError: the model or its tokenizer cannot be used for this.
    """
    self.model, self.options = model, options
    self.encoder = make_encoder(
      model,
      options.fit.max_length,
      template=template,
      system_prompt=system_prompt,
      date_string=date_string,
    )
    if mesh is None:
      mesh = sharding.make_mesh(**dataclasses.asdict(MESH))
    self.mesh = mesh
    self._lora = options.adapters

  def run(
    self,
    data: Iterable[samples.Sample],
    folder: str | os.PathLike,
    *,
    validation: Sequence[samples.Sample] = (),
  ) -> dict:
    """Trains on samples and exports the model.

    Args:
      data: the samples to train on.
      folder: the folder of the run; what is in it goes on. Gets the model in
        `model`, for LoRA also `adapter`, and `result.json`.
      validation: the examples to evaluate on; the best checkpoint is exported.

    Returns:
      What `result.json` holds.

    Raises:
      ValueError: no sample can be used.
      StoreError, NonFiniteError, Interrupted: see `loop.fit`.
    """
    folder = pathlib.Path(folder)
    train = self.examples(data, 'training')
    held_out = self.examples(validation, 'validation') if validation else []
    usable = {example.row for example in held_out}
    shown = [s for s in validation if s.row in usable][: self.options.looks]
    trainer, state = self.start()
    result = self.fit(
      trainer, state, train, folder, validation=held_out, shown=shown
    )
    state = result.state
    if result.best_loss is not None and result.best_step != result.steps:
      console.say(
        f'best validation loss {result.best_loss:.4f} after update '
        f'{result.best_step:,}: that checkpoint is exported'
      )
      state = result.load_best()
    exported = self.export(trainer, state, folder)
    summary = {
      'examples': len(train),
      'updates': result.steps,
      'tokens': result.tokens,
      'seconds': round(result.seconds, 1),
      'best_step': result.best_step,
      'validation_loss': result.best_loss,
      'exported': [str(path) for path in exported],
      'start': self.fingerprint,
    }
    if jax.process_index() == 0:
      files.write_json(folder / 'result.json', summary)
    console.say('wrote ' + ' and '.join(map(str, exported)))
    return summary

  def examples(self, data, what: str) -> list[examples_lib.Example]:
    """Renders samples, tells what became of them.

    Raises:
      ValueError: none is left.
    """
    rendered = examples_lib.make_examples(
      data, self.encoder, self.options.training, self.options.fit.max_length
    )
    for line in rendered.describe():
      console.say(f'{what}: {line}')
    if not rendered.examples:
      skipped = [f'{n:,} {why}' for why, n in rendered.skipped.items()]
      raise ValueError(
        f'no {what} sample can be used: {", ".join(skipped)}; max_length and '
        'on_long decide about long ones'
        if skipped
        else f'there are no {what} samples'
      )
    return rendered.examples

  def start(self, seed: int | None = None):
    """Loads the start.

    Args:
      seed: the seed of adapters; None is that of the options.

    Returns:
      The Trainer and its state before the first update.
    """
    model = self.model.load(
      mesh=self.mesh,
      dtype=self.options.dtype,
      # Masters keep what the files hold; frozen weights are only computed
      # with.
      param_dtype=None if self._lora else jnp.float32,
      attention=self.options.attention,
    )
    if self._lora:
      seed = self.options.fit.seed if seed is None else seed
      model = lora_lib.add(model, self._lora, seed=seed)
    trainer = step.Trainer(
      model,
      optimizer.make(self.options.optimizer),
      self.options.step,
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
      trainer: the trainer from `start`.
      state: the state from `start`; donated.
      examples: the examples to train on.
      folder: the folder of the run.
      validation: the examples to evaluate on.
      shown: samples whose queries the model answers at each validation, into
        samples.jsonl.
      seed: the seed of the order; None is that of the options.
      quiet: print no plan and no bar.
    """
    options = self.options.fit
    options = dataclasses.replace(
      options,
      seed=options.seed if seed is None else seed,
      progress=options.progress and not quiet,
    )
    return loop.fit(
      trainer,
      state,
      examples,
      folder,
      options=options,
      optimizer_options=self.options.optimizer,
      validation=validation,
      sample_fn=looks.writer(trainer, self.encoder, shown, self.mesh)
      if shown
      else None,
      fingerprint=self.fingerprint,
      reserve=self._export_bytes,
    )

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
    size = jnp.dtype(self.options.export_dtype).itemsize
    return size * sum(math.prod(shape) for shape in shapes.values())

  def _on_exact_base(self, model):
    """The adapters on the start's weights as they are in its files.

    The frozen weights of the training are in the dtype of the computation.
    """
    assert self._lora is not None, 'what is exact has adapters'
    base = self.model.load(mesh=self.mesh, dtype=jnp.float32)
    exact = lora_lib.add(base, self._lora)
    trained = {
      path: variable
      for path, variable in nnx.to_flat_state(nnx.state(model))
      if '_lora_' in str(path[-1])
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
    template, own = None, self.encoder.options.template
    if own not in (chat.AUTO, chat.PLAIN):
      template, _ = chat.find_template(self.encoder.tokenizer.hf, own)
    with contextlib.ExitStack() as stack:
      if jax.process_index() == 0:
        stack.enter_context(checksums.noted(folder / 'model'))
      export.save_model(
        model,
        folder / 'model',
        source=self.model.source,
        dtype=jnp.dtype(self.options.export_dtype),
        chat_template=template,
        stop_ids=(self.encoder.stop_id,),
      )
    return [folder / 'model', *written]
