"""How a model writes."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Sampling:
  """How the next token is chosen.

  Attributes:
    temperature: divides the logits; 0 = greedy, the most likely token.
    top_p: mass of the most likely tokens that are kept where samples are
      drawn, in (0, 1]; 1 keeps all.
    top_k: number of most likely tokens that are kept where samples are drawn;
      0 keeps all.
    seed: the seed of the whole; each row has a seed of its own beside it.
  """

  temperature: float = 0.0
  top_p: float = 0.95
  top_k: int = 0
  seed: int = 0

  def __post_init__(self):
    if not 0 <= self.temperature < float('inf'):
      raise ValueError(f'temperature={self.temperature}: 0 or a number above')
    if not 0 < self.top_p <= 1:
      raise ValueError(f'top_p={self.top_p}: above 0, at most 1 (keeps all)')
    if self.top_k < 0:
      raise ValueError(f'top_k={self.top_k}: 1 or more, or 0 (keeps all)')

  @property
  def mode(self) -> tuple[bool, bool, bool]:
    """What the compiled program must hold: a draw, top-k, top-p."""
    draws = self.temperature > 0
    return draws, draws and self.top_k > 0, draws and self.top_p < 1

  def numbers(self) -> np.ndarray:
    """The values that programs of one mode share: float32 [3]."""
    return np.array(
      [self.temperature or 1.0, self.top_k, self.top_p], np.float32
    )


@dataclasses.dataclass(frozen=True)
class GeneratorOptions:
  """Sizes of generation.

  Attributes:
    max_new_tokens: tokens written after a prompt at most; fewer where the
      model's positions end before.
    batch_size: prompts at a time, rounded up to what the mesh divides.
  """

  max_new_tokens: int = 768
  batch_size: int = 32

  def __post_init__(self):
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      if value < 1:
        raise ValueError(f'{field.name}={value}: must be at least 1')
