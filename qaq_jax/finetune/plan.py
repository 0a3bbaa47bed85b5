"""A run's numbers before its first update, and what to print of them."""

import dataclasses

from qaq_jax.finetune import batches, mfu
from qaq_jax.finetune import curve as curve_lib
from qaq_jax.models import flops

_PLANNED = 20  # batches laid out to tell how full rows will be


class Plan:
  """Numbers of a run that are known before its first update."""

  def __init__(self, trainer, state, examples, options, first):
    """Counts.

    Args:
      trainer: a `step.Trainer`.
      state: the state of the trainer.
      examples: the examples to train on.
      options: a FitOptions.
      first: updates that a checkpoint has made already.
    """
    self._examples, self._options, self._first = examples, options, first
    mesh = trainer.mesh
    self.per_epoch = options.per_epoch(len(examples))
    self.steps = options.steps(len(examples))
    model = trainer.model(state)
    self.layout = batches.Layout.of(options, model.rules.batch_shards(mesh))
    self._config = model.config
    self._lora = mfu.lora_params(state)
    self._peak, self._peak_origin = mfu.peak_flops(
      model.dtype, None if mesh is None else mesh.devices.flat
    )
    self._tokens = sum(len(e.ids) for e in examples)

  def describe(self, name: str, room: str) -> list[str]:
    """Lines to print: data, shapes, updates, disk."""
    options, start = self._options, f'{name}: ' if name else ''
    planned = list(
      batches.batches(
        self._examples,
        self.layout,
        seed=options.seed,
        first=0,
        last=min(_PLANNED, self.steps),
      )
    )
    micros = [m['tokens'].size for b in planned for m in b.micros]
    full = sum(b.tokens for b in planned) / sum(micros)
    shapes = ', '.join(f'{b} x {t}' for b, t in self.layout.shapes)
    lines = [
      f'{start}{len(self._examples):,} examples, {self._tokens:,} tokens; '
      f'{self.steps:,} updates of {options.batch_size} examples, '
      f'{self.per_epoch:,} per epoch',
      f'{start}{options.packing} micro-batches (rows x tokens): {shapes}; '
      f'{len(micros) / len(planned):.1f} per update, {full:.0%} full',
      f'{start}{room}',
      f'{start}peak {self._peak / 1e12:,.2f} TFLOP/s ({self._peak_origin})',
    ]
    if self._first:
      lines.append(
        f'{start}continuing after update {self._first:,} of {self.steps:,}'
      )
    return lines

  def curve(self, name: str, optimizer_options) -> curve_lib.Run:
    """What the curve must know."""
    options = self._options
    per_update = self._tokens / self.per_epoch
    return curve_lib.Run(
      name=name,
      steps=self.steps,
      per_epoch=self.per_epoch,
      tokens_left=int(per_update * (self.steps - self._first)),
      log_every=options.log_every,
      flops=lambda batch: flops.training_flops(
        self._config, batch.tokens, batch.attended, self._lora
      ),
      peak=self._peak,
      settings={
        **dataclasses.asdict(options),
        'optimizer': dataclasses.asdict(optimizer_options),
      },
      trackers=options.trackers,
      show=options.progress,
    )
