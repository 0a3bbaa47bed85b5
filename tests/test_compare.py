"""Lines, statistics and the table of a comparison, without any training."""

import numpy as np
import pytest

from qaq_jax.evaluation import comparison
from qaq_jax.evaluation.comparison import Line, Loss


def losses(rng, offset, seeds=3, rows=200, spread=0.0):
  """Losses of `seeds` models around a hardness that rows share."""
  hard_R = np.random.default_rng(9).gamma(4.0, 0.5, size=rows)
  n_R = np.random.default_rng(8).integers(10, 100, size=rows)
  noise_SR = rng.normal(0, 0.05, size=(seeds, rows))
  level_S1 = offset + spread * np.arange(seeds)[:, None]
  return Loss((hard_R + level_S1 + noise_SR) * n_R, n_R)


def test_table_becomes_lines():
  table = (('random', 'share', 0.25, 3), ('ifd', 'token_share', 0.25, 1))
  lines = comparison.parse_table(table)
  assert lines[0] == Line('random', 'share', 0.25, 3)
  assert [line.budget for line in lines] == ['25% of rows', '25% of tokens']
  assert lines[1].selection_budget(1003) == {'tokens': 250}
  assert lines[0].selection_budget(1003) == {'share': 0.25}
  assert Line('all', 'rows', 1500, 1).budget == '1,500 rows'


@pytest.mark.parametrize(
  'entry, words',
  [
    (('random', 'share', 0.25), 'rule, budget, amount, seeds'),
    (('random', 'shares', 0.25, 1), "'shares' of 'random'"),
    (('random', 'share', 0.25, 0), 'number of seeds'),
    (('random', 'share', -0.25, 1), 'positive'),
    ('random', 'rule, budget, amount, seeds'),
  ],
)
def test_a_wrong_entry_is_named(entry, words):
  with pytest.raises(ValueError, match=words):
    comparison.parse_table([entry])


def test_a_doubled_entry_is_named():
  with pytest.raises(ValueError, match='ifd.*twice'):
    comparison.parse_table(
      [('ifd', 'share', 0.25, 1), ('ifd', 'share', 0.25, 3)]
    )


def test_loss_is_per_token_and_not_per_row():
  loss = Loss(np.array([[1.0, 30.0]]), np.array([1, 10]))
  assert loss.by_seed == pytest.approx([31 / 11])


def test_interval_covers_the_mean_as_often_as_it_says():
  """Of intervals for draws of samples, about 95% hold the true mean."""
  rng = np.random.default_rng(0)
  held = 0
  for draw in range(100):
    n_R = rng.integers(10, 100, size=150)
    per_row = rng.gamma(4.0, 0.5, size=(1, 150))
    low, high = comparison.interval(Loss(per_row * n_R, n_R), seed=draw)
    held += low <= 2.0 <= high
  assert 87 <= held <= 100


def test_pairing_makes_the_interval_of_a_difference_narrow():
  rng = np.random.default_rng(0)
  better, worse = losses(rng, 0.0), losses(rng, 0.05)
  low, high = comparison.interval(better, worse)
  assert low < -0.05 < high < 0
  alone = comparison.interval(better)
  assert alone[1] - alone[0] > 5 * (high - low)


def test_seeds_that_differ_widen_the_interval():
  rng = np.random.default_rng(0)
  even, uneven = losses(rng, 0.0), losses(rng, 0.0, spread=0.2)
  base = losses(rng, 0.1)
  width = [
    np.diff(comparison.interval(loss, base))[0] for loss in (even, uneven)
  ]
  assert width[1] > 3 * width[0]


def test_table_subtracts_the_baseline_of_the_same_budget():
  rng = np.random.default_rng(0)
  lines = {
    Line('random', 'share', 0.25, 3): losses(rng, 0.1),
    Line('diff_high', 'share', 0.25, 3): losses(rng, 0.0),
    Line('random', 'token_share', 0.25, 1): losses(rng, 0.3, seeds=1),
    Line('all', 'share', 1.0, 3): losses(rng, -0.1),
  }
  scores = {'humaneval': {'value': 0.5, 'tasks': 164}}
  facts = {
    line: {'rows': 500, 'tokens': 5e4, 'steps': 96, 'scores': scores}
    for line in lines
  }
  records = comparison.summarise(lines, facts, 'random')
  assert 'minus_baseline' not in records[0]  # the baseline itself
  assert records[1]['minus_baseline'] == pytest.approx(-0.1, abs=0.01)
  assert 'minus_baseline' not in records[2]
  assert 'minus_baseline' not in records[3]  # nothing has its budget
  table = comparison.format_table(records, 'random', losses(rng, 1.0, seeds=1))
  rows = table.splitlines()
  assert len({len(row) for row in rows}) == 1
  assert 'before' in rows[2]
  # Lowest loss first within a budget.
  assert [r.split()[1] for r in rows[3:]] == [
    'diff_high',
    'random',
    'random',
    'all',
  ]
  assert '-0.1' in rows[3]
  assert rows[0].rstrip(' |').endswith('humaneval pass@1 [95%]')
  assert '50.0 [42.4, 57.6]' in rows[3]
