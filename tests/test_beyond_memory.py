"""DuckDB chooses the very rows that the selection in memory chooses."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import selection_tables
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qaq_jax.selection import budget, select
from qaq_jax.selection.columns import MissingColumn
from qaq_jax.selection.rules import eligible
from qaq_jax.selection.rules import rule as rule_lib
from qaq_jax.selection.sql import engine as engine_lib
from qaq_jax.selection.sql import expressions

RULES = [rule.name for rule in rule_lib.RULES.values() if rule.sql]
BUDGETS = (
  {'share': 0.25},
  {'rows': 37},
  {'tokens': 20_000},
  {'share': 1.0},
  {'rows': 0},
  None,
)


def write(table, path):
  """NaN as null, as the scorer writes it."""
  columns = {name: pa.array(v, from_pandas=True) for name, v in table.items()}
  pq.write_table(pa.table(columns), path)
  return path


def assert_equal(table, folder, rule, **options):
  path = write(table, folder / 'scores.parquet')
  wanted = select.select(str(path), rule=rule, **options)
  found = engine_lib.select(
    str(path), rule=rule, temporary=folder / 'tmp', **options
  )
  np.testing.assert_array_equal(found.rows, wanted.rows)
  for key, value in wanted.report.items():
    if key not in ('score', 'per_stratum', 'share_of_eligible'):
      assert found.report[key] == value, key
  for key in ('kept_low', 'kept_high', 'kept_mean', 'eligible_mean'):
    _close(found.report['score'][key], wanted.report['score'][key])
  strata = found.report['per_stratum'], wanted.report['per_stratum']
  assert len(strata[0]) == len(strata[1])
  for a, b in zip(*strata, strict=True):
    assert set(a) == set(b)
    for key in a:
      _close(a[key], b[key])
  assert not list((folder / 'tmp').iterdir())


def _close(a, b):
  assert (a is None) == (b is None)
  if a is not None:
    assert a == pytest.approx(b, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize('rule', RULES)
def test_every_rule_and_budget(rule, tmp_path):
  table = selection_tables.make_table(1000)
  for amount in BUDGETS:
    assert_equal(table, tmp_path, rule, budget=amount, seed=3)


@pytest.mark.parametrize(
  'rule, amount',
  [
    ('diff_high', {'threshold': 0.1}),
    ('diff_low', {'threshold': -0.1}),
    ('rmi_top', {'threshold': 0.9}),
    ('sum_high', {'threshold': 1.2}),
  ],
)
def test_thresholds(rule, amount, tmp_path):
  assert_equal(
    selection_tables.make_table(500, seed=1), tmp_path, rule, budget=amount
  )


@pytest.mark.parametrize('rule', ['diff_high', 'diff_low', 'sum_high'])
@pytest.mark.parametrize('twice', [False, True], ids=['apart', 'alike'])
def test_thresholds_that_nothing_passes(rule, twice, tmp_path):
  """Both say in which range the scores lie, or that all of them are 0."""
  roles = {'strong': 'strong', 'weak': 'strong'} if twice else None
  threshold = -2.0 if rule == 'diff_low' else 2.5
  if rule == 'diff_low' and twice:
    threshold = 0.0
  assert_equal(
    selection_tables.make_table(200, seed=1),
    tmp_path,
    rule,
    budget={'threshold': threshold},
    roles=roles,
  )


@pytest.mark.parametrize('amount', [{'rows': 6}, {'threshold': 20.0}])
def test_rows_without_a_score_go_for_the_first_reason_too(
  amount, tmp_path, monkeypatch
):
  """A filter over columns that the score has none of."""

  def function(columns, options, context):
    length = columns.length('strong')
    return rule_lib.Candidates(
      np.where(length >= 60, length, np.nan),
      dropped={'long': length > 100, 'short': length < 50},
    )

  monkeypatch.setitem(
    rule_lib.RULES,
    'toy',
    rule_lib.Rule(
      'toy',
      keeps='x',
      source='ours',
      score='tokens',
      function=function,
      models=eligible.played('strong'),
      sql=rule_lib.Sql(
        'CASE WHEN n_a_strong >= 60 THEN n_a_strong END',
        dropped=lambda options, engine: {
          'long': 'n_a_strong > 100',
          'short': 'n_a_strong < 50',
        },
      ),
    ),
  )
  table = selection_tables.make_table(300, seed=1)
  found = select.select(table, rule='toy', budget=amount).report['dropped']
  assert list(found) == ['long', 'short', 'no value']
  assert_equal(table, tmp_path, 'toy', budget=amount)


@pytest.mark.parametrize(
  'rule, amount',
  [
    ('diff_high', {'threshold': 0.1}),
    ('diff_low', {'threshold': -0.1}),
    ('diff_high', {'tokens': 6}),
  ],
)
def test_budgets_that_end_at_a_row(rule, amount, tmp_path):
  table = selection_tables.from_ranks(
    {'strong': np.arange(11), 'weak': np.zeros(11)}
  )
  assert_equal(table, tmp_path, rule, budget=amount, num_strata=1)


@pytest.mark.parametrize(
  'options',
  [
    {'num_strata': 1},
    {'num_strata': 7, 'by': 'strong'},
    {'by': 'weak'},
    {'num_strata': 600},
    {'roles': {'strong': 'weak', 'weak': 'strong'}},
    {'include_truncated': True},
  ],
)
def test_strata_and_roles(options, tmp_path):
  table = selection_tables.make_table(500, seed=2)
  table['status_weak'][:50] = 'truncated'
  table['nll_q_weak'][:50] = 3.0
  table['nll_q_given_a_weak'][:50] = 2.0
  assert_equal(table, tmp_path, 'diff_high', budget={'share': 0.3}, **options)


@pytest.mark.parametrize(
  'options',
  [
    {'lo': 0.2, 'hi': 1.0},
    {'lo': 0.5, 'hi': 0.6},
  ],
)
def test_windows(options, tmp_path):
  table = selection_tables.make_table(300)
  assert_equal(table, tmp_path, 'rmi_window', budget={'rows': 20}, **options)


@settings(
  max_examples=25,
  deadline=None,
  suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
  ranks=st.lists(
    st.tuples(st.integers(0, 5), st.integers(0, 5)),
    min_size=1,
    max_size=60,
  ),
  share=st.floats(0.05, 1.0),
  seed=st.integers(0, 2**32 - 1),
  rule=st.sampled_from(RULES),
  num_strata=st.integers(1, 4),
)
def test_ties(tmp_path, ranks, share, seed, rule, num_strata):
  """Few different scores: nearly everything ties, and the hash decides."""
  strong, weak = np.array(ranks).T
  table = selection_tables.from_ranks({'strong': strong, 'weak': weak})
  assert_equal(
    table,
    tmp_path,
    rule,
    budget={'share': share},
    seed=seed,
    num_strata=num_strata,
  )


@pytest.mark.parametrize('rule', ['random', 'all'])
def test_without_roles_all_models_decide_who_is_eligible(rule, tmp_path):
  table = selection_tables.make_table(200, seed=4)
  for amount in ({'share': 0.3}, {'tokens': 9000}):
    assert_equal(
      table, tmp_path, rule, budget=amount, roles={'strong': '', 'weak': ''}
    )


def test_strata_by_a_model_that_is_not_there_hide_the_strata_only(tmp_path):
  table = selection_tables.make_table(60)
  assert_equal(table, tmp_path, 'random', by='weak', roles={'strong': 'strong'})
  with pytest.raises(MissingColumn, match='needs a weak model'):
    engine_lib.select(
      str(write(table, tmp_path / 'scores.parquet')),
      rule='rmi_top',
      by='weak',
      roles={'strong': 'strong'},
      temporary=tmp_path / 'tmp',
    )


def test_rows_beyond_32_bits(tmp_path):
  table = selection_tables.from_ranks(
    {'strong': np.ones(50), 'weak': np.ones(50)}
  )
  table['row'] = np.arange(50) + 2**32 - 20
  assert_equal(table, tmp_path, 'diff_high', budget={'rows': 13}, seed=5)


def test_parts_of_each_model_need_no_joined_table(tmp_path):
  table = selection_tables.make_table(400)
  tables = {}
  for model in ('strong', 'weak'):
    (tmp_path / model).mkdir()
    own = {k: v for k, v in table.items() if k == 'row' or k.endswith(model)}
    for i, rows in enumerate((slice(0, 150), slice(150, 400))):
      write(
        {k: v[rows] for k, v in own.items()},
        tmp_path / model / f'part-{i:06d}.parquet',
      )
    tables[model] = str(tmp_path / model / 'part-*.parquet')
  found = engine_lib.select(tables, temporary=tmp_path / 'tmp')
  wanted = select.select(table)
  np.testing.assert_array_equal(found.rows, wanted.rows)


def test_little_memory_goes_to_disk(tmp_path):
  table = selection_tables.make_table(200_000)
  path = write(table, tmp_path / 'scores.parquet')
  found = engine_lib.select(
    str(path), temporary=tmp_path / 'tmp', memory_gb=0.2
  )
  np.testing.assert_array_equal(found.rows, select.select(str(path)).rows)


@pytest.mark.parametrize(
  'options, words',
  [
    ({'rule': 'ifd'}, "has no rule 'ifd'.*select.engine=memory"),
    ({'budget': {'threshold': 0.1}, 'rule': 'random'}, 'has no score'),
    ({'by': 'third'}, 'strata.by'),
    ({'num_strata': 0}, 'strata.num_strata is 0; it must be >= 1'),
    ({'roles': {'strong': 'other'}}, "no column 'status_other'"),
    ({'roles': {'strong': 'strong'}}, 'needs a weak model'),
  ],
)
def test_what_it_cannot_do_is_told(options, words, tmp_path):
  path = write(selection_tables.make_table(20), tmp_path / 'scores.parquet')
  with pytest.raises(ValueError, match=words):
    engine_lib.select(str(path), temporary=tmp_path / 'tmp', **options)


def parts_of_each_model(folder, change):
  """Globs of two models' parts; `change` edits the columns of the weak one."""
  table = selection_tables.make_table(60)
  tables = {}
  for model in ('strong', 'weak'):
    own = {k: v for k, v in table.items() if k == 'row' or k.endswith(model)}
    path = folder / f'{model}.parquet'
    write(change(own) if model == 'weak' else own, path)
    tables[model] = str(path)
  return tables


