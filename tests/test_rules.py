"""Each selection rule against its definition."""

import ast
import json
import math
import pathlib
import re
import sqlite3

import hypothesis
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from hypothesis import strategies as st
from selection_tables import from_ranks, make_table, reorder

from qaq_jax.selection import budget as budget_lib
from qaq_jax.selection.columns import MissingColumn, ScoreColumns
from qaq_jax.selection.rules import eligible, external, neighbours
from qaq_jax.selection.rules import rule as rule_lib
from qaq_jax.selection.select import select

ROOT = pathlib.Path(__file__).parent.parent

SPEC_RULES = {
  'rmi_top',
  'rmi_window',
  'diff_high',
  'diff_low',
  'sum_high',
  'sum_low',
  'drop_low',
  'random',
  'length_long',
  'length_matched',
  'ppl_window',
  'ifd',
  'ifd_cherry',
  'ifd_superfilter',
  'r_ifd',
  'rds_plus',
  'scar',
  'all',
}


def test_every_rule_of_the_specification_is_registered():
  assert set(rule_lib.RULES) >= SPEC_RULES
  text = rule_lib.describe_rules()
  for rule in rule_lib.RULES.values():
    assert rule.name in text
    assert rule.source
  assert max(map(len, text.splitlines())) <= 100


@pytest.mark.parametrize(
  'options, words',
  [
    ({'engine': ('memory', '')}, "'engine'.*field of config.select that holds"),
    ({'budget': (0.5, '')}, "'budget'.*field of config.select that holds"),
    ({'lo': (1, '')}, "'lo'.*'misfit' is of type int.*type float"),
    ({'least': (None, '')}, "'least'.*no default: give its type"),
  ],
)
def test_options_that_a_config_cannot_hold_are_refused(options, words):
  add = rule_lib.register(
    'misfit',
    keeps='-',
    source='ours',
    score='-',
    models=eligible.played('strong'),
    options=options,
  )
  with pytest.raises(ValueError, match=words):
    add(lambda columns, options, context: None)
  assert 'misfit' not in rule_lib.RULES


# Names of rules that are words of other things too: columns, data, kinds.
SHARED_WORDS = {
  'all',
  'random',
  'ifd',
  'r_ifd',
  'ifd_cherry',
  'ifd_superfilter',
}


def test_only_its_record_names_a_rule():
  """Defaults apart, nothing goes by a rule's name."""
  own = re.compile(rf'\b({"|".join(sorted(SPEC_RULES - SHARED_WORDS))})\b')
  package = ROOT / 'qaq_jax'
  found = []
  for path in sorted(package.rglob('*.py')):
    name = path.relative_to(package).as_posix()
    if name.startswith('selection/rules/') or (
      path.name in ('config.py', 'options.py')
    ):
      continue
    text = path.read_text()
    found += [(name, match.group()) for match in own.finditer(text)]
    for node in ast.walk(ast.parse(text)):
      if isinstance(node, ast.Compare | ast.Dict | ast.keyword):
        words = {
          part.value
          for part in ast.walk(node)
          if isinstance(part, ast.Constant)
        }
        if words & SHARED_WORDS and re.search(
          r'\brules?\b|\bname\b', ast.unparse(node)
        ):
          found.append((name, ast.unparse(node)))
  assert not found


def test_a_wrong_name_is_told_with_the_nearest_and_all():
  with pytest.raises(ValueError) as told:
    select(make_table(5), rule='rmi_windw')
  assert str(told.value).startswith("select.rule is 'rmi_windw'; the rules are")
  assert str(told.value).endswith("Did you mean 'rmi_window'?")
  assert all(name in str(told.value) for name in SPEC_RULES)
  with pytest.raises(ValueError, match=r'scar\.$'):  # nothing is near
    rule_lib.get_rule('best')
  with pytest.raises(ValueError, match="select.reference is 'diff_hi'.*_high'"):
    select(make_table(5), rule='length_matched', reference='diff_hi')


@pytest.mark.parametrize(
  'name, stream, words',
  [
    ('scar', budget_lib.TIES, 'already, in .*external.*one in .*test_rules'),
    ('toss', 2, "'toss' and 'all' both draw by stream 2"),
  ],
)
def test_two_rules_of_one_name_or_stream_are_refused(name, stream, words):
  rules = dict(rule_lib.RULES)
  with pytest.raises(ValueError, match=words):

    @rule_lib.register(
      name,
      keeps='-',
      source='-',
      score='-',
      models=eligible.present_roles,
      stream=stream,
    )
    def toss(columns, options, context):
      raise AssertionError

  assert rules == rule_lib.RULES


