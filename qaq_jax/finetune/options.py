"""What a run of training is told."""

import dataclasses

from qaq_jax.encoding.options import TrainingOptions
from qaq_jax.models.options import (
  DTYPES,
  LoraOptions,
  MeshOptions,
  check_dtype,
)

SCHEDULES = ('cosine', 'linear', 'constant', 'wsd')
PACKING = ('packed', 'padded')
OPTIMIZERS = ('adamw', 'muon')
EXPORT_DTYPES = (*DTYPES, 'float16')
# Copies of the model, and the devices that share one, of a run.
MESH = MeshOptions(data=1, fsdp=-1)
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
    max_steps: the most updates; 0: as many as the epochs have.
    max_length: tokens of a row, and of the longest example, end of turn
      included.
    packing: 'packed' or 'padded', see `batches.Layout`.
    tokens_per_device: the tokens of a micro-batch on one device, padding
      included; what its memory allows.
    seed: the seed of the order of the examples.
    log_every: updates between lines of the curve.
    eval_every: updates between evaluations; 0: once per epoch. The last update
      is evaluated in any case. A checkpoint is saved with each.
    save_every: updates between further checkpoints; 0: none.
    keep: how many of the latest checkpoints stay, besides the best.
    trackers: names of `metrics.TRACKERS`.
    progress: whether to show a progress bar and print the plan.
  """

  batch_size: int = 256
  epochs: int = 3
  max_steps: int = 0
  max_length: int = 2048
  packing: str = 'packed'
  tokens_per_device: int = 8192
  seed: int = 0
  log_every: int = 10
  eval_every: int = 0
  save_every: int = 200
  keep: int = 2
  trackers: tuple[str, ...] = ()
  progress: bool = True

  def __post_init__(self):
    for name in ('batch_size', 'epochs', 'log_every', 'keep'):
      if getattr(self, name) < 1:
        raise ValueError(f'{name}={getattr(self, name)}: it is at least 1')
    for name in ('max_steps', 'eval_every', 'save_every'):
      if getattr(self, name) < 0:
        raise ValueError(f'{name}={getattr(self, name)}: it is at least 0')
    if self.max_length < 2:
      raise ValueError(f'max_length={self.max_length}: 2 tokens at least')
    if self.packing not in PACKING:
      raise ValueError(f'packing={self.packing!r}: choose one of {PACKING}')

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
class OptimizerOptions:
  """Optimiser and learning rate.

  Attributes:
    name: 'adamw', or 'muon' (matrices of the layers by Muon, the rest by Adam).
    learning_rate: peak.
    schedule: 'cosine', 'linear', 'constant', or 'wsd' (warm-up, stable, linear
      decay).
    warmup_ratio: part of the updates until the peak, rounded up.
    decay_ratio: part of the updates in which 'wsd' decays, rounded up.
    final_ratio: rate at the end over peak; 'constant' ignores it.
    weight_decay: the decay of all but biases and norms' scales, as
      transformers' Trainer does it (embeddings and adapters decay); 'muon': of
      its matrices alone.
    b1: Adam's decay of the mean.
    b2: Adam's decay of the mean square.
    eps: Adam's epsilon, outside of the root.
    clip: global norm that a gradient is cut to; 0: not cut.
  """

  name: str = 'adamw'
  learning_rate: float = 1e-5
  schedule: str = 'cosine'
  warmup_ratio: float = 0.03
  decay_ratio: float = 0.2
  final_ratio: float = 0.0
  weight_decay: float = 0.0
  b1: float = 0.9
  b2: float = 0.999
  eps: float = 1e-8
  clip: float = 1.0

  def __post_init__(self):
    if self.name not in OPTIMIZERS:
      raise ValueError(
        f'optimizer.name is {self.name!r}; known: {", ".join(OPTIMIZERS)}'
      )
    if self.schedule not in SCHEDULES:
      raise ValueError(
        f'optimizer.schedule is {self.schedule!r}; known:'
        f' {", ".join(SCHEDULES)}'
      )
    for field in ('warmup_ratio', 'decay_ratio', 'final_ratio'):
      value = getattr(self, field)
      if not 0 <= value <= 1:
        raise ValueError(f'optimizer.{field} is {value}: must be in [0, 1]')


@dataclasses.dataclass(frozen=True)
class StepOptions:
  """How a step is computed; changes memory and speed, not results.

  Attributes:
    remat: layers are computed again in the backward pass, not kept.
    head_rows: positions whose logits exist at a time; 0: by platform.
  """

  remat: bool = True
  head_rows: int = 0


@dataclasses.dataclass(frozen=True)
class JobOptions:
  """How a model is fine-tuned.

  Attributes:
    training: how samples become examples.
    fit: batches, evaluation, checkpoints.
    optimizer: optimiser and learning rate.
    lora: adapters, where not all parameters are trained.
    step: memory and speed.
    dtype: the dtype of the computation, 'float32' or 'bfloat16'; the masters
      are float32.
    attention: 'auto', or the name of an implementation.
    export_dtype: the dtype of the exported weights: 'float32', 'bfloat16' or
      'float16'.
    looks: samples generated from validation at each look.
  """

  training: TrainingOptions = TrainingOptions()
  fit: FitOptions = FitOptions()
  optimizer: OptimizerOptions = OptimizerOptions()
  lora: LoraOptions = LoraOptions()
  step: StepOptions = StepOptions()
  dtype: str = 'bfloat16'
  attention: str = 'auto'
  export_dtype: str = 'bfloat16'
  looks: int = 2

  def __post_init__(self):
    check_dtype('dtype', self.dtype)
    check_dtype('export_dtype', self.export_dtype, EXPORT_DTYPES)

  @property
  def adapters(self) -> LoraOptions | None:
    """`lora`, or None where all parameters are trained."""
    return self.lora if self.lora.rank else None
