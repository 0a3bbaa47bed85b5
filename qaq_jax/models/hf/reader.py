"""Single values of a config.json, with errors that name key and file."""

import math
from collections.abc import Mapping

from qaq_jax.models.rope import ROPE_KINDS, Rope

_ACTIVATIONS = {
  'silu': 'silu',
  'swish': 'silu',
  'gelu': 'gelu',
  'gelu_new': 'gelu_tanh',
  'gelu_pytorch_tanh': 'gelu_tanh',
}


class Reader:
  """A parsed config.json whose errors name the key and the file."""

  def __init__(self, values: Mapping, origin: str):
    self.values = values
    self.origin = origin

  def error(self, key: str, problem: str) -> ValueError:
    """Returns the error to raise about `key`."""
    return ValueError(f'{self.origin}: {key!r} {problem}')

  def need(self, key: str, kind: type = int):
    """Returns a value that must be there."""
    if self.values.get(key) is None:
      raise self.error(key, 'is missing: this family needs it')
    return self.get(key, kind)

  def get(self, key: str, kind: type, default=None):
    """Returns a value, or the default where it is missing or null."""
    value = self.values.get(key)
    if value is None:
      return default
    if kind is float and isinstance(value, int):
      value = float(value)
    if not isinstance(value, kind) or (
      kind is not bool and isinstance(value, bool)
    ):
      raise self.error(key, f'is {value!r}, expected {kind.__name__}')
    if kind in (int, float) and value < 0:
      raise self.error(key, f'is {value!r}, expected a number from 0 up')
    return value

  def refuse(self, key: str, *allowed) -> None:
    """Refuses any value of `key` but those allowed (or missing)."""
    value = self.values.get(key)
    if value is not None and value not in allowed:
      raise self.error(key, f'is {value!r}, which is not supported')

  def activation(self, *keys: str, default: str | None = None) -> str:
    """Returns our name of the activation under the first key that is set."""
    for key in keys:
      name = self.values.get(key)
      if name is not None:
        if name not in _ACTIVATIONS:
          raise self.error(
            key, f'is {name!r}; supported: {sorted(_ACTIVATIONS)}'
          )
        return _ACTIVATIONS[name]
    if default is None:
      raise self.error(keys[0], 'is missing: this family needs it')
    return default


def read_rope(
  reader: Reader, scaling: Mapping | None, theta: float, max_positions: int
) -> Rope:
  """Returns the Rope of a `rope_scaling` or `rope_parameters` dictionary."""
  scaling = dict(scaling or {})
  kind = scaling.get('rope_type', scaling.get('type', 'default'))
  if kind not in ROPE_KINDS:
    raise reader.error(
      'rope_parameters'
      if 'rope_parameters' in reader.values
      else 'rope_scaling',
      f'asks for {kind!r}; supported: {", ".join(ROPE_KINDS)}',
    )
  inner = Reader(scaling, f'{reader.origin} (rope scaling)')
  inner.refuse('partial_rotary_factor', 1.0)
  theta = inner.get('rope_theta', float, theta)
  if kind == 'default':
    return Rope(theta)
  factor = inner.need('factor', float)
  if kind == 'linear':
    return Rope(theta, kind, factor)
  if kind == 'llama3':
    return Rope(
      theta,
      kind,
      factor,
      original_max_positions=inner.need('original_max_position_embeddings'),
      low_freq_factor=inner.need('low_freq_factor', float),
      high_freq_factor=inner.need('high_freq_factor', float),
    )
  return Rope(
    theta,
    kind,
    factor,
    original_max_positions=inner.get(
      'original_max_position_embeddings', int, max_positions
    ),
    beta_fast=inner.get('beta_fast', float, 32.0),
    beta_slow=inner.get('beta_slow', float, 1.0),
    truncate=inner.get('truncate', bool, True),
    attention_factor=_yarn_attention(inner, factor),
  )


def _yarn_attention(inner: Reader, factor: float) -> float:
  def scale(mscale):
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0

  given = inner.get('attention_factor', float)
  if given is not None:
    return given
  mscale = inner.get('mscale', float)
  all_dim = inner.get('mscale_all_dim', float)
  if mscale and all_dim:
    return scale(mscale) / scale(all_dim)
  return scale(1.0)
