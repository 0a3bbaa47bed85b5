"""Budgets and the cut: which candidates are kept, and how ties are broken.

Ties at the cut are normal: ten strata make ten-fold ties in the ranks. They
are broken by a seeded hash of `row` made of integer operations that every SQL
engine has (products stay below 2**63, so signed 64-bit integers do):

    mix(x): x = xor(x, x >> 16);  x = (x * 2146121005) & 4294967295
            x = xor(x, x >> 15);  x = (x * 73244475) & 4294967295
            x = xor(x, x >> 16)
    key   = mix(mix(seed) + 2654435769 * stream & 4294967295)
    hash  = mix((mix(xor(row & 4294967295, key)) + (row >> 32)) & 4294967295)

(`xor(a, b)` is `a + b - 2 * (a & b)` where there is no xor.) `mix` is one to
one on 32 bits, so below 2**32 rows no two rows share a hash; beyond, `row`
decides. The smallest hash is kept first.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np

_LOW = np.uint64(2**32 - 1)
_MULTIPLIERS = np.uint64(2146121005), np.uint64(73244475)

# The stream by which ties are broken; rules that draw have streams of their
# own, so that their draws do not repeat each other's.
TIES = 1


def _mix(x):
  x = x ^ (x >> np.uint64(16))
  x = (x * _MULTIPLIERS[0]) & _LOW
  x = x ^ (x >> np.uint64(15))
  x = (x * _MULTIPLIERS[1]) & _LOW
  return x ^ (x >> np.uint64(16))


def check_seed(seed: int):
  """Refuses a seed that is not in [0, 2**32)."""
  if not 0 <= seed < 2**32:
    raise ValueError(f'select.seed is {seed}; it must be in [0, 2**32).')


def hash_key(seed: int, stream: int = TIES) -> int:
  """The `key` of the hash (see the module) for a seed and a stream."""
  check_seed(seed)
  key = _mix(np.array([seed], np.uint64))
  return int(_mix((key + np.uint64(2654435769 * stream % 2**32)) & _LOW)[0])


def row_hash(row_N, seed: int, stream: int = TIES):
  """The seeded hash of `row`: uint64 [N] below 2**32 (see the module).

  Args:
    row_N: non-negative int64 keys.
    seed: 0 <= seed < 2**32.
    stream: TIES or that of a rule that draws.

  Raises:
    ValueError: the seed is out of range.
  """
  key = np.uint64(hash_key(seed, stream))
  row = np.asarray(row_N, np.int64).astype(np.uint64)
  return _mix((_mix((row & _LOW) ^ key) + (row >> np.uint64(32))) & _LOW)


@dataclasses.dataclass(frozen=True)
class Budget:
  """How much to keep: one of the fields, or none = all that the rule keeps.

  Attributes:
    share: the share of the eligible rows, in (0, 1]; rounded down to whole
      rows.
    rows: a number of rows.
    tokens: query and answer tokens; the longest best-first prefix that fits.
    threshold: keeps scores beyond it (above, or below for a rule that keeps
      the lowest), the threshold itself not.
  """

  share: float | None = None
  rows: int | None = None
  tokens: int | None = None
  threshold: float | None = None

  def __post_init__(self):
    given = self.given()
    if len(given) > 1:
      raise ValueError(
        f'select.budget has {" and ".join(given)}: set one and the others to '
        'None.'
      )
    if self.share is not None and not 0 < self.share <= 1:
      raise ValueError(f'select.budget.share is {self.share}; it is in (0, 1].')
    for name in ('rows', 'tokens'):
      value = getattr(self, name)
      if value is not None and (value != int(value) or value < 0):
        raise ValueError(
          f'select.budget.{name} is {value}; it is a whole number >= 0.'
        )
    if self.threshold is not None and not np.isfinite(self.threshold):
      raise ValueError(
        f'select.budget.threshold is {self.threshold}; it must be finite.'
      )

  def given(self) -> dict:
    """The field that is set, as a dict of at most one entry."""
    fields = dataclasses.asdict(self)
    return {name: value for name, value in fields.items() if value is not None}

  @classmethod
  def of(cls, value) -> 'Budget':
    """A Budget from a Budget, a mapping (None entries unset) or None."""
    if isinstance(value, cls):
      return value
    if value is None:
      return cls()
    if not isinstance(value, Mapping) and not hasattr(value, 'items'):
      raise ValueError(
        f'select.budget is {value!r}; write a mapping, e.g. {{"share": 0.25}}.'
      )
    names = [field.name for field in dataclasses.fields(cls)]
    unknown = [key for key in dict(value) if key not in names]
    if unknown:
      raise ValueError(
        f'select.budget has {unknown}; it has one of {", ".join(names)}.'
      )
    return cls(**dict(value))

  def limit(self, num_eligible: int) -> int | None:
    """Rows to keep, or None for a budget not counted in rows."""
    if self.share is not None:
      # 0.29 * 100 is 28.999999999999996 in floating point.
      return int(np.floor(self.share * num_eligible + 1e-9))
    return None if self.rows is None else int(self.rows)


@dataclasses.dataclass(frozen=True)
class Cut:
  """What was kept and where the line fell.

  Attributes:
    index: int64, positions kept, ascending.
    last: the score at the line (the worst one kept), None if nothing kept.
    tied, tied_kept: rows at that score, and how many of them were kept.
  """

  index: np.ndarray
  last: float | None
  tied: int
  tied_kept: int


def smallest(hash_N, row_N, count: int):
  """Positions of the `count` smallest (hash, row), in no particular order."""
  if count >= len(hash_N):
    return np.arange(len(hash_N))
  if count <= 0:
    return np.arange(0)
  line = np.partition(hash_N, count - 1)[count - 1]
  below = np.flatnonzero(hash_N < line)
  equal = np.flatnonzero(hash_N == line)
  equal = equal[np.argsort(row_N[equal], kind='stable')]
  return np.concatenate([below, equal[: count - len(below)]])


def take(
  value_N,
  candidate_N,
  row_N,
  *,
  limit=None,
  tokens_N=None,
  max_tokens=None,
  seed=0,
  stream=TIES,
) -> Cut:
  """Keeps the best candidates: highest value, then the seeded hash, then row.

  Args:
    value_N: float, higher is better; finite on candidates.
    candidate_N: bool.
    row_N: int64 keys.
    limit: rows to keep (None = all candidates, or as `max_tokens` allows).
    tokens_N: tokens per row, for `max_tokens`.
    max_tokens: keep best-first until the next one would not fit.
    seed: the seed of the hash.
    stream: the stream of the hash.

  Returns:
    A Cut.
  """
  index = np.flatnonzero(candidate_N)
  value = np.asarray(value_N)[index]
  if max_tokens is not None:
    hashes = row_hash(row_N[index], seed, stream)
    order = np.lexsort((row_N[index], hashes, -value))
    spent = np.cumsum(np.asarray(tokens_N)[index][order])
    kept = order[: np.searchsorted(spent, max_tokens, side='right')]
  elif limit is None or limit >= len(index):
    kept = np.arange(len(index))
  elif limit == 0:
    kept = np.arange(0)
  else:
    place = len(value) - limit
    line = np.partition(value, place)[place]
    above = np.flatnonzero(value > line)
    tied = np.flatnonzero(value == line)
    rows = row_N[index[tied]]
    chosen = smallest(row_hash(rows, seed, stream), rows, limit - len(above))
    kept = np.concatenate([above, tied[chosen]])
  if not len(kept):
    return Cut(index[:0], None, 0, 0)
  last = value[kept].min()
  return Cut(
    index=np.sort(index[kept]),
    last=float(last),
    tied=int(np.sum(value == last)),
    tied_kept=int(np.sum(value[kept] == last)),
  )