# The method's rules.


def test_window_of_100_rows_keeps_25_and_none_of_the_top_25():
  rmi = np.random.default_rng(0).permutation(100)
  table = from_ranks({'strong': rmi, 'weak': rmi})
  kept = select(table, rule='rmi_window', num_strata=1).rows
  assert len(kept) == 25
  assert set(rmi[kept]) == set(range(50, 75))
  same = select(table, rule='rmi_window', num_strata=1, budget={'share': 0.25})
  np.testing.assert_array_equal(same.rows, kept)


def test_a_window_up_to_one_includes_one():
  table = from_ranks({'strong': np.arange(5)}, models=('strong',))
  kept = select(table, rule='rmi_window', num_strata=1, lo=0.75, hi=1.0).rows
  assert list(kept) == [3, 4]
  kept = select(table, rule='rmi_window', num_strata=1, lo=0.5, hi=0.75).rows
  assert list(kept) == [2]


def test_a_window_that_runs_short_says_so_and_does_not_fill_up():
  table = from_ranks({'strong': np.arange(100)}, models=('strong',))
  result = select(
    table,
    rule='rmi_window',
    num_strata=1,
    lo=0.9,
    budget={'share': 0.25},
    hi=1.0,
  )
  assert len(result.rows) == 10
  assert result.report['ran_short']
  assert any('Ran short' in note for note in result.report['notes'])


def test_window_options_are_checked():
  table = make_table(10)
  with pytest.raises(ValueError, match='0 <= lo < hi <= 1'):
    select(table, rule='rmi_window', lo=0.8, hi=0.2)


@pytest.mark.parametrize(
  'rule, options, words',
  [
    ('drop_low', {'drop': 1.0}, 'select.drop is 1.0; it is a share'),
    ('drop_low', {'drop': -0.1}, 'select.drop is -0.1'),
    ('length_matched', {'reference': 'length_matched'}, 'cannot match itself'),
    ('ppl_window', {'of': 'a'}, "select.of is 'a'; it is 'a_given_q' or 'q'"),
  ],
)
def test_options_that_cannot_be_are_refused(rule, options, words):
  with pytest.raises(ValueError, match=words):
    select(make_table(10), rule=rule, **options)


@hypothesis.given(
  st.integers(0, 10**6),
  st.integers(1, 12),
  st.floats(0.05, 1.0),
  st.sampled_from([0.0, 0.2]),
)
@hypothesis.settings(max_examples=40, deadline=None)
def test_swapping_the_models_swaps_high_and_low(
  seed, num_strata, share, not_ok
):
  table = make_table(80, seed=seed, not_ok=not_ok)
  here = {'strong': 'strong', 'weak': 'weak'}
  swapped = {'strong': 'weak', 'weak': 'strong'}
  for rule, other in (
    ('diff_high', 'diff_low'),
    ('diff_low', 'diff_high'),
    ('sum_high', 'sum_high'),
    ('sum_low', 'sum_low'),
  ):
    a = select(
      table,
      rule=rule,
      roles=here,
      num_strata=num_strata,
      budget={'share': share},
    )
    b = select(
      table,
      rule=other,
      roles=swapped,
      num_strata=num_strata,
      budget={'share': share},
    )
    np.testing.assert_array_equal(a.rows, b.rows)


def test_high_and_low_are_the_ends():
  table = make_table(200, not_ok=0.0)
  columns = ScoreColumns(table)
  for name, score in (('diff', columns.diff()), ('sum', columns.sum())):
    high = select(table, rule=f'{name}_high', budget={'rows': 50}).rows
    low = select(table, rule=f'{name}_low', budget={'rows': 50}).rows
    others = np.setdiff1d(table['row'], high)
    assert score[high].min() >= score[others].max()
    others = np.setdiff1d(table['row'], low)
    assert score[low].max() <= score[others].min()


def test_identical_models_under_a_threshold_select_nothing_and_say_so():
  rmi = np.random.default_rng(0).normal(size=40)
  table = from_ranks({'strong': rmi, 'weak': rmi})
  for rule in ('diff_high', 'diff_low'):
    result = select(table, rule=rule, budget={'threshold': 0.0})
    assert len(result.rows) == 0
    assert any('same model twice' in note for note in result.report['notes'])


