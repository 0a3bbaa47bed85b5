"""Rotary position embeddings and their scalings.

Su et al., RoFormer, arXiv:2104.09864; linear scaling: Chen et al.,
arXiv:2306.15595; YaRN: Peng et al., arXiv:2309.00071; the Llama 3.1 scaling is
defined by its published code. Pairs are (i, i + K/2): the half-split layout of
Hugging Face checkpoints.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class Rope:
  """One way to turn positions into angles.

  Attributes:
    theta: base of the geometric series of wavelengths.
    kind: 'default', 'linear', 'llama3' or 'yarn'.
    factor: how many times longer the context became (linear, llama3, yarn).
    original_max_positions: context length before scaling (llama3, yarn).
    low_freq_factor: llama3: wavelengths above original/this are stretched.
    high_freq_factor: llama3: wavelengths below original/this are kept.
    beta_fast: yarn: rotations in the old context above which a pair is kept.
    beta_slow: yarn: rotations below which a pair is stretched.
    truncate: yarn: round the ends of the ramp to whole pairs.
    attention_factor: yarn: what cos and sin are multiplied by.
  """

  theta: float
  kind: str = 'default'
  factor: float = 1.0
  original_max_positions: int = 0
  low_freq_factor: float = 1.0
  high_freq_factor: float = 1.0
  beta_fast: float = 32.0
  beta_slow: float = 1.0
  truncate: bool = True
  attention_factor: float = 1.0

  def frequencies(self, head_dim: int) -> np.ndarray:
    """Returns radians per position, float32 [head_dim / 2]."""
    # In float32, operation by operation, as every published model was run: an
    # ulp here is 1e-4 radians a thousand positions on.
    pairs = np.arange(0, head_dim, 2, dtype=np.float32)
    exponent = pairs / np.float32(head_dim)
    base = np.float64(np.float32(self.theta))
    turns = (base ** exponent.astype(np.float64)).astype(np.float32)
    freq = np.float32(1) / turns
    if self.kind == 'linear':
      freq = freq / np.float32(self.factor)
    elif self.kind == 'llama3':
      freq = self._llama3(freq)
    elif self.kind == 'yarn':
      freq = self._yarn(freq, turns, head_dim)
    return freq.astype(np.float32)

  def _llama3(self, freq):
    wavelength = 2 * math.pi / freq
    low = self.original_max_positions / self.low_freq_factor
    high = self.original_max_positions / self.high_freq_factor
    smooth = (
      self.original_max_positions / wavelength - self.low_freq_factor
    ) / (self.high_freq_factor - self.low_freq_factor)
    blended = (1 - smooth) * freq / self.factor + smooth * freq
    freq = np.where(wavelength > low, freq / self.factor, freq)
    medium = (wavelength >= high) & (wavelength <= low)
    return np.where(medium, blended, freq)

  def _yarn(self, freq, turns, head_dim):
    def pair_of(rotations):  # the pair that turns this often in the old context
      return (
        head_dim
        * math.log(self.original_max_positions / (rotations * 2 * math.pi))
        / (2 * math.log(self.theta))
      )

    low, high = pair_of(self.beta_fast), pair_of(self.beta_slow)
    if self.truncate:
      low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    if low == high:
      high += 0.001  # the paper's ramp would divide by zero
    pairs = np.arange(head_dim // 2, dtype=np.float32)
    kept = 1 - np.clip((pairs - low) / (high - low), 0, 1)
    return 1 / (self.factor * turns) * (1 - kept) + freq * kept

  def tables(self, positions_BT: jax.Array, head_dim: int):
    """Returns (cos, sin), each float32 [B, T, K / 2]."""
    freq = jnp.asarray(self.frequencies(head_dim))
    angles = positions_BT.astype(jnp.float32)[..., None] * freq
    scale = self.attention_factor
    return jnp.cos(angles) * scale, jnp.sin(angles) * scale


def rotate(x_BTHK: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
  """Rotates the pairs of each head; cos and sin are [B, T, K / 2]."""
  cos = cos[:, :, None, :].astype(x_BTHK.dtype)
  sin = sin[:, :, None, :].astype(x_BTHK.dtype)
  first, second = jnp.split(x_BTHK, 2, axis=-1)
  return jnp.concatenate(
    [first * cos - second * sin, second * cos + first * sin], axis=-1
  )
