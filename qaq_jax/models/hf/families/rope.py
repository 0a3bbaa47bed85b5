"""Rotary embeddings as config.json has them, of either generation."""

import math
import typing
from collections.abc import Mapping

from qaq_jax.models.hf.reader import Reader
from qaq_jax.models.rope import Rope

_ORIGINAL = 'original_max_position_embeddings'
# Kind -> its keys besides `rope_type` and `rope_theta`.
_KEYS = {
  'default': (),
  'linear': ('factor',),
  'llama3': ('factor', _ORIGINAL, 'low_freq_factor', 'high_freq_factor'),
  'yarn': (
    'factor',
    _ORIGINAL,
    'beta_fast',
    'beta_slow',
    'truncate',
    'attention_factor',
  ),
}
_FIELDS = {_ORIGINAL: 'original_max_positions'}  # others have the key's name
_TYPES = typing.get_type_hints(Rope)


def read_rope(
  reader: Reader, scaling: Mapping | None, theta: float, max_positions: int
) -> Rope:
  """Returns the Rope of a `rope_scaling` or `rope_parameters` dictionary."""
  scaling = dict(scaling or {})
  kind = scaling.get('rope_type', scaling.get('type', 'default'))
  if kind not in _KEYS:
    raise reader.error(
      'rope_parameters'
      if 'rope_parameters' in reader.values
      else 'rope_scaling',
      f'asks for {kind!r}; supported: {", ".join(_KEYS)}',
    )
  inner = Reader(scaling, f'{reader.origin} (rope scaling)')
  inner.refuse('partial_rotary_factor', 1.0)
  optional = {}
  if kind == 'yarn':
    optional = {
      _ORIGINAL: max_positions,
      'beta_fast': 32.0,
      'beta_slow': 1.0,
      'truncate': True,
      'attention_factor': _yarn_attention(inner),
    }
  values = {}
  for key in _KEYS[kind]:
    field = _FIELDS.get(key, key)
    if key in optional:
      values[field] = inner.get(key, _TYPES[field], optional[key])
    else:
      values[field] = inner.need(key, _TYPES[field])
  return Rope(inner.get('rope_theta', float, theta), kind, **values)


def write_rope(rope: Rope | None) -> dict:
  """Returns `rope_parameters`."""
  assert rope is not None, 'this family has no other positions'
  keys = {key: getattr(rope, _FIELDS.get(key, key)) for key in _KEYS[rope.kind]}
  return {'rope_type': rope.kind, 'rope_theta': rope.theta, **keys}


def _yarn_attention(inner: Reader) -> float:
  factor = inner.need('factor', float)

  def scale(mscale):
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0

  mscale = inner.get('mscale', float)
  all_dim = inner.get('mscale_all_dim', float)
  if mscale and all_dim:
    return scale(mscale) / scale(all_dim)
  return scale(1.0)