def test_drop_low_keeps_all_but_the_lowest_quarter():
  rmi = np.random.default_rng(0).permutation(40)
  table = from_ranks({'strong': rmi}, models=('strong',))
  result = select(table, rule='drop_low', num_strata=1)
  assert set(rmi[result.rows]) == set(range(10, 40))
  few = select(table, rule='drop_low', num_strata=1, budget={'share': 0.25})
  assert len(few.rows) == 10
  assert set(few.rows) < set(result.rows)
  top = select(table, rule='rmi_top', num_strata=1, budget={'share': 0.25})
  assert set(few.rows) != set(top.rows)  # drawn, not the best


def test_drop_low_counts_rows_without_a_score_as_eligible():
  table = from_ranks({'strong': np.arange(8.0)}, models=('strong',))
  table['nll_q_given_a_strong'][3] = np.nan
  result = select(table, rule='drop_low', num_strata=1)
  assert result.report['counts']['eligible'] == 8
  assert result.report['dropped'] == {
    'among the lowest 25% of r_s': 2,
    'no value': 1,
  }
  assert list(result.rows) == [2, 4, 5, 6, 7]


# Budgets and ties.


@hypothesis.given(
  st.integers(0, 10**6), st.integers(0, 70), st.integers(0, 2**32 - 1)
)
@hypothesis.settings(max_examples=40, deadline=None)
def test_row_budgets_are_exact(seed, rows, hash_seed):
  table = make_table(60, seed=seed)
  for rule in ('diff_high', 'random', 'rmi_top', 'length_matched'):
    result = select(table, rule=rule, budget={'rows': rows}, seed=hash_seed)
    eligible = result.report['counts']['eligible']
    assert len(result.rows) == min(rows, eligible)
    assert result.report['ran_short'] == (rows > eligible)


@pytest.mark.parametrize(
  'share, total, expected',
  [
    (0.25, 100, 25),
    (0.29, 100, 29),
    (0.25, 10, 2),
    (1.0, 7, 7),
    (0.1, 5, 0),
  ],
)
def test_shares_are_of_the_eligible_rows_rounded_down(share, total, expected):
  table = from_ranks({'strong': np.arange(total + 3)}, models=('strong',))
  table['status_strong'][:3] = 'empty'
  table['status_strong'] = table['status_strong'].astype(object)
  table['status_strong'][:3] = 'too_long'
  result = select(table, rule='rmi_top', budget={'share': share})
  assert result.report['counts']['eligible'] == total
  assert len(result.rows) == expected


def test_a_share_is_of_all_eligible_rows_before_the_rules_own_filter():
  table = from_ranks({'strong': np.arange(100)}, models=('strong',))
  table['nll_a_given_q_strong'] = np.linspace(1.0, 4.0, 100)
  result = select(table, rule='ifd', budget={'share': 0.5})
  assert result.report['target_rows'] == 50
  assert len(result.rows) == 34  # ratio <= 1 only
  assert result.report['ran_short']
  assert result.report['dropped'] == {'ratio > 1': 66}


@hypothesis.given(st.integers(0, 10**6), st.integers(0, 30_000))
@hypothesis.settings(max_examples=40, deadline=None)
def test_token_budgets_take_the_longest_prefix_that_fits(seed, tokens):
  table = make_table(60, seed=seed)
  result = select(table, rule='diff_high', budget={'tokens': tokens})
  columns = ScoreColumns(table)
  score = columns.diff()
  used = columns.usable_under(['strong', 'weak'])
  hashes = budget_lib.row_hash(table['row'], 0)
  order = [i for i in np.lexsort((hashes, -score)) if used[i]]
  count = table['n_q_strong'] + table['n_a_strong']
  expected = []
  for i in order:
    if count[expected].sum() + count[i] > tokens:
      break
    expected.append(i)
  assert list(result.rows) == sorted(expected)


def test_a_token_budget_may_be_spent_to_the_last_token():
  table = from_ranks({'strong': np.arange(9), 'weak': np.zeros(9)})
  for tokens, kept in ((5, [7, 8]), (6, [6, 7, 8]), (7, [6, 7, 8])):
    budget = {'tokens': tokens}  # a row has two
    result = select(table, rule='diff_high', num_strata=1, budget=budget)
    assert list(result.rows) == kept


def test_a_threshold_is_not_included():
  ranks = np.arange(11)
  table = from_ranks({'strong': ranks, 'weak': np.zeros(11)})
  # r_w is 0.5 everywhere, r_s is 0, 0.1, ..., 1; r_s - r_w = 0.1 for row 6.
  result = select(
    table, rule='diff_high', num_strata=1, budget={'threshold': 0.1}
  )
  assert list(result.rows) == [7, 8, 9, 10]
  result = select(
    table, rule='diff_low', num_strata=1, budget={'threshold': -0.1}
  )
  assert list(result.rows) == [0, 1, 2, 3]


