"""Whether an output is right, decided as EvalPlus decides it.

Runs in the trusted process, on decoded values. The rules and the tasks that
have their own are those of `evalplus/eval` of EvalPlus 0.3.1. Lengths and
shapes are compared before values: what a comparison costs grows with the sizes
of both, never with their product.
"""

import math
import numbers
import warnings

import numpy as np

from qaq_jax.sandbox.child import hashing
from qaq_jax.sandbox.child.values import Opaque

_RTOL = 1e-7
_FLOAT_ATOL = 1e-6  # where the task has no tolerance and outputs are floats

# MBPP tasks whose outputs are compared as sets.
_AS_SETS = frozenset(
  {
    'similar_elements',
    'find_char_long',
    'common_in_nested_lists',
    'extract_singly',
    'larg_nnum',
    'intersection_array',
    'find_dissimilar',
    'Diff',
  }
)
# MBPP tasks that return a match object: only its presence counts.
_NOT_NONE = frozenset({'check_str', 'text_match_three', 'text_starta_endb'})
_NUMPY = (np.ndarray, np.generic)
_PLAIN = frozenset({int, float, complex, bool, str, bytes, type(None)})


def expect(family: str, name: str, output: object) -> object:
  """Returns what is expected where the reference returned `output`."""
  if family == 'mbpp' and name in _NOT_NONE:
    return output is not None
  return output


def tolerances(atol: float, expected: list) -> list[float]:
  """Absolute tolerance of each test.

  Where a task has none, the first output made of floats sets 1e-6, for that
  test and for those after it.
  """
  found = []
  for value in expected:
    if atol == 0 and _is_floats(value):
      atol = _FLOAT_ATOL
    found.append(atol)
  return found


def matches(
  family: str,
  name: str,
  arguments: list,
  output: object,
  expected: object,
  atol: float,
) -> bool:
  """Whether `output` is right.

  Args:
    family: 'humaneval' or 'mbpp'.
    name: the task's entry point; some have rules of their own.
    arguments: the arguments of the call.
    output: decoded; anything at all.
    expected: the reference's output.
    atol: the tolerance of this test, from `tolerances`.
  """
  try:
    with warnings.catch_warnings(), np.errstate(all='ignore'):
      warnings.simplefilter('ignore')
      return _matches(family, name, arguments, output, expected, atol)
  except Exception:  # an output that cannot be compared is a wrong one
    return False


def _matches(family, name, arguments, output, expected, atol):
  if family == 'humaneval' and name == 'find_zero':
    return abs(_polynomial(arguments[0], output)) <= atol
  if family == 'mbpp' and name == 'are_equivalent':
    return True
  if family == 'mbpp' and name in _AS_SETS:
    return hashing.distinct(list(output)) == set(expected)
  if family == 'mbpp' and name in _NOT_NONE:
    found = output if isinstance(output, bool) else output is not None
    return found == expected
  exact = _equal(output, expected)
  if family == 'mbpp' and not exact:
    exact = _mbpp_rule(name, arguments, output, atol)
  if exact or atol == 0:
    return bool(exact)
  if type(output) is not type(expected) or _shape(output) != _shape(expected):
    return False
  return bool(np.allclose(output, expected, rtol=_RTOL, atol=atol))


def _mbpp_rule(name, arguments, output, atol):
  if name == 'sum_div':
    return bool(output == 0)
  if name == 'surface_Area':
    return bool(abs(output - _pyramid_area(*arguments)) <= atol)
  if name == 'digit_distance_nums':
    return bool(output == _digit_distance(*arguments))
  return False


def _equal(a, b):
  """`a == b`, but NumPy stretches and pads nothing for it.

  Raises:
    ValueError: one is an array of other than one item, which has no truth.
  """
  if isinstance(a, _NUMPY) or isinstance(b, _NUMPY):
    a, b = _only_item(a), _only_item(b)
    if isinstance(a, _NUMPY) or isinstance(b, _NUMPY):
      return bool(a == b)
  for kind in (list, tuple):
    if isinstance(a, kind) and isinstance(b, kind) and len(a) == len(b):
      return a == b if _is_flat(a) and _is_flat(b) else all(map(_equal, a, b))
  if isinstance(a, dict) and isinstance(b, dict):
    return len(a) == len(b) and all(k in b and _equal(a[k], b[k]) for k in a)
  return a == b


def _is_flat(items):
  return _PLAIN.issuperset(map(type, items))


def _only_item(value):
  """The one item that NumPy would compare with that of another array."""
  while True:
    if isinstance(value, np.ndarray) and value.size == 1:
      value = value.reshape(())[()]
    elif isinstance(value, (list, tuple)) and len(value) == 1:
      (value,) = value
    elif isinstance(value, (np.ndarray, list, tuple)):
      raise ValueError('the truth of an array of other than one item')
    else:
      return value


def _shape(value):
  """Shape of nested lists of numbers as an array.

  Raises:
    ValueError: they are uneven.
    TypeError: there is something else than numbers in them.
  """
  if isinstance(value, np.ndarray) and value.dtype.kind not in 'US':
    return value.shape
  if isinstance(value, (list, tuple)):
    shapes = {_shape(item) for item in value}
    if len(shapes) > 1:
      raise ValueError(f'shapes {shapes}')
    return (len(value), *(shapes.pop() if shapes else ()))
  if isinstance(value, (numbers.Number, np.bool_)):
    return ()
  raise TypeError(f'{type(value)} is no number')


def _is_floats(value):
  if isinstance(value, float):
    return True
  if isinstance(value, (list, tuple)) and value:
    return all(isinstance(item, float) for item in value)
  return isinstance(value, np.ndarray) and value.dtype.kind == 'f'


def _polynomial(coefficients, x):
  return sum(c * math.pow(x, i) for i, c in enumerate(coefficients))


def _pyramid_area(base, height):
  """Surface of a square pyramid, its height measured from the base."""
  slant = math.sqrt((base / 2) ** 2 + height**2)
  return round(base**2 + 2 * base * slant)


def _digit_distance(first, second):
  """Sum of the distances of digits, the shorter number padded with zeros."""
  a, b = str(first), str(second)
  width = max(len(a), len(b))
  pairs = zip(a.zfill(width), b.zfill(width), strict=True)
  return sum(abs(int(x) - int(y)) for x, y in pairs)


def comparable(value: object) -> bool:
  """Whether an expected output holds nothing that cannot be compared."""
  if isinstance(value, Opaque):
    return False
  if isinstance(value, dict):
    return all(comparable(v) for kv in value.items() for v in kv)
  if isinstance(value, (list, tuple, set, frozenset)):
    return all(comparable(item) for item in value)
  return True
