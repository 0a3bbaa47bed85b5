"""The same selection by DuckDB, for score tables beyond memory.

DuckDB sorts, ranks and joins on disk where memory ends. Every number that
decides what is kept is computed by the same operations on float64 and 64-bit
integers as in `columns.py`, `strata.py` and `budget.py`, so the rows are those
of `select.select`, one by one. Means in the report may differ in the last bits,
since they are summed in another order.
"""

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping

import numpy as np

from qaq_jax.selection import budget as budget_lib
from qaq_jax.selection import columns as columns_lib
from qaq_jax.selection import strata
from qaq_jax.selection.options import SelectOptions, StrataOptions
from qaq_jax.selection.rules import rule as rule_lib
from qaq_jax.selection.select import Selection
from qaq_jax.selection.sql import expressions, ranks
from qaq_jax.selection.sql import report as report_lib

# Rule -> its score in SQL, over the columns of the table `ranked`.
_SCORES = {
  'diff_high': 'diff',
  'diff_low': 'diff',
  'sum_high': 'total',
  'sum_low': 'total',
  'rmi_top': 'rank_strong',
  'rmi_window': 'rank_strong',
  'drop_low': 'rank_strong',
  'random': '0.0',
  'all': '0.0',
}
RULES = tuple(_SCORES)
_ROLES = columns_lib.ROLES


def select(
  tables: str | os.PathLike | Mapping[str, str],
  *,
  rule: str = SelectOptions.rule,
  budget=None,
  seed: int = 0,
  roles: Mapping[str, str] | None = None,
  num_strata: int = StrataOptions.num_strata,
  by: str = StrataOptions.by,
  include_truncated: bool = SelectOptions.include_truncated,
  memory_gb: float = SelectOptions.memory_gb,
  threads: int = 2,
  temporary: str | os.PathLike,
  **options,
) -> Selection:
  """Applies a rule to a score table on disk; see `select.select`.

  Args:
    tables: a Parquet file or glob with the score columns of all models, or
      model -> glob of its parts, `WORKDIR/scores/<m>/part-*.parquet`.
    rule: one of RULES.
    budget: as there.
    seed: as there.
    roles: role -> model; None: models of these names.
    num_strata: K.
    by: whose PPL(Q) makes the strata.
    include_truncated: whether `truncated` rows are eligible.
    memory_gb: that DuckDB may use before it goes to disk.
    threads: that it may use.
    temporary: folder for what does not fit, of this selection alone: what one
      that was killed has left there is removed. Must have room for about 170
      bytes per row.
    **options: the rule's own.

  Returns:
    A Selection: the rows that are kept are held, 8 bytes each.

  Raises:
    ValueError: a rule that is not expressed in SQL, or as `select.select`.
    RuntimeError: DuckDB could not read a table or write its files.
    ModuleNotFoundError: duckdb is not installed; says how to get it.
  """
  made = rule_lib.get_rule(rule)
  if rule not in _SCORES:
    raise ValueError(
      f'select.engine=duckdb has no rule {rule!r}; it has '
      f'{", ".join(RULES)}: use select.engine=memory'
    )
  if by not in strata.BY:
    raise ValueError(f'strata.by is {by!r}; it is one of {strata.BY}.')
  amount = budget_lib.Budget.of(budget)
  default = not amount.given()
  amount = made.budget if default else amount
  if amount.threshold is not None and not made.threshold:
    raise ValueError(
      f'The rule {rule!r} has no score to compare with '
      f'select.budget.threshold={amount.threshold:g}: set share, rows or '
      'tokens.'
    )
  budget_lib.check_seed(seed)
  with _connect(memory_gb, threads, temporary) as connection:
    run = _Run(connection, tables, roles, num_strata, by, include_truncated)
    return run.select(
      made, rule_lib.resolve_options(made, options), amount, default, int(seed)
    )


@contextlib.contextmanager
def _connect(memory_gb, threads, temporary) -> Iterator:
  try:
    import duckdb
  except ModuleNotFoundError as e:
    raise ModuleNotFoundError(
      "select.engine=duckdb needs duckdb: pip install '.[duckdb]'"
    ) from e
  folder = os.path.join(temporary, 'selection')
  shutil.rmtree(folder, ignore_errors=True)
  os.makedirs(folder)
  try:
    with duckdb.connect(
      os.path.join(folder, 'tables.duckdb'),
      config={
        'memory_limit': f'{memory_gb}GB',
        'threads': threads,
        'temp_directory': folder,
        'preserve_insertion_order': False,
      },
    ) as connection:
      yield connection
  except duckdb.Error as e:
    raise RuntimeError(f'select.engine=duckdb: {e}') from e
  finally:
    shutil.rmtree(folder, ignore_errors=True)