@pytest.mark.parametrize(
  'budget, message',
  [
    ({'share': 0.2, 'rows': 3}, 'share and rows: set one'),
    ({'share': 0}, 'budget.share is 0'),
    ({'share': 1.5}, 'budget.share is 1.5'),
    ({'rows': -1}, 'budget.rows is -1'),
    ({'rows': 2.5}, 'budget.rows is 2.5'),
    ({'threshold': float('nan')}, 'must be finite'),
    ({'percent': 3}, "has \\['percent'\\]"),
    (0.25, 'write a mapping'),
  ],
)
def test_bad_budgets_are_refused(budget, message):
  with pytest.raises(ValueError, match=message):
    select(make_table(5), budget=budget)


def test_a_threshold_needs_a_score():
  for rule in ('random', 'all', 'rmi_window', 'length_matched'):
    with pytest.raises(ValueError, match='no score to compare'):
      select(make_table(5), rule=rule, budget={'threshold': 1})


HASHES_SEED_0 = [
  76703879,
  3750347907,
  738536722,
  1752001566,
  3283920312,
  2230037608,
]
HASHES_SEED_42 = [2398037214, 2390466957, 1143613005]


def test_the_hash_has_fixed_values():
  assert list(budget_lib.row_hash([0, 1, 2, 10**6, 2**32, 2**40 + 5], 0)) == (
    HASHES_SEED_0
  )
  assert list(budget_lib.row_hash([0, 1, 2], 42, 2)) == HASHES_SEED_42


def test_the_hash_is_one_to_one_and_even():
  rows = np.arange(200_000)
  for seed in (0, 1, 2**32 - 1):
    hashes = budget_lib.row_hash(rows, seed)
    assert hashes.max() < 2**32
    assert len(np.unique(hashes)) == len(rows)
    counts = np.bincount((hashes >> np.uint64(26)).astype(int), minlength=64)
    assert np.abs(counts - len(rows) / 64).max() < 5 * np.sqrt(len(rows) / 64)


def test_the_hash_has_avalanche():
  """Each bit of the row flips about half of the bits of the hash."""
  rows = np.random.default_rng(0).integers(0, 2**31, 4000)
  base = budget_lib.row_hash(rows, 7)
  for bit in range(31):
    flipped = base ^ budget_lib.row_hash(rows ^ (1 << bit), 7)
    mean = np.unpackbits(flipped.view(np.uint8)).sum() / len(rows)
    assert 15 < mean < 17


def test_a_seed_out_of_range_is_refused():
  with pytest.raises(ValueError, match='select.seed is -1'):
    select(make_table(5), rule='random', seed=-1)


def test_the_documented_sql_makes_the_same_choice():
  """docs/selection.md in sqlite: strata, ranks, difference, hash, cut."""
  text = (ROOT / 'docs' / 'selection.md').read_text(encoding='utf-8')
  (query,) = re.findall(r'```sql\n(.*?)```', text, re.DOTALL)
  rng = np.random.default_rng(5)
  n = 3003
  table = {'row': np.arange(n) * 3_000_017}  # beyond 32 bits
  for model in ('strong', 'weak'):
    status = np.where(rng.random(n) < 0.9, 'ok', 'too_long')
    table[f'status_{model}'] = status
    for name in ('nll_q', 'nll_q_given_a'):  # whole numbers: many ties
      values = rng.integers(1, 4, n).astype(np.float64)
      table[f'{name}_{model}'] = np.where(status == 'ok', values, np.nan)
    count = rng.integers(1, 3, n)
    for name in ('n_q', 'n_q_given_a', 'n_a'):
      table[f'{name}_{model}'] = count
  # Cut through the middle of the largest group of ties.
  gap = ScoreColumns(table).diff()
  values, counts = np.unique(gap[np.isfinite(gap)], return_counts=True)
  place = counts.argmax()
  rows = counts[place + 1 :].sum() + counts[place] // 2
  result = select(table, rule='diff_high', seed=11, budget={'rows': int(rows)})
  assert result.report['cut']['tied'] > result.report['cut']['tied_kept'] > 3

  with sqlite3.connect(':memory:') as db:
    db.create_function('floor', 1, math.floor)
    names = [name for name in table if not name.startswith('n_a')]
    kinds = {'status': 'text', 'nll': 'real'}
    db.execute(
      'create table scores ('
      + ', '.join(
        f'{name} {kinds.get(name.split("_")[0], "integer")}' for name in names
      )
      + ')'
    )
    db.executemany(
      f'insert into scores values ({", ".join("?" * len(names))})',
      zip(*(table[name].tolist() for name in names), strict=True),
    )
    query = query.replace(':key', str(result.report['hash_key']))
    query = query.replace(':count', str(len(result.rows)))
    rows = db.execute(query).fetchall()
  np.testing.assert_array_equal(np.sort(np.ravel(rows)), result.rows)


