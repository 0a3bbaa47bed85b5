"""Few batch shapes for sequences of many lengths, chosen before any batch.

Every shape is compiled once per model, so there are few; every padded position
is wasted work, so rows and lengths are chosen from the data.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from qaq_jax.scoring.options import ScoreOptions

_MAX_CANDIDATES = 512  # lengths that the planner tells apart
_TRIAL_SEQUENCES = 8192  # sequences that the planner tries a plan on
_MAX_TYPICAL = 4096  # sequences of the window that shapes are fitted to
_WEIGHTS = 8  # row counts tried for a length, from lightest to full
_RUN = 64  # batches of one shape in a row that are told apart


@dataclasses.dataclass(frozen=True)
class BatchPlan:
  """The shapes of a run.

  Attributes:
    shapes: (rows, length), longest first; each is one compilation.
    waste: predicted share of positions that hold no token of a sequence.
    batches: predicted number of batches per shape.
    tokens_per_batch, rows_multiple: the sizes as given to `plan_shapes`.
  """

  shapes: tuple[tuple[int, int], ...]
  waste: float
  batches: tuple[int, ...]
  tokens_per_batch: int
  rows_multiple: int

  def to_json(self) -> dict:
    """The plan as plain types; `from_json` reads it back."""
    return dataclasses.asdict(self)

  @classmethod
  def from_json(cls, value: Mapping) -> BatchPlan:
    """Reads what `to_json` gave."""
    return cls(
      shapes=tuple((int(b), int(t)) for b, t in value['shapes']),
      waste=float(value['waste']),
      batches=tuple(int(n) for n in value['batches']),
      tokens_per_batch=int(value['tokens_per_batch']),
      rows_multiple=int(value['rows_multiple']),
    )


def plan_shapes(
  histogram,
  *,
  max_shapes: int = ScoreOptions.max_shapes,
  tokens_per_batch: int,
  multiple: int = 1,
  rows_multiple: int = 1,
  window: int | None = None,
  lightest: float = 0.25,
) -> BatchPlan:
  """Chooses the shapes of a run.

  Args:
    histogram: counts by length, [longest + 1] or a mapping length -> count.
    max_shapes: shapes at most, so compilations at most.
    tokens_per_batch: rows * length aimed at and, but for a single
      `rows_multiple` of long rows, not exceeded.
    multiple: lengths are multiples of it (1 on CPU, 128 on TPU).
    rows_multiple: rows are multiples of it (the batch axes' size of the mesh).
    window: sequences that `make_batches` will be given at a time; None: all.
    lightest: a shape may hold this share of `tokens_per_batch` at least, where
      fewer rows pad less. 1 keeps every batch full.

  Returns:
    A plan whose longest shape holds the longest sequence.

  Raises:
    ValueError: an argument is below 1.
  """
  for name, value in (
    ('max_shapes', max_shapes),
    ('tokens_per_batch', tokens_per_batch),
    ('multiple', multiple),
    ('rows_multiple', rows_multiple),
  ):
    if value < 1:
      raise ValueError(f'{name}={value}: at least 1')
  lengths, counts = _candidates(histogram, multiple)
  if not len(lengths):
    return BatchPlan((), 0.0, (), tokens_per_batch, rows_multiple)
  trial = _trial_windows(histogram, window)
  rows_of = lambda t: _rows(tokens_per_batch, t, rows_multiple)
  best = None
  typical = _typical(trial)
  attempts = [
    [(rows_of(t), t) for t in _best_lengths(lengths, counts, max_shapes)]
  ]
  for k in (max_shapes, max(1, max_shapes * 3 // 4)):  # fewer: fewer tails
    attempts.append(
      _best_shapes(typical, multiple, rows_multiple, rows_of, lightest, k)
    )
  for attempt in attempts:
    shapes = tuple(
      sorted(
        {(int(r), int(t)) for r, t in attempt}
        # Whatever the trial windows hold, the longest must fit somewhere.
        | (
          {(rows_of(int(lengths[-1])), int(lengths[-1]))}
          if max(t for _, t in attempt) < lengths[-1]
          else set()
        ),
        key=lambda s: (-s[1], -s[0]),
      )
    )
    if len(shapes) > max_shapes:
      continue
    used, waste = _try(shapes, trial)
    if best is None or waste < best.waste - 1e-9:
      best = BatchPlan(
        shapes, waste, tuple(used), tokens_per_batch, rows_multiple
      )
  assert best is not None, 'the last attempt has at most max_shapes'
  return best


def cut(lengths, shapes) -> list[tuple[int, int, int]]:
  """(start, stop, shape index) of batches over lengths, longest first.

  Dynamic programming from the end: the cheapest way to hold what is left,
  in positions, over every shape that is long enough for its first sequence.
  """
  n = len(lengths)
  rows = np.array([r for r, _ in shapes], np.int64)
  size = rows * np.array([t for _, t in shapes], np.int64)
  # Shapes 0..fits[i]-1 are long enough for sequence i.
  fits = np.searchsorted(-np.array([t for _, t in shapes]), -lengths, 'right')
  left = np.zeros(n + 1, np.int64)
  choice = np.zeros(n, np.int64)
  for i in range(n - 1, -1, -1):
    m = fits[i]
    cost = size[:m] + left[np.minimum(i + rows[:m], n)]
    # Of equal costs the last: the shorter shape with fewer rows.
    choice[i] = m - 1 - np.argmin(cost[::-1])
    left[i] = cost[choice[i]]
  cuts, at = [], 0
  while at < n:
    index = int(choice[at])
    stop = min(at + int(rows[index]), n)
    cuts.append((at, stop, index))
    at = stop
  return cuts


def _rows(tokens_per_batch, length, rows_multiple):
  return max(tokens_per_batch // length // rows_multiple, 1) * rows_multiple


def _as_counts(histogram) -> np.ndarray:
  if isinstance(histogram, Mapping):
    counts = np.zeros(max(histogram, default=0) + 1, np.int64)
    for length, count in histogram.items():
      counts[length] = count
    return counts
  return np.asarray(histogram, np.int64)


def _candidates(histogram, multiple):
  """Lengths a shape may have, increasing, and the sequences up to each."""
  counts = _as_counts(histogram)
  lengths = np.flatnonzero(counts)
  rounded = -(-np.maximum(lengths, 1) // multiple) * multiple
  sizes, index = np.unique(rounded, return_inverse=True)
  totals = np.bincount(index, counts[lengths]).astype(np.int64)
  if len(sizes) > _MAX_CANDIDATES:  # keep those that the rows crowd at
    ends = np.cumsum(totals)
    marks = np.linspace(0, len(sizes) - 1, _MAX_CANDIDATES // 2)
    crowd = np.searchsorted(
      ends, np.linspace(0, ends[-1], _MAX_CANDIDATES // 2)
    )
    keep = np.unique(
      np.concatenate([marks.astype(int), crowd, [len(sizes) - 1]])
    )
    keep = keep[keep < len(sizes)]
    totals = np.diff(ends[keep], prepend=0)
    sizes = sizes[keep]
  return sizes, totals


def _best_lengths(lengths, counts, max_shapes) -> list[int]:
  """The lengths with the least padding, tails of batches apart.

  Dynamic programming: `cost[j]` is the least number of positions that hold
  all sequences up to candidate j, the longest shape being candidate j.
  """
  n = len(lengths)
  before = np.concatenate([[0], np.cumsum(counts)])
  cost = lengths * before[1:].astype(np.float64)
  choice = [np.full(n, -1)]
  # From i (last of the shorter shapes) to j > i.
  step = lengths[None, :] * (before[None, 1:] - before[1:, None]).astype(
    np.float64
  )
  step[np.tril_indices(n)] = np.inf
  for _ in range(min(max_shapes, n) - 1):
    total = cost[:, None] + step
    choice.append(np.argmin(total, axis=0))
    cost = total[choice[-1], np.arange(n)]
  picked, j = [], n - 1
  for back in reversed(choice):
    picked.append(int(lengths[j]))
    j = back[j]
  return picked


def _best_shapes(
  lengths, multiple, rows_multiple, rows_of, lightest, max_shapes
):
  """The (rows, length) pairs that hold one window with the least padding.

  Dynamic programming over the sequences, longest first: from sequence i, one
  shape as long as sequence i is used for m batches in a row. This sees tails,
  which `_best_lengths` does not, and may make batches lighter.

  Args:
    lengths: the lengths of one window, longest first.
    multiple: the divisor of a shape's length.
    rows_multiple: the divisor of a shape's rows.
    rows_of: length -> most rows of a shape.
    lightest: see `plan_shapes`.
    max_shapes: shapes at most.
  """
  n = len(lengths)
  rounded = -(-np.maximum(lengths, 1) // multiple) * multiple
  found = []  # (source, target, cost, rows) of some transitions
  for i in range(n):
    most = rows_of(int(rounded[i]))
    for r in _light_rows(most, n - i, rows_multiple, lightest):
      batches = np.arange(1, min(-(-(n - i) // r), _RUN) + 1)
      if batches[-1] == _RUN:  # or as many as it takes to the end
        batches[-1] = -(-(n - i) // r)
      found.append(
        (
          np.full(len(batches), i),
          np.minimum(i + batches * r, n),
          batches * (r * int(rounded[i])),
          np.full(len(batches), r),
        )
      )
  source, target, cost, rows = map(np.concatenate, zip(*found, strict=True))
  firsts = np.searchsorted(source, np.arange(n))
  best = np.full(n + 1, np.inf)
  best[n] = 0
  steps = []
  for _ in range(min(max_shapes, n)):
    total = cost + best[target]
    least = np.minimum.reduceat(total, firsts)
    # The first transition of each source that reaches its least cost.
    hit = np.flatnonzero(total == least[source])
    chosen = hit[np.searchsorted(source[hit], np.arange(n))]
    steps.append(chosen)
    best = np.append(least, 0)
  shapes, i = [], 0
  for chosen in reversed(steps):
    if i >= n:
      break
    t = chosen[i]
    shapes.append((int(rows[t]), int(rounded[i])))
    i = int(target[t])
  return shapes


def _light_rows(most, left, rows_multiple, lightest) -> list[int]:
  """Row counts to try: full batches, some lighter, and just what is left."""
  tried = {
    max(round(most * f) // rows_multiple, 1) * rows_multiple
    for f in np.linspace(lightest, 1, _WEIGHTS)
  }
  if left <= most:
    tried.add(-(-left // rows_multiple) * rows_multiple)
  return sorted(r for r in tried if r <= most)


def _typical(windows) -> np.ndarray:
  """One window's lengths, longest first: the quantiles of the trial's."""
  n = min(max(len(w) for w in windows), _MAX_TYPICAL)
  every = np.sort(np.concatenate(windows))[::-1]
  return every[np.linspace(0, len(every) - 1, n).astype(int)]


def _trial_windows(histogram, window) -> list[np.ndarray]:
  """Lengths of some windows of a run, each longest first."""
  counts = _as_counts(histogram)
  lengths = np.repeat(np.arange(len(counts)), counts)
  window = min(window or _TRIAL_SEQUENCES, _TRIAL_SEQUENCES)
  if window >= len(lengths):
    return [lengths[::-1]]
  order = np.random.default_rng(0).permutation(len(lengths))
  shuffled = lengths[order[: max(_TRIAL_SEQUENCES, window)]]
  full = len(shuffled) // window * window
  return [
    np.sort(shuffled[i : i + window])[::-1] for i in range(0, full, window)
  ]


def _try(shapes, windows):
  """(batches per shape, waste) of a plan on the trial windows."""
  used, real, total = [0] * len(shapes), 0, 0
  for lengths in windows:
    for _, _, index in cut(lengths, shapes):
      used[index] += 1
      total += shapes[index][0] * shapes[index][1]
    real += int(lengths.sum())
  return used, 1 - real / total