class _Run:
  """One selection: a connection with the table `scored`, then `ranked`."""

  def __init__(
    self, connection, tables, roles, num_strata, by, include_truncated
  ):
    self._connection, self._tables = connection, tables
    self._roles = dict(roles) if roles is not None else None
    self._num_strata, self._by = int(num_strata), by
    self._truncated = bool(include_truncated)

  def _one(self, query):
    return self._connection.execute(query).fetchone()

  def select(self, rule, options, budget, default, seed) -> Selection:
    self._roles = ranks.view(
      self._connection, self._tables, self._roles, self._truncated
    )
    needed = {'rank_strong': ('strong',), '0.0': ()}.get(
      _SCORES[rule.name], _ROLES
    )
    for role in needed:
      if role not in self._roles:
        raise columns_lib.MissingColumn(
          f'This needs a {role} model: set `--config.roles.{role}=NAME`.'
        )
    models = [self._roles[r] for r in needed] or list(
      dict.fromkeys(self._roles.values())
    )
    # A rule without ranks is shown by the first model's strata all the same.
    ranked = needed or tuple(self._roles)[:1]
    ranks.rank(
      self._connection,
      self._roles,
      needed or tuple(self._roles),
      ranked,
      self._num_strata,
      self._by,
    )
    self._candidates(rule, options, seed)
    eligible, candidates = self._one(
      'SELECT count(*), count(*) FILTER (candidate) FROM ranked WHERE eligible'
    )
    limit = budget.limit(eligible)
    stream = {
      'rmi_window': budget_lib.WINDOW,
      'drop_low': budget_lib.DROP_LOW,
      'random': budget_lib.RANDOM,
      'all': budget_lib.RANDOM,
    }.get(rule.name, budget_lib.TIES)
    cut = self._cut(rule, budget, limit, seed, stream)
    rows = (
      self._connection.execute('SELECT row FROM chosen ORDER BY row')
      .fetchnumpy()['row']
      .astype(np.int64)
    )
    report = report_lib.build(
      self._connection,
      report_lib.Facts(
        rule=rule,
        options=options,
        budget=budget,
        budget_is_default=default,
        seed=seed,
        stream=stream,
        roles=self._roles,
        models=tuple(models),
        num_strata=self._num_strata,
        by=self._by,
        include_truncated=self._truncated,
        limit=limit,
        eligible=eligible,
        candidates=candidates,
        cut=cut,
        kept=len(rows),
        dropped=self._dropped,
        score=self._score,
        ranked=ranked[0] if ranked else None,
      ),
    )
    report['rows_sha256'] = hashlib.sha256(rows.astype('<i8')).hexdigest()
    return Selection(rows, report)

  def _candidates(self, rule, options, seed):
    """Adds `score` and `candidate`; keeps what was dropped and why."""
    score = _SCORES[rule.name]
    self._score = score
    self._dropped = {}
    tests = []
    if rule.name == 'rmi_window':
      lo, hi = float(options['lo']), float(options['hi'])
      if not 0 <= lo < hi <= 1:
        raise ValueError(
          f'select.lo={lo} and select.hi={hi}: a window has 0 <= lo < hi <= 1.'
        )
      tests = [(f'r_s < {lo:g}', f'{score} < {expressions.number(lo)}')]
      over = f'{score} >= {expressions.number(hi)}' if hi < 1 else 'false'
      tests.append((f'r_s >= {hi:g}', over))
    self._connection.execute('ALTER TABLE ranked ADD COLUMN candidate BOOLEAN')
    self._connection.execute(f"""
      UPDATE ranked SET candidate = eligible AND {score} IS NOT NULL""")
    if rule.name == 'drop_low':
      self._drop_low(float(options['drop']), seed)
    for reason, test in tests:
      number = self._one(
        f'SELECT count(*) FROM ranked WHERE candidate AND {test}'
      )[0]
      self._dropped[reason] = number
      self._connection.execute(
        f'UPDATE ranked SET candidate = false WHERE candidate AND {test}'
      )
    missing = self._one(
      f'SELECT count(*) FROM ranked WHERE eligible AND {score} IS NULL'
    )[0]
    self._dropped['no value'] = missing
    self._dropped = {k: n for k, n in self._dropped.items() if n}

  def _drop_low(self, drop, seed):
    if not 0 <= drop < 1:
      raise ValueError(f'select.drop is {drop}; it is a share in [0, 1).')
    eligible, ranked = self._one(
      'SELECT count(*), count(*) FILTER (candidate) FROM ranked WHERE eligible'
    )
    number = int(np.floor(drop * eligible + 1e-9))
    self._take(
      'kept_high', self._score, max(0, ranked - number), seed, budget_lib.TIES
    )
    self._dropped[f'among the lowest {drop:.0%} of r_s'] = (
      ranked - self._one('SELECT count(*) FROM kept_high')[0]
    )
    self._connection.execute("""
      UPDATE ranked SET candidate = false
      WHERE candidate AND row NOT IN (SELECT row FROM kept_high)""")

  # The cut.

  def _take(self, name, order, limit, seed, stream):
    """Makes table `name`: the best candidates by (order, hash, row)."""
    count = self._one('SELECT count(*) FROM ranked WHERE candidate')[0]
    if limit is None or limit >= count:
      self._connection.execute(
        f'CREATE TABLE {name} AS SELECT row FROM ranked WHERE candidate'
      )
      return
    if limit == 0:
      self._connection.execute(
        f'CREATE TABLE {name} AS SELECT row FROM ranked LIMIT 0'
      )
      return
    line = self._one(
      f'SELECT {order} AS value FROM ranked WHERE candidate '
      f'ORDER BY value DESC LIMIT 1 OFFSET {limit - 1}'
    )[0]
    line = expressions.number(line)
    above = self._one(
      f'SELECT count(*) FROM ranked WHERE candidate AND {order} > {line}'
    )[0]
    self._connection.execute(f"""
      CREATE TABLE {name} AS
      SELECT row FROM ranked WHERE candidate AND {order} > {line}
      UNION ALL SELECT row FROM (
        SELECT row FROM ranked WHERE candidate AND {order} = {line}
        ORDER BY {expressions.row_hash(seed, stream)}, row
        LIMIT {limit - above})""")

  def _cut(self, rule, budget, limit, seed, stream):
    """Makes the table `chosen`; returns the score of the line, and ties."""
    sign = '' if rule.highest else '-'
    order = f'{sign}({self._score})'
    if stream not in (budget_lib.TIES, budget_lib.RANDOM):
      order = '0.0'
    if budget.threshold is not None:
      line = expressions.number(
        rule_lib.rank_grid_threshold(rule, budget.threshold)
      )
      beyond = '>' if rule.highest else '<'
      self._connection.execute(
        f'UPDATE ranked SET candidate = false WHERE candidate AND NOT '
        f'({self._score} {beyond} {line})'
      )
    if budget.tokens is None:
      self._take('chosen', order, limit, seed, stream)
    else:
      self._take_tokens(order, int(budget.tokens), seed, stream)
    last, tied, tied_kept = self._one(f"""
      WITH kept AS (
        SELECT {order} AS value FROM ranked JOIN chosen USING (row)),
      line AS (SELECT min(value) AS value FROM kept)
      SELECT (SELECT value FROM line),
        (SELECT count(*) FROM ranked
         WHERE candidate AND {order} = (SELECT value FROM line)),
        (SELECT count(*) FROM kept
         WHERE value = (SELECT value FROM line))""")
    return last, tied, tied_kept

  def _take_tokens(self, order, most, seed, stream):
    role = 'strong' if 'strong' in self._roles else next(iter(self._roles))
    tokens = f'n_q_{role} + n_a_{role}'
    unknown = self._one(
      f'SELECT min(row) FROM ranked WHERE candidate AND {tokens} IS NULL'
    )[0]
    if unknown is not None:
      raise ValueError(
        f'select.budget.tokens: row {unknown} has no token count (n_q or n_a '
        f'of model {self._roles[role]!r} is null): set share or rows.'
      )
    self._connection.execute(f"""
      CREATE TABLE chosen AS SELECT row FROM (
        SELECT row, sum({tokens}) OVER (
          ORDER BY {order} DESC, {expressions.row_hash(seed, stream)}, row
          ROWS UNBOUNDED PRECEDING) AS spent
        FROM ranked WHERE candidate) WHERE spent <= {most}""")