def test_the_hash_in_sql():
  """The hash itself in plain integer SQL, signed 64 bits."""
  db = sqlite3.connect(':memory:')

  def mix(value):
    for step in range(3):
      x = f'({value} + ({value} >> {(16, 15, 16)[step]}) - 2 * ({value} & '
      x += f'({value} >> {(16, 15, 16)[step]})))'
      factor = (2146121005, 73244475, 1)[step]
      value = db.execute(f'select ({x} * {factor}) & 4294967295').fetchone()[0]
    return value

  for seed, stream in ((0, 1), (42, 2), (2**32 - 1, 3)):
    key = mix((mix(seed) + 2654435769 * stream) & 4294967295)
    for row in (0, 1, 12345, 2**31, 2**32 + 7, 2**45 + 3):
      low = row & 4294967295
      expected = mix(
        (mix(low + key - 2 * (low & key)) + (row >> 32)) & 4294967295
      )
      assert expected == budget_lib.row_hash([row], seed, stream)[0]


@hypothesis.given(
  st.integers(0, 10**6),
  st.sampled_from(
    [
      'diff_high',
      'sum_low',
      'rmi_window',
      'drop_low',
      'random',
      'ifd',
      'length_long',
      'length_matched',
      'ppl_window',
      'r_ifd',
    ]
  ),
)
@hypothesis.settings(max_examples=60, deadline=None)
def test_the_order_of_the_table_does_not_matter(seed, rule):
  table = make_table(70, seed=seed)
  table['n_a_strong'] = table['n_a_strong'] // 100 + 1  # ties
  order = np.random.default_rng(seed).permutation(70)
  a = select(table, rule=rule, budget={'share': 0.3}, seed=seed)
  b = select(reorder(table, order), rule=rule, budget={'share': 0.3}, seed=seed)
  np.testing.assert_array_equal(a.rows, b.rows)
  assert a.report['rows_sha256'] == b.report['rows_sha256']


# The baselines.


def test_random_is_uniform_nested_and_seeded():
  table = make_table(400, not_ok=0.0)
  quarter = select(table, rule='random', seed=3).rows
  half = select(table, rule='random', seed=3, budget={'share': 0.5}).rows
  assert set(quarter) < set(half)
  assert set(quarter) != set(select(table, rule='random', seed=4).rows)
  hits = np.zeros(400)
  for seed in range(200):
    hits[select(table, rule='random', seed=seed).rows] += 1
  assert abs(hits.mean() - 50) < 1e-9
  # Binomial(200, 0.25): sd 6.1; the extremes of 400 draws lie within 4.5 sd.
  assert hits.min() > 50 - 28 and hits.max() < 50 + 28


def test_length_long_keeps_the_longest_answers():
  table = make_table(100, not_ok=0.0)
  kept = select(table, rule='length_long').rows
  others = np.setdiff1d(table['row'], kept)
  assert table['n_a_strong'][kept].min() >= table['n_a_strong'][others].max()


def test_length_matched_has_the_lengths_of_the_reference():
  table = make_table(4000, seed=2)
  # Make the method prefer short answers, so that matching has work to do.
  rmi = -table['n_a_strong'] / 500.0
  table['nll_q_given_a_strong'] = table['nll_q_strong'] - (
    rmi * table['n_q_strong']
  )
  reference = select(table, rule='diff_high')
  matched = select(table, rule='length_matched', seed=1)
  random = select(table, rule='random', seed=1)
  assert len(matched.rows) == len(reference.rows)

  def deciles(rows):
    return np.quantile(table['n_a_strong'][rows], np.linspace(0.1, 0.9, 9))

  goal = deciles(reference.rows)
  assert np.abs(deciles(matched.rows) - goal).max() < 16  # one of 50 bins
  assert np.abs(deciles(random.rows) - goal).max() > 60
  assert len(np.intersect1d(matched.rows, reference.rows)) < 0.7 * len(
    reference.rows
  )


