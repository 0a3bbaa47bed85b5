"""Sets of values whose hashes a program may have chosen."""

# Values with one hash are compared with each other. So many steps for each
# value are more than powers of two need, which share hashes by their nature.
_MAX_STEPS = 256


def distinct(items: list) -> set:
  """Returns the set of `items`.

  Raises:
    ValueError: many of them were given one hash, which would take a time that
      grows with the square of their number, and with more than that where sets
      hold sets.
    TypeError: one of them has no hash.
  """
  found: set = set()
  sharing: dict[int, int] = {}  # hash -> values
  steps = size = 0
  for item in items:
    key = hash(item)
    others = sharing.get(key, 0)
    size += _size(item)
    if others:
      steps += others * _steps(item)
      if steps > _MAX_STEPS * size:
        raise ValueError(f'{others} values with one hash')
      if item in found:
        continue
    sharing[key] = others + 1
    found.add(item)
  return found


def _size(item) -> int:
  """Values in an item, itself included."""
  if isinstance(item, tuple | frozenset):
    return 1 + sum(map(_size, item))
  return 1


def _steps(item) -> int:
  """The most steps of comparing an item with another of its hash and shape."""
  if isinstance(item, tuple):
    return 1 + sum(map(_steps, item))
  if isinstance(item, frozenset):  # each value with all those of the other
    return 1 + len(item) * sum(map(_steps, item))
  return 1
