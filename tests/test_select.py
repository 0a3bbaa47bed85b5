"""From score table to chosen rows, report and printed text."""

import json

import hypothesis
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.stats
from hypothesis import strategies as st
from selection_tables import from_ranks, make_table, reorder

from qaq_jax.selection import analyses
from qaq_jax.selection.columns import MissingColumn, ScoreColumns
from qaq_jax.selection.rules import rule as rule_lib
from qaq_jax.selection.select import select
from qaq_jax.selection.summary import format_selection

RULES = [
  'diff_high',
  'diff_low',
  'sum_high',
  'sum_low',
  'rmi_top',
  'rmi_window',
  'drop_low',
  'random',
  'all',
  'length_long',
  'length_matched',
  'ppl_window',
  'ifd',
  'r_ifd',
]


@hypothesis.given(st.integers(0, 10**6), st.sampled_from(RULES))
@hypothesis.settings(max_examples=80, deadline=None)
def test_only_rows_with_status_and_score_are_chosen(seed, rule):
  table = make_table(60, seed=seed, not_ok=0.4)
  result = select(table, rule=rule, budget={'share': 1.0})
  for model in result.report['eligible_under']:
    assert (table[f'status_{model}'][result.rows] == 'ok').all()
  assert (np.diff(result.rows) > 0).all()
  assert result.report['counts']['kept'] == len(result.rows)


@pytest.mark.parametrize('rule', RULES)
def test_the_report_adds_up_and_is_json(rule):
  table = make_table(500, seed=3)
  report = select(table, rule=rule).report
  assert json.loads(json.dumps(report, allow_nan=False)) == report
  counts = report['counts']
  assert counts['rows'] == 500
  assert counts['candidates'] == counts['eligible'] - sum(
    report['dropped'].values()
  )
  for key in ('eligible', 'kept'):
    assert sum(s[key] for s in report['per_stratum']) == counts[key]
  for model in report['eligible_under']:
    assert sum(report['status'][model].values()) == 500


@pytest.mark.parametrize('rule', RULES)
def test_the_printed_text_is_narrow_and_says_what_was_kept(rule):
  result = select(make_table(5000, seed=3), rule=rule)
  text = format_selection(result.report)
  assert max(map(len, text.splitlines())) <= 100
  assert f'Rule {rule}: keeps' in text
  assert f'Kept {len(result.rows):,} rows' in text
  assert 'Strata by PPL(Q) under strong' in text


def test_the_report_of_a_small_table_by_hand():
  table = from_ranks({'strong': [3, 1, 2, 0], 'weak': [0, 1, 2, 3]})
  report = select(
    table, rule='diff_high', num_strata=1, budget={'rows': 2}, seed=5
  ).report
  assert report['cut'] == {'score': 0.0, 'tied': 2, 'tied_kept': 1}
  assert report['score']['kept_high'] == 1.0
  assert report['target_rows'] == 2
  assert not report['ran_short']
  assert report['tokens'] == {'model': 'strong', 'eligible': 8, 'kept': 4}
  (stratum,) = report['per_stratum']
  assert stratum['eligible'] == 4
  assert stratum['kept'] == 2
  assert stratum['mean_answer_tokens'] == 1.0
  assert any('2 rows tie at the cut' in note for note in report['notes'])


def test_truncated_rows_are_eligible_only_if_the_config_says_so():
  table = from_ranks({'strong': np.arange(8.0)}, models=('strong',))
  table['status_strong'] = np.array(['ok'] * 6 + ['truncated'] * 2)
  without = select(table, rule='rmi_top', budget={'rows': 2}, num_strata=1)
  assert without.report['counts']['eligible'] == 6
  assert list(without.rows) == [4, 5]
  included = select(
    table,
    rule='rmi_top',
    budget={'rows': 2},
    num_strata=1,
    include_truncated=True,
  )
  assert included.report['counts']['eligible'] == 8
  assert list(included.rows) == [6, 7]