def test_length_matched_does_not_repeat_the_random_draw():
  table = make_table(4000, not_ok=0.0)
  a = select(table, rule='random').rows
  b = select(table, rule='length_matched').rows
  assert len(np.intersect1d(a, b)) < 0.4 * len(a)


@pytest.mark.parametrize('of', ['a_given_q', 'q'])
def test_ppl_window_keeps_the_middle(of):
  table = make_table(101, not_ok=0.0)
  kept = select(table, rule='ppl_window', of=of, budget={'rows': 25}).rows
  columns = ScoreColumns(table)
  log_ppl = (
    columns.log_ppl_q('strong')
    if of == 'q'
    else (columns.log_ppl_a_given_q('strong'))
  )
  assert set(np.argsort(log_ppl)[38:63]) == set(kept)


def test_ifd_drops_ratios_above_one_and_keeps_the_highest():
  table = from_ranks({'strong': np.zeros(6)}, models=('strong',))
  table['nll_a_given_q_strong'] = np.array([1.0, 2.0, 2.002, 0.5, 1.5, np.nan])
  result = select(table, rule='ifd', budget={'rows': 2})
  assert list(result.rows) == [1, 4]
  assert result.report['dropped'] == {'ratio > 1': 1, 'no value': 1}


def test_the_published_forms_differ_at_one():
  table = make_table(4, not_ok=0.0)
  ratio = np.array([1.0, 0.9, 1.1, np.nan])
  table['ifd_cherry_strong'] = table['ifd_superfilter_strong'] = ratio
  cherry = select(table, rule='ifd_cherry', budget={'share': 1.0})
  assert list(cherry.rows) == [0, 1]  # 1 is kept
  superfilter = select(table, rule='ifd_superfilter', budget={'share': 1.0})
  assert list(superfilter.rows) == [1]  # below 1 only
  assert superfilter.report['counts']['eligible'] == 4


def test_superfilter_from_a_third_model_and_its_raw_sums():
  table = make_table(6, not_ok=0.0, models=('strong', 'weak', 'gpt2'))
  table['nll_a_superfilter_cond_gpt2'] = np.array([1.0, 2, 3, 4, 5, 6])
  table['n_a_superfilter_cond_gpt2'] = np.full(6, 2)
  table['nll_a_superfilter_alone_gpt2'] = np.full(6, 4.0)
  table['n_a_superfilter_alone_gpt2'] = np.full(6, 2)
  result = select(table, rule='ifd_superfilter', budget={'rows': 2})
  assert list(result.rows) == [1, 2]  # exp(-0.5) = 0.61 and exp(-1) = 0.37
  assert result.report['eligible_under'] == ['gpt2']
  assert result.report['score']['kept_high'] == pytest.approx(np.exp(-0.5))


def test_missing_columns_say_how_to_get_them():
  table = make_table(5)
  with pytest.raises(MissingColumn, match='config.score.ifd_cherry=True'):
    select(table, rule='ifd_cherry')
  with pytest.raises(MissingColumn, match='config.score.ifd_superfilter=True'):
    select(table, rule='ifd_superfilter')
  with pytest.raises(MissingColumn, match='config.score.embeddings=True'):
    select(table, rule='rds_plus')
  with pytest.raises(MissingColumn, match='scar-tool'):
    select(table, rule='scar')
  with pytest.raises(MissingColumn, match='config.roles.weak'):
    select(make_table(5, models=('strong',)), rule='diff_high')
  with pytest.raises(MissingColumn, match="'status_gpt2'.*strong, weak"):
    select(table, rule='ifd', model='gpt2')
  del table['nll_a_strong']
  with pytest.raises(MissingColumn, match="'nll_a_strong'"):
    select(table, rule='ifd')


def test_r_ifd_is_the_global_order_of_rmi():
  table = make_table(100)
  a = select(table, rule='r_ifd').rows
  b = select(table, rule='rmi_top', num_strata=1, budget={'share': 0.25}).rows
  np.testing.assert_array_equal(a, b)


def test_r_ifd_threshold_is_on_the_ratio():
  table = make_table(100, not_ok=0.0)
  kept = select(table, rule='r_ifd', budget={'threshold': 0.8}).rows
  r_ifd = np.exp(-ScoreColumns(table).rmi('strong'))
  np.testing.assert_array_equal(kept, np.flatnonzero(r_ifd < 0.8))


# RDS+.


