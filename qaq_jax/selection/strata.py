"""Strata of equal count by PPL(Q), and ranks inside them.

Queries that are likely by themselves (low PPL(Q)) leave little for an answer
to explain, so a global ranking by RMI discards simple valid samples. The
paper (arXiv 2603.12165) therefore ranks inside strata of similar PPL(Q).

Everything here is plain vectorised numpy: a stratification of ten million
rows is two sorts. Shapes: `_N` is one entry per row of the score table.
"""

import numpy as np

# Differences and sums of ranks live on this grid. Without it 3/9 - 2/9 and
# 2/9 - 1/9 differ in the last bit, and rounding noise, not the seeded hash,
# would break what is a tie on paper. A power of two keeps the scaling exact.
GRID = float(2**40)


def to_grid(values):
  """Rounds to multiples of 2**-40, halves away from zero (so -x maps to -y).

  In SQL: `sign(x) * floor(abs(x) * 1099511627776 + 0.5) / 1099511627776`.
  """
  values = np.asarray(values, np.float64)
  return np.copysign(np.floor(np.abs(values) * GRID + 0.5), values) / GRID


def assign_strata(log_ppl_q_N, row_N, num_strata: int):
  """Puts rows into equal-count strata by PPL(Q).

  Args:
    log_ppl_q_N: float, log PPL(Q) in nats per token; NaN = no stratum.
    row_N: int64 keys; equal perplexities are ordered by it.
    num_strata: K >= 1. Sizes differ by at most 1, the larger ones first (as
      SQL's `ntile` does); with fewer rows than K the last ones stay empty.

  Returns:
    int32 [N]: 0 (lowest PPL(Q)) to K - 1, and -1 where there is none.

  Raises:
    ValueError: if K < 1.
  """
  if num_strata < 1:
    raise ValueError(f'strata.num_strata is {num_strata}; it must be >= 1.')
  log_ppl_q_N = np.asarray(log_ppl_q_N)
  row_N = np.asarray(row_N)
  stratum_N = np.full(len(log_ppl_q_N), -1, np.int32)
  used = np.flatnonzero(np.isfinite(log_ppl_q_N))
  if num_strata == 1 or not len(used):
    stratum_N[used] = 0
    return stratum_N
  values, rows = log_ppl_q_N[used], row_N[used]
  if np.all(rows[1:] > rows[:-1]):  # the usual case: a table in row order
    order = np.argsort(values, kind='stable')
  else:
    order = np.lexsort((rows, values))
  size_K = np.full(num_strata, len(used) // num_strata)
  size_K[: len(used) % num_strata] += 1
  stratum_N[used[order]] = np.repeat(np.arange(num_strata), size_K)
  return stratum_N


def rank_in_strata(score_N, stratum_N):
  """Average ranks inside strata, normalised to [0, 1].

  `rank = (average rank - 1) / (size - 1)`, ties share their average rank, and
  the only row of a stratum gets 0.5.

  Args:
    score_N: float; NaN = not ranked (and not counted in the size).
    stratum_N: int, -1 = not ranked.

  Returns:
    float64 [N], NaN where there is no rank.
  """
  score_N = np.asarray(score_N)
  stratum_N = np.asarray(stratum_N)
  rank_N = np.full(len(score_N), np.nan)
  used = np.flatnonzero((stratum_N >= 0) & np.isfinite(score_N))
  if not len(used):
    return rank_N
  score, stratum = score_N[used], stratum_N[used]
  order = np.argsort(score)  # the order of ties has no effect
  if stratum.max() > 0:
    # Small integers: numpy's stable sort is a radix sort, linear in the rows.
    small = np.int16 if stratum.max() < 2**15 else np.int64
    order = order[np.argsort(stratum[order].astype(small), kind='stable')]
  score, stratum = score[order], stratum[order]

  size_K = np.bincount(stratum)
  first_K = np.cumsum(size_K) - size_K
  new = np.empty(len(order), bool)  # does a new tied group begin here?
  new[0] = True
  new[1:] = (score[1:] != score[:-1]) | (stratum[1:] != stratum[:-1])
  starts = np.flatnonzero(new)
  stops = np.append(starts[1:], len(order))
  # Twice the mean 0-based position of a group: an exact integer, so that
  # equal ranks are equal floats whatever the stratum.
  twice_G = starts + stops - 1 - 2 * first_K[stratum[starts]]
  size_G = size_K[stratum[starts]]
  rank_G = twice_G / (2.0 * np.maximum(size_G - 1, 1))
  rank_G[size_G == 1] = 0.5
  rank_N[used[order]] = np.repeat(rank_G, stops - starts)
  return rank_N