def test_eligible_means_ok_under_every_model_that_the_rule_needs():
  table = from_ranks({'strong': np.arange(4.0), 'weak': np.arange(4.0)})
  table['status_strong'] = np.array(['ok', 'empty', 'ok', 'ok'])
  table['status_weak'] = np.array(['ok', 'ok', 'non_finite', 'ok'])
  for rule, expected in (
    ('rmi_top', [0, 2, 3]),
    ('diff_high', [0, 3]),
    ('random', [0, 3]),
    ('length_long', [0, 3]),
  ):
    result = select(table, rule=rule, budget={'share': 1.0})
    assert list(result.rows) == expected, rule


def test_nothing_eligible_is_said_and_no_crash():
  table = make_table(6)
  table['status_strong'] = np.full(6, 'too_long')
  for rule in RULES:
    result = select(table, rule=rule)
    assert len(result.rows) == 0
    assert 'No row is eligible' in format_selection(result.report)
    json.dumps(result.report, allow_nan=False)


def test_an_empty_table_is_no_crash():
  for rule in RULES:
    result = select(make_table(0), rule=rule)
    assert result.rows.shape == (0,)
    format_selection(result.report)


@pytest.mark.parametrize('rule', ['diff_high', 'ifd', 'random'])
def test_table_mapping_and_parquet_are_the_same(rule, tmp_path):
  columns = make_table(300)
  table = pa.table(columns)
  # Nulls instead of NaN, and dictionary-encoded status, as a store may do.
  for name in ('nll_q_strong', 'n_q_strong', 'nll_a_strong'):
    bad = np.asarray(columns['status_strong']) != 'ok'
    index = table.column_names.index(name)
    array = pa.array(columns[name], mask=bad)
    table = table.set_column(index, name, array)
  index = table.column_names.index('status_strong')
  table = table.set_column(
    index, 'status_strong', table['status_strong'].dictionary_encode()
  )
  path = tmp_path / 'scores.parquet'
  pq.write_table(table, path, row_group_size=64)
  results = [select(source, rule=rule) for source in (columns, table, path)]
  for result in results[1:]:
    assert result.report == results[0].report
    np.testing.assert_array_equal(result.rows, results[0].rows)


def test_runs_are_the_same_twice_and_differ_by_seed():
  table = from_ranks({'strong': np.zeros(100), 'weak': np.zeros(100)})
  a, b, c = (select(table, seed=seed).rows for seed in (1, 1, 2))
  np.testing.assert_array_equal(a, b)
  assert set(a) != set(c)


def test_wrong_names_are_refused_with_the_right_ones():
  table = make_table(5)
  with pytest.raises(ValueError, match="'diff_hi'; the rules are .*diff_high"):
    select(table, rule='diff_hi')
  with pytest.raises(ValueError, match='select.lo is no option.*none'):
    select(table, rule='diff_high', lo=0.1)
  with pytest.raises(ValueError, match="Unknown role 'teacher'"):
    select(table, roles={'teacher': 'strong'})
  with pytest.raises(MissingColumn, match="roles.weak is 'tiny'.*strong, weak"):
    select(table, roles={'strong': 'strong', 'weak': 'tiny'})
  with pytest.raises(MissingColumn, match="'row'"):
    select({'status_strong': ['ok']})
  table['row'] = np.array([0, 1, 1, 2, 3])
  with pytest.raises(ValueError, match='Row 1 stands 2 times'):
    select(table)
  table['row'] = pa.array([0, 1, None, 2, 3])
  with pytest.raises(ValueError, match="Column 'row' of the .* has nulls"):
    select(table)


def test_unset_options_are_ignored():
  table = make_table(50)
  a = select(table, rule='diff_high', lo=None, targets=None)
  np.testing.assert_array_equal(a.rows, select(table).rows)


def test_token_budgets_need_token_counts():
  table = make_table(20)
  table['n_a_strong'] = np.full(20, np.nan)
  with pytest.raises(ValueError, match='row 0 has no token count|no token'):
    select(table, budget={'tokens': 1000})


