"""pass@k and its interval."""

import math

import numpy as np

_Z = 1.959963984540054  # two-sided 95 %
_RESAMPLES = 10_000


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
  """Unbiased estimate of the chance that one of k samples is right.

  1 - C(n - c, k) / C(n, k), as in Chen et al. 2021, arXiv:2107.03374,
  equation 1, by exact integers.

  Args:
    num_samples: n, of one task.
    num_correct: c, those that pass.
    k: the number of draws, at most n.

  Raises:
    ValueError: k is more than n, or c is.
  """
  if not 0 <= num_correct <= num_samples or not 0 < k <= num_samples:
    raise ValueError(
      f'pass@{k} of {num_correct} right ones in {num_samples} samples'
    )
  wrong = math.comb(num_samples - num_correct, k)
  return 1.0 - wrong / math.comb(num_samples, k)


def wilson(successes: float, trials: int) -> tuple[float, float]:
  """95 % Wilson score interval of a share (Wilson 1927)."""
  share, z2 = successes / trials, _Z * _Z
  centre = share + z2 / (2 * trials)
  half = _Z * math.sqrt(
    share * (1 - share) / trials + z2 / (4 * trials * trials)
  )
  scale = 1 + z2 / trials
  return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def bootstrap(per_task: np.ndarray, seed: int = 0) -> tuple[float, float]:
  """95 % percentile interval of a mean, tasks drawn with replacement.

  Args:
    per_task: one estimate per task, float [tasks].
    seed: the seed of the draws.
  """
  rng = np.random.default_rng(seed)
  per_task = np.asarray(per_task, np.float64)
  drawn = rng.integers(len(per_task), size=(_RESAMPLES, len(per_task)))
  means = per_task[drawn].mean(axis=1)
  low, high = np.percentile(means, [2.5, 97.5])
  return float(low), float(high)


def summarize(
  outcomes: dict[str, list[bool]], ks: tuple[int, ...] = (1, 10, 100)
) -> dict[str, dict]:
  """Returns pass@k with an interval for every k that all tasks can serve.

  Args:
    outcomes: task id -> whether each of its samples passed.
    ks: only those up to the smallest number of samples are computed.

  Returns:
    'pass@k' -> {'value', 'low', 'high', 'interval', 'tasks', 'samples'}. The
    interval is Wilson's with one sample per task, else a bootstrap over tasks.
  """
  counts = [len(passed) for passed in outcomes.values()]
  found = {}
  for k in ks:
    if k > min(counts):
      continue
    values = np.array(
      [pass_at_k(len(passed), sum(passed), k) for passed in outcomes.values()]
    )
    single = max(counts) == 1
    low, high = (
      wilson(int(values.sum()), len(values)) if single else bootstrap(values)
    )
    found[f'pass@{k}'] = {
      'value': float(values.mean()),
      'low': low,
      'high': high,
      'interval': 'Wilson' if single else 'bootstrap over tasks',
      'tasks': len(values),
      'samples': sum(counts),
    }
  return found
