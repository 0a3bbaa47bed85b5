"""NumPy arrays and scalars out of what a program sent, at the price of that."""

import math
import re

KINDS = 'biufcUSO'  # numbers, texts, objects
# All that is written of a dtype; NumPy would evaluate other texts.
_DTYPE = re.compile(f'[<>|=]?([{KINDS}])[0-9]{{0,10}}')
_ITEMS = {'U': str, 'S': bytes, 'O': object}
_NUMBERS = (bool, int, float, complex)
_MAX_DIMENSIONS = 64  # NumPy's own limit
_MAX_EMPTY = 10_000  # size of a dimension in an array without items
# An array of texts pads all to the longest: that may have so many times the
# mean length, and that of so many characters.
_MAX_PADDING = 4
_PADDED = 4


def build(dtype: str, shape: list[int] | None, items: list) -> object:
  """Returns an array, or a scalar where `shape` is None.

  Texts of very different lengths stay objects, which are equal to the same
  values.

  Args:
    dtype: the dtype as NumPy writes it; the length of texts is not taken from
      it.
    shape: the shape of the array.
    items: plain values, of the type that the dtype has.

  Raises:
    ValueError: they do not belong together.
  """
  import numpy  # only where a program returned such a value

  match = _DTYPE.fullmatch(dtype)
  if not match:
    raise ValueError(f'dtype {dtype!r:.50}')
  kind = match[1]
  if not all(isinstance(item, _ITEMS.get(kind, _NUMBERS)) for item in items):
    raise ValueError(f'an array of {dtype} with other items')
  # One by one: NumPy would look for more dimensions in lists.
  array = numpy.fromiter(items, object, len(items))
  if kind not in 'US':
    array = array.astype(dtype)
  elif _is_even([len(item) for item in items]):
    array = array.astype(kind)
  if shape is None:
    return array.reshape(())[()]
  if not _is_shape(shape, len(items)):
    raise ValueError(f'shape {shape!r:.50} of {len(items)} items')
  return array.reshape(shape)


def _is_even(sizes):
  padded = len(sizes) * max(sizes, default=0)
  return padded <= _MAX_PADDING * (sum(sizes) + _PADDED * len(sizes))


def _is_shape(shape, items):
  """Whether NumPy can be given `shape`: its product is not taken unlooked."""
  return (
    len(shape) <= _MAX_DIMENSIONS
    and all(type(size) is int for size in shape)
    and all(0 <= size <= max(items, _MAX_EMPTY) for size in shape)
    and math.prod(shape) == items
  )