def _take_turns_plainly(embeddings, targets, candidate, rows, count, seed):
  unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
  goal = targets / np.linalg.norm(targets, axis=1, keepdims=True)
  hashes = budget_lib.row_hash(rows, seed)
  unused, picks = set(np.flatnonzero(candidate)), []
  while unused and len(picks) < count:
    cosine = unit @ goal[len(picks) % len(goal)]
    best = min(unused, key=lambda i: (-cosine[i], hashes[i], rows[i]))
    picks.append(best)
    unused.remove(best)
  return picks


@pytest.mark.parametrize('list_bytes', [1, 400, 2**20])
@pytest.mark.parametrize('count', [0, 7, 40, 99])
def test_rds_plus_takes_turns(list_bytes, count):
  """Whatever the memory for lists, the choice is that of the full matrix."""
  rng = np.random.default_rng(count)
  # Samples along the axes: a cosine is one entry of the target, to the bit,
  # so that ties are exact and common.
  embeddings = np.zeros((60, 4), np.float16)
  embeddings[np.arange(60), rng.integers(0, 4, 60)] = rng.choice([-2, 3], 60)
  targets = rng.integers(-1, 2, (7, 4)).astype(np.float16)
  targets[:, 1] = 1
  targets[3] = targets[2]
  candidate = rng.random(60) < 0.9
  rows = np.arange(60)
  picks, cosine = neighbours.take_turns(
    embeddings,
    targets,
    candidate,
    rows,
    count=count,
    seed=9,
    block_rows=13,
    list_bytes=list_bytes,
  )
  assert len(picks) == min(count, candidate.sum())
  unit, _ = neighbours._unit(embeddings)
  goal, _ = neighbours._unit(targets)
  np.testing.assert_allclose(
    cosine, [unit[p] @ goal[i % 7] for i, p in enumerate(picks)], atol=1e-6
  )
  expected = _take_turns_plainly(
    embeddings.astype(np.float64),
    targets.astype(np.float64),
    candidate,
    rows,
    count,
    9,
  )
  np.testing.assert_array_equal(picks, expected)


def test_rds_plus_on_untied_embeddings_equals_the_full_matrix(tmp_path):
  rng = np.random.default_rng(0)
  table = make_table(120)
  embeddings = rng.normal(size=(120, 8)).astype(np.float16)
  embeddings[5] = 0
  targets = rng.normal(size=(3, 8)).astype(np.float16)
  np.save(tmp_path / 'embeddings.npy', embeddings)
  result = select(
    table,
    rule='rds_plus',
    embeddings=tmp_path / 'embeddings.npy',
    targets=targets,
    budget={'rows': 30},
  )
  candidate = (table['status_strong'] == 'ok') & (np.arange(120) != 5)
  with np.errstate(invalid='ignore'):
    expected = _take_turns_plainly(
      embeddings.astype(np.float64),
      targets.astype(np.float64),
      candidate,
      table['row'],
      30,
      0,
    )
  assert list(result.rows) == sorted(expected)
  assert result.report['options']['targets'] == 'array (3, 8)'
  json.dumps(result.report)


def test_rds_plus_equal_cosines_go_by_the_hash():
  embeddings = np.ones((50, 3), np.float16)
  rows = np.arange(50)
  picks, _ = neighbours.take_turns(
    embeddings,
    embeddings[:2],
    np.ones(50, bool),
    rows,
    count=20,
    seed=4,
    block_rows=7,
    list_bytes=60,
  )
  expected = np.argsort(budget_lib.row_hash(rows, 4))[:20]
  np.testing.assert_array_equal(picks, expected)


def test_rds_plus_refuses_what_does_not_fit():
  table = make_table(10)
  with pytest.raises(ValueError, match='9 embeddings for 10 rows'):
    select(
      table,
      rule='rds_plus',
      embeddings=np.ones((9, 2)),
      targets=np.ones((1, 2)),
    )
  with pytest.raises(FileNotFoundError, match='config.score.embeddings=True'):
    select(table, rule='rds_plus', embeddings='no.npy', targets=np.ones((1, 2)))
  with pytest.raises(ValueError, match='2 dimensions, targets 3'):
    select(
      table,
      rule='rds_plus',
      embeddings=np.ones((10, 2)),
      targets=np.ones((1, 3)),
    )
  with pytest.raises(ValueError, match='target 0 has no finite'):
    select(
      table,
      rule='rds_plus',
      embeddings=np.ones((10, 2)),
      targets=np.zeros((1, 2)),
    )