@pytest.mark.parametrize(
  'change, words',
  [
    (
      lambda c: {k: np.r_[v[:20], v[19:]] for k, v in c.items()},
      'weak.parquet: row 19 stands 2 times',
    ),
    (
      lambda c: {k: v[:50] for k, v in c.items()},
      '10 rows of .*strong.parquet, row 50 first, are not scored by model '
      "'weak'",
    ),
    (
      lambda c: c | {'row': c['row'] + 7},
      "7 rows of .*strong.parquet, row 0 first, are not scored by .*'weak'",
    ),
  ],
)
def test_rows_that_would_be_counted_twice_or_lost_are_told(
  change, words, tmp_path
):
  tables = parts_of_each_model(tmp_path, change)
  with pytest.raises(ValueError, match=words):
    engine_lib.select(tables, temporary=tmp_path / 'tmp')
  assert not list((tmp_path / 'tmp').iterdir())


def test_rows_of_one_table_that_stand_twice_are_told(tmp_path):
  table = selection_tables.make_table(30)
  table = {k: np.r_[v, v[-1:]] for k, v in table.items()}
  path = write(table, tmp_path / 'scores.parquet')
  for engine in (
    lambda: select.select(str(path)),
    lambda: engine_lib.select(str(path), temporary=tmp_path / 'tmp'),
  ):
    with pytest.raises(ValueError, match='(?i)row 29 stands 2 times'):
      engine()