def test_models_may_have_any_name():
  table = make_table(100, models=('big_coder', 'small'))
  roles = {'strong': 'big_coder', 'weak': 'small'}
  named = select(table, roles=roles)
  plain = select(make_table(100))
  np.testing.assert_array_equal(named.rows, plain.rows)
  assert named.report['roles'] == roles


# Analyses.


@hypothesis.given(
  st.lists(
    st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=2, max_size=40
  )
)
@hypothesis.settings(max_examples=60, deadline=None)
def test_spearman_is_scipys(pairs):
  x, y = np.array(pairs, float).T
  ours = analyses.spearman(np.append(x, np.nan), np.append(y, 1.0))
  if len(set(x)) == 1 or len(set(y)) == 1:
    assert ours is None
  else:
    expected = scipy.stats.spearmanr(x, y).statistic
    assert ours == pytest.approx(expected, abs=1e-12)


def test_spearman_of_rmi_and_ifd():
  columns = ScoreColumns(make_table(300))
  value = analyses.rmi_ifd_spearman(columns, 'strong')
  rmi, ifd = columns.rmi('strong'), columns.ifd('strong')
  used = np.isfinite(rmi)
  assert value == pytest.approx(
    scipy.stats.spearmanr(rmi[used], ifd[used]).statistic
  )


def test_overlap_of_rules():
  rows = {'a': [1, 2, 3, 4], 'b': [3, 4, 5], 'none': []}
  first = analyses.overlap(rows, of='first')
  np.testing.assert_allclose(first[:2, :2], [[1, 0.5], [2 / 3, 1]])
  assert np.isnan(first[2]).all()
  union = analyses.overlap(rows)
  np.testing.assert_allclose(union[:2, :2], [[1, 0.4], [0.4, 1]])


def test_all_rules_with_columns_are_run():
  columns = ScoreColumns(make_table(50))
  found, left_out = analyses.select_all(columns, budget={'rows': 5}, seed=2)
  assert set(found) | set(left_out) == set(rule_lib.RULES) - {'all'}
  assert list(found) == [
    name for name in rule_lib.RULES if name in RULES and name != 'all'
  ]
  for name, selection in found.items():
    alone = select(columns, rule=name, budget={'rows': 5}, seed=2)
    np.testing.assert_array_equal(selection.rows, alone.rows)
  found, left_out = analyses.select_all(columns, budget={'threshold': 0.2})
  assert 'diff_high' in found and 'random' in left_out
  with pytest.raises(ValueError, match='threshold'):
    analyses.select_all(columns, ['random'], budget={'threshold': 0.2})


def test_spearman_of_two_tables_matches_rows():
  table = make_table(200)
  order = np.random.default_rng(0).permutation(200)[:150]
  before, after = ScoreColumns(table), ScoreColumns(reorder(table, order))
  value = analyses.rmi_spearman_between(before, after, 'strong')
  assert value == pytest.approx(1.0)


def test_correlations_pair_each_rmi_with_scores_and_with_other_models():
  models = ('strong', 'weak', 'finetuned')
  columns = ScoreColumns(make_table(300, models=models))
  found = {
    (c['model'], c['score'], c['other']): c['spearman']
    for c in analyses.correlations(columns)
  }
  assert len(found) == 3 * 3 + 3
  both = np.isfinite(columns.rmi('strong')) & np.isfinite(
    columns.rmi('finetuned')
  )
  assert found['strong', 'RMI', 'finetuned'] == pytest.approx(
    scipy.stats.spearmanr(
      columns.rmi('strong')[both], columns.rmi('finetuned')[both]
    ).statistic
  )
  assert found['weak', 'IFD', 'weak'] == pytest.approx(
    analyses.rmi_ifd_spearman(columns, 'weak')
  )


def test_overlap_as_text_has_a_line_per_rule():
  rows = {'a': [1, 2, 3, 4], 'none': []}
  text = analyses.format_overlap(
    list(rows), analyses.overlap(rows, of='first')
  ).splitlines()
  assert [line.split() for line in text] == [
    ['a', 'none'],
    ['a', '100%', '0%'],
    ['none', '-', '-'],
  ]