@pytest.mark.parametrize(
  'name, text, warns',
  [
    ('HumanEval.jsonl', '{}', True),
    ('targets.jsonl', '{"task_id": "Mbpp/3", "test_list": []}', True),
    ('targets.jsonl', '{"instruction": "Sort a list", "output": "ok"}', False),
  ],
)
def test_targets_that_look_like_an_evaluation_are_warned_about(
  tmp_path, name, text, warns
):
  path = tmp_path / name
  path.write_text(text)
  result = select(
    make_table(10),
    rule='rds_plus',
    embeddings=np.ones((10, 2)),
    targets=np.ones((1, 2)),
    targets_path=path,
  )
  assert any('WARNING' in note for note in result.report['notes']) == warns


# SCAR.


@pytest.mark.parametrize('ending', ['parquet', 'csv', 'jsonl'])
@pytest.mark.parametrize('key', ['row', 'id'])
def test_scar_scores_come_from_a_file(tmp_path, ending, key):
  table = make_table(8, not_ok=0.0)
  table['id'] = np.array([f'n{i}' for i in range(8)])
  scores = {
    key: [3, 5, 1] if key == 'row' else ['n3', 'n5', 'n1'],
    'quality': [0.5, 2.5, 1.5],
  }
  path = str(tmp_path / f'scores.{ending}')
  if ending == 'parquet':
    pq.write_table(pa.table(scores), path)
  elif ending == 'csv':
    pyarrow.csv.write_csv(pa.table(scores), path)
  else:
    with open(path, 'w') as file:
      for line in pa.table(scores).to_pylist():
        file.write(json.dumps(line) + '\n')
  result = select(
    table, rule='scar', path=path, column='quality', budget={'share': 0.25}
  )
  assert list(result.rows) == [1, 5]
  assert result.report['dropped'] == {'no value': 5}
  table = reorder(table, np.arange(8)[::-1])
  result = select(
    table, rule='scar', path=path, column='quality', budget={'share': 0.25}
  )
  assert list(result.rows) == [1, 5]


def test_scar_from_a_column_or_the_records():
  table = make_table(4, not_ok=0.0)
  table['scar'] = np.array([0.1, 0.4, np.nan, 0.3])
  assert list(select(table, rule='scar', budget={'rows': 2}).rows) == [1, 3]

  class Record:
    def __init__(self, row, raw):
      self.row, self.raw = row, raw

  records = [
    Record(0, '{"s": 1}'),
    Record(1, '{"s": null}'),
    Record(2, 'bad'),
    Record(3, '{"s": 2.5}'),
  ]
  scores = external.scores_of_samples(records, 4, 's')
  np.testing.assert_array_equal(scores, [1, np.nan, np.nan, 2.5])
  kept = select(table, rule='scar', scores=scores, budget={'rows': 1}).rows
  assert list(kept) == [3]
  with pytest.raises(ValueError, match=r'shape .3,.; the score table has 4'):
    select(table, rule='scar', scores=scores[:3])
  with pytest.raises(ValueError, match="Row 1: field 's' is 'x'"):
    external.scores_of_samples([Record(1, '{"s": "x"}')], 4, 's')
  with pytest.raises(ValueError, match="No row of the input has a field 't'"):
    external.scores_of_samples(records, 4, 't')


def test_scar_files_that_do_not_fit_are_refused(tmp_path):
  table = make_table(4)
  path = str(tmp_path / 'scores.csv')

  def write(text):
    with open(path, 'w') as file:
      file.write(text)

  write('row,scar\n1,2\n1,3\n')
  with pytest.raises(ValueError, match='row 1 stands 2 times'):
    select(table, rule='scar', path=path)
  write('row,points\n1,2\n')
  with pytest.raises(ValueError, match="no column 'scar'.*row, points"):
    select(table, rule='scar', path=path)
  write('row,scar\n77,2\n')
  with pytest.raises(ValueError, match='not one row of it'):
    select(table, rule='scar', path=path)
  write('number,scar\n1,2\n')
  with pytest.raises(ValueError, match="select.key is 'number'; it is 'row'"):
    select(table, rule='scar', path=path, key='number')
  table['id'] = np.array(['a', 'a', 'b', 'c'])
  write('id,scar\na,2\n')
  with pytest.raises(ValueError, match='1 rows of the score table share an id'):
    select(table, rule='scar', path=path)
  with pytest.raises(ValueError, match='not .*txt'):
    select(table, rule='scar', path='scores.txt')