def test_rows_without_a_key_and_tokens_without_a_count_are_told(tmp_path):
  table = selection_tables.make_table(30, not_ok=0.0)
  path = str(tmp_path / 'scores.parquet')

  def refused(words, **options):
    pq.write_table(pa.table(table), path)
    with pytest.raises(ValueError, match=words):
      select.select(path, **options)
    with pytest.raises(ValueError, match=words):
      engine_lib.select(path, temporary=tmp_path / 'tmp', **options)

  table['n_a_strong'] = pa.array([5] * 29 + [None], pa.int32())
  refused('(?i)row 29 has no token count', budget={'tokens': 10**9})
  table['row'] = pa.array([*range(29), None])
  refused("(?i)column 'row' .*has .*nulls")


def test_what_duckdb_cannot_read_is_told(tmp_path):
  with pytest.raises(RuntimeError, match='engine=duckdb: .*none.parquet'):
    engine_lib.select(
      str(tmp_path / 'none.parquet'), temporary=tmp_path / 'tmp'
    )


def test_what_a_killed_selection_has_left_is_removed(tmp_path):
  path = write(selection_tables.make_table(40), tmp_path / 'scores.parquet')
  left = tmp_path / 'tmp' / 'selection'
  left.mkdir(parents=True)
  (left / 'tables.duckdb').write_bytes(b'half of a database')
  (left / 'duckdb_temp_storage-0.tmp').write_bytes(b'x')
  found = engine_lib.select(str(path), temporary=tmp_path / 'tmp')
  np.testing.assert_array_equal(found.rows, select.select(str(path)).rows)
  assert not list((tmp_path / 'tmp').iterdir())


def test_hash_key_is_that_of_the_selection_in_memory():
  key = budget.hash_key(7)
  assert f', {key})' in expressions.row_hash(7, budget.TIES)
