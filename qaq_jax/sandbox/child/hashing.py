"""Sets of values whose hashes a program may have chosen."""

# Values with one hash are compared with each other. So many times for each
# value are more than powers of two need, which share hashes by their nature.
_MAX_COLLISIONS = 256


def distinct(items: list) -> set:
  """Returns the set of `items`.

  Raises:
    ValueError: many of them were given one hash, which would take a time that
      grows with the square of their number.
    TypeError: one of them has no hash.
  """
  if len(items) <= _MAX_COLLISIONS:
    return set(items)
  found: set = set()
  sharing: dict[int, int] = {}  # hash -> values
  collisions = 0
  for item in items:
    if item in found:
      continue
    key = hash(item)
    collisions += sharing.get(key, 0)
    if collisions > _MAX_COLLISIONS * (len(found) + 1):
      raise ValueError(f'{sharing[key]} values with one hash')
    sharing[key] = sharing.get(key, 0) + 1
    found.add(item)
  return found
