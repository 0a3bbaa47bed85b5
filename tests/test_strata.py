"""Strata of equal count and ranks inside them."""

import hypothesis
import numpy as np
import pyarrow as pa
import pytest
import scipy.stats
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from selection_tables import make_table, reorder

from qaq_jax.selection import derived as derived_lib
from qaq_jax.selection import strata
from qaq_jax.selection.columns import ScoreColumns

# Few distinct values, so that ties are common; and NaN.
VALUES = hnp.arrays(
  np.float64,
  st.integers(0, 60),
  elements=st.sampled_from([-2.0, -0.5, 0.0, 0.25, 1.0, 3.5, np.nan]),
)


@hypothesis.given(VALUES, st.integers(1, 12))
@hypothesis.settings(max_examples=150, deadline=None)
def test_strata_are_of_equal_count_and_in_order(log_ppl, num_strata):
  row = np.arange(len(log_ppl))
  stratum = strata.assign_strata(log_ppl, row, num_strata)
  used = np.isfinite(log_ppl)
  assert (stratum[~used] == -1).all()
  sizes = np.bincount(stratum[used], minlength=num_strata)
  assert len(sizes) == num_strata
  assert sizes.max() - sizes.min() <= 1
  order = np.lexsort((row[used], log_ppl[used]))
  assert (np.diff(stratum[used][order]) >= 0).all()


@hypothesis.given(VALUES, st.integers(1, 5), st.randoms())
@hypothesis.settings(max_examples=100, deadline=None)
def test_strata_are_keyed_by_row(log_ppl, num_strata, random):
  row = np.arange(len(log_ppl)) * 7
  order = list(range(len(log_ppl)))
  random.shuffle(order)
  order = np.array(order, int)
  plain = strata.assign_strata(log_ppl, row, num_strata)
  shuffled = strata.assign_strata(log_ppl[order], row[order], num_strata)
  np.testing.assert_array_equal(plain[order], shuffled)


@hypothesis.given(VALUES, st.integers(1, 4), st.integers(0, 2**32 - 1))
@hypothesis.settings(max_examples=150, deadline=None)
def test_ranks_are_scipys_average_ranks(score, num_strata, seed):
  stratum = np.random.default_rng(seed).integers(-1, num_strata, len(score))
  rank = strata.rank_in_strata(score, stratum)
  expected = np.full(len(score), np.nan)
  for k in range(num_strata):
    index = np.flatnonzero((stratum == k) & np.isfinite(score))
    if len(index) == 1:
      expected[index] = 0.5
    elif len(index):
      average = scipy.stats.rankdata(score[index], method='average')
      expected[index] = (average - 1) / (len(index) - 1)
  np.testing.assert_array_equal(rank, expected)


@hypothesis.given(
  st.lists(st.integers(-50, 50), min_size=1, max_size=80),
  st.lists(st.integers(-1000, 1000), min_size=4, max_size=4),
)
@hypothesis.settings(max_examples=100, deadline=None)
def test_a_constant_added_inside_a_stratum_changes_no_rank(scores, shifts):
  score = np.array(scores) / 8.0
  stratum = np.arange(len(score)) % 4
  moved = score + np.array(shifts)[stratum]
  np.testing.assert_array_equal(
    strata.rank_in_strata(score, stratum), strata.rank_in_strata(moved, stratum)
  )


def test_one_stratum_is_the_global_ranking():
  table = make_table(500, not_ok=0.0)
  columns = ScoreColumns(table, num_strata=1)
  rmi = columns.rmi('strong')
  expected = (scipy.stats.rankdata(rmi) - 1) / (len(rmi) - 1)
  np.testing.assert_array_equal(columns.rank('strong'), expected)
  assert (columns.stratum('strong') == 0).all()


def test_more_strata_than_rows_gives_strata_of_one():
  log_ppl = np.array([3.0, 1.0, 2.0])
  stratum = strata.assign_strata(log_ppl, np.arange(3), 10)
  assert sorted(np.unique(stratum, return_counts=True)[1]) == [1, 1, 1]
  rank = strata.rank_in_strata(np.array([9.0, 8.0, 7.0]), stratum)
  np.testing.assert_array_equal(rank, [0.5, 0.5, 0.5])


