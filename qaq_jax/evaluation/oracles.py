"""Whether an output is right, decided as EvalPlus decides it.

Runs in the trusted process, on decoded values. The rules and the tasks that
have their own are those of `evalplus/eval` of EvalPlus 0.3.1.
"""

import math
import warnings

import numpy as np

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
    arguments: of the call.
    output: decoded; anything at all.
    expected: the reference's output.
    atol: of this test, from `tolerances`.
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
  exact = output == expected  # of arrays: an array, which some rules replace
  if family == 'mbpp':
    exact = _mbpp_rule(name, arguments, output, expected, atol, exact)
  if exact or atol == 0:
    return bool(exact)
  if type(output) is not type(expected):
    return False
  if isinstance(expected, (list, tuple)) and len(output) != len(expected):
    return False
  return bool(np.allclose(output, expected, rtol=_RTOL, atol=atol))


def _mbpp_rule(name, arguments, output, expected, atol, exact):
  if name == 'are_equivalent':
    return True
  if name == 'sum_div':
    return exact or bool(output == 0)
  if name == 'surface_Area':
    return exact or abs(output - _pyramid_area(*arguments)) <= atol
  if name == 'digit_distance_nums':
    return exact or output == _digit_distance(*arguments)
  if name in _AS_SETS:
    return set(output) == set(expected)
  if name in _NOT_NONE:
    found = output if isinstance(output, bool) else output is not None
    return found == expected
  return exact


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
