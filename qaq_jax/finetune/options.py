"""What a run is told, and what it gives back."""

import dataclasses
from collections.abc import Callable
from typing import Any

from qaq_jax.finetune import batches

# Fields of FitOptions that change no number of the curve.
FREE = (
  'tokens_per_device',
  'log_every',
  'save_every',
  'keep',
  'trackers',
  'progress',
)


@dataclasses.dataclass(frozen=True)
class FitOptions:
  """Batches, evaluation, checkpoints.

  Attributes:
    batch_size: examples of an update, on all devices together.
    epochs: passes over the examples.
    max_steps: at most so many updates; 0: as many as the epochs have.
    max_length: tokens of a row, and of the longest example.
    packing: 'packed' or 'padded', see `batches.Layout`.
    tokens_per_device: of a micro-batch on one device, padding included; what
      its memory allows.
    seed: of the order of the examples.
    log_every: updates between lines of the curve.
    eval_every: updates between evaluations; 0: once per epoch. The last update
      is evaluated in any case. A checkpoint is saved with each.
    save_every: updates between further checkpoints; 0: none.
    keep: how many of the latest checkpoints stay, besides the best.
    trackers: of `metrics.TRACKERS`.
    progress: show the bar.
  """

  batch_size: int = 512
  epochs: int = 3
  max_steps: int = 0
  max_length: int = 2048
  packing: str = 'packed'
  tokens_per_device: int = 4096
  seed: int = 0
  log_every: int = 10
  eval_every: int = 0
  save_every: int = 0
  keep: int = 2
  trackers: tuple[str, ...] = ()
  progress: bool = True

  def __post_init__(self):
    for name in ('batch_size', 'epochs', 'max_length', 'log_every', 'keep'):
      if getattr(self, name) < 1:
        raise ValueError(f'{name}={getattr(self, name)}: it is at least 1')
    for name in ('max_steps', 'eval_every', 'save_every'):
      if getattr(self, name) < 0:
        raise ValueError(f'{name}={getattr(self, name)}: it is at least 0')

  def layout(self, shards: int) -> batches.Layout:
    """How batches are put into arrays on so many devices."""
    return batches.Layout(
      max_length=self.max_length,
      packing=self.packing,
      tokens_per_device=self.tokens_per_device,
      shards=shards,
      batch_size=self.batch_size,
    )

  def per_epoch(self, examples: int) -> int:
    """Updates of an epoch; the last one may be of fewer examples."""
    return -(-examples // self.batch_size)

  def steps(self, examples: int) -> int:
    """Updates of a whole run."""
    steps = self.epochs * self.per_epoch(examples)
    return min(steps, self.max_steps) if self.max_steps else steps

  def evaluates(self, step: int, examples: int) -> bool:
    """Whether an evaluation follows update `step` (from 1)."""
    every = self.eval_every or self.per_epoch(examples)
    return step % every == 0 or step == self.steps(examples)

  def saves(self, step: int, examples: int) -> bool:
    """Whether a checkpoint follows update `step` (from 1)."""
    return self.evaluates(step, examples) or (
      self.save_every > 0 and step % self.save_every == 0
    )


@dataclasses.dataclass(frozen=True)
class FitResult:
  """What a run gave.

  Attributes:
    state: after the last update.
    steps: updates made.
    tokens: real tokens trained on, repeats counted.
    seconds: spent, of all runs if it was resumed.
    best_step: updates made by the best checkpoint; the last one's without
      validation examples.
    best_loss: its validation loss, nats per weighted token; None without.
    load_best: reads the state of the best checkpoint.
  """

  state: Any
  steps: int
  tokens: int
  seconds: float
  best_step: int
  best_loss: float | None
  load_best: Callable[[], Any]