def test_many_strata_do_not_overflow_the_small_integers():
  n = 80_000
  log_ppl = np.arange(n)[::-1] * 1.0
  stratum = strata.assign_strata(log_ppl, np.arange(n), n // 2)
  np.testing.assert_array_equal(stratum, np.arange(n)[::-1] // 2)
  rank = strata.rank_in_strata(np.arange(n) * 1.0, stratum)
  np.testing.assert_array_equal(rank, np.arange(n) % 2)


def test_rows_that_do_not_count_are_not_ranked():
  """A truncated row has numbers; they must not move the others' ranks."""
  table = make_table(60, not_ok=0.0)
  few = {name: values[:40] for name, values in table.items()}
  table['status_strong'] = np.where(np.arange(60) < 40, 'ok', 'truncated')
  rank = ScoreColumns(table).rank('strong')
  np.testing.assert_array_equal(rank[:40], ScoreColumns(few).rank('strong'))
  assert np.isnan(rank[40:]).all()
  included = ScoreColumns(table, include_truncated=True).rank('strong')
  assert np.isfinite(included).all()


def test_no_strata_is_an_error():
  with pytest.raises(ValueError, match='num_strata is 0'):
    strata.assign_strata(np.zeros(3), np.arange(3), 0)


@hypothesis.given(st.fractions(-2, 2, max_denominator=1000))
def test_the_grid_is_symmetric_and_close(fraction):
  value = float(fraction)
  assert strata.to_grid(-value) == -strata.to_grid(value)
  assert abs(strata.to_grid(value) - value) <= 2.0**-41


def test_the_grid_makes_equal_differences_equal():
  ranks = np.arange(10) / 9
  steps = np.diff(ranks)
  assert len(np.unique(steps)) > 1  # rounding noise, before the grid
  assert len(np.unique(strata.to_grid(steps))) == 1


@pytest.mark.parametrize('by', ['own', 'strong', 'weak'])
def test_whose_perplexity_makes_the_strata(by):
  table = make_table(300)
  columns = ScoreColumns(table, num_strata=4, by=by)
  for model in ('strong', 'weak'):
    stratum = columns.stratum(model)
    whose = model if by == 'own' else by
    used = columns.usable(model) & columns.usable(whose)
    np.testing.assert_array_equal(stratum >= 0, used)
    log_ppl = columns.log_ppl_q(whose)
    for k in range(3):
      assert log_ppl[stratum == k].max() <= log_ppl[stratum == k + 1].min()


def test_an_unknown_by_is_refused():
  with pytest.raises(ValueError, match="strata.by is 'both'"):
    ScoreColumns(make_table(3), by='both')


def test_derived_columns_have_nulls_and_no_sentinels():
  table = pa.table(make_table(200))
  derived = derived_lib.derive(table, ['strong', 'weak'])
  assert list(derived) == [
    'rmi_strong',
    'ifd_strong',
    'r_ifd_strong',
    'stratum_strong',
    'rank_strong',
    'rmi_weak',
    'ifd_weak',
    'r_ifd_weak',
    'stratum_weak',
    'rank_weak',
    'diff',
    'sum',
  ]
  ok = {
    model: np.array(table[f'status_{model}']) == 'ok'
    for model in ('strong', 'weak')
  }
  for name, values in derived.items():
    expected = ok.get(name.split('_')[-1], ok['strong'] & ok['weak'])
    np.testing.assert_array_equal(np.array(values.is_valid()), expected, name)
  rank_s, rank_w, diff, total = (
    derived[name].to_numpy(zero_copy_only=False)
    for name in ('rank_strong', 'rank_weak', 'diff', 'sum')
  )
  np.testing.assert_allclose(diff, rank_s - rank_w, rtol=0, atol=1e-12)
  np.testing.assert_allclose(total, rank_s + rank_w, rtol=0, atol=1e-12)


def test_derived_columns_follow_their_rows():
  table = make_table(120)
  order = np.random.default_rng(1).permutation(120)
  plain = derived_lib.derive(table, ['strong', 'weak'])
  shuffled = derived_lib.derive(reorder(table, order), ['strong', 'weak'])
  for name in plain:
    assert plain[name].take(pa.array(order)).equals(shuffled[name]), name


def test_one_model_alone_has_no_difference():
  derived = derived_lib.derive(make_table(10, models=('solo',)), ['solo'])
  assert 'rank_solo' in derived
  assert 'diff' not in derived


def test_author_compatible_tables_have_null_ifd():
  table = make_table(20)
  for name in ('nll_a', 'nll_a_given_q', 'n_a'):
    table[f'{name}_strong'] = np.full(20, np.nan)
  derived = derived_lib.derive(table, ['strong', 'weak'])
  assert derived['ifd_strong'].null_count == 20
  assert derived['rmi_strong'].null_count < 20


def test_ten_million_rows_would_take_seconds():
  """A tenth of it here, so that a quadratic slip cannot hide."""
  import time

  rng = np.random.default_rng(0)
  n = 1_000_000
  log_ppl, score = rng.random(n), rng.random(n)
  start = time.process_time()
  stratum = strata.assign_strata(log_ppl, np.arange(n), 10)
  rank = strata.rank_in_strata(score, stratum)
  assert time.process_time() - start < 5
  assert np.isfinite(rank).all()
