"""The same selection by DuckDB, for score tables beyond memory.

DuckDB sorts, ranks and joins on disk where memory ends. Every number that
decides what is kept is computed by the same operations on float64 and 64-bit
integers as in `columns.py`, `strata.py` and `budget.py`, so the rows are those
of `select.select`, one by one. Means in the report may differ in the last bits,
since they are summed in another order.
"""

import contextlib
import os
import shutil
import types
from collections.abc import Iterator, Mapping

import numpy as np

from qaq_jax.selection import budget as budget_lib
from qaq_jax.selection import request, summary
from qaq_jax.selection.facts import Facts
from qaq_jax.selection.options import SelectOptions, StrataOptions
from qaq_jax.selection.roles import Roles
from qaq_jax.selection.rules import rule as rule_lib
from qaq_jax.selection.select import Selection
from qaq_jax.selection.sql import expressions, facts, ranks


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
    rule: one that has SQL.
    budget: see `select.select`.
    seed: see `select.select`.
    roles: role -> model; None: models of these names.
    num_strata: K.
    by: whose PPL(Q) makes the strata.
    include_truncated: whether `truncated` rows are eligible.
    memory_gb: the memory that DuckDB may use before it goes to disk.
    threads: the threads that it may use.
    temporary: folder for what does not fit, of this selection alone: what one
      that was killed has left there is removed. Must have room for about 170
      bytes per row.
    **options: the rule's own.

  Returns:
    A Selection: the rows that are kept are held, 8 bytes each.

  Raises:
    ValueError: a rule without SQL, or as `select.select`.
    RuntimeError: DuckDB could not read a table or write its files.
    ModuleNotFoundError: duckdb is not installed; says how to get it.
  """
  asked = request.Request.of(rule, budget, seed, options)
  sql = sql_of(asked.rule)
  StrataOptions(num_strata, by)
  with _connect(memory_gb, threads, temporary) as connection:
    table, names = ranks.join(connection, tables)
    cast = Roles(names, roles)
    models = asked.rule.models(cast, asked.options)
    counted = () if asked.budget.tokens is None else (cast.token_model(),)
    # The tables' columns go by role; a model that has none gets a number.
    players = dict(cast.roles)
    for i, model in enumerate((*models, *counted)):
      if model not in cast.roles.values():
        players[f'm{i}'] = model
    role_of = {model: role for role, model in reversed(players.items())}
    under = [role_of[model] for model in models]
    # The report shows the first model's strata, whatever the rule goes by.
    shown = under[:1] if by == 'own' or by in cast.roles else []
    needed = tuple(dict.fromkeys((*sql.ranks, *shown)))
    for role in (*sql.ranks, *((by,) if needed and by != 'own' else ())):
      cast.model(role)  # told if nobody plays it
    ranks.view(connection, table, players, include_truncated)
    ranks.rank(connection, players, under, needed, int(num_strata), by)
    ranked = Ranked(connection, sql.score, asked.seed)
    dropped = ranked.drop(sql, asked.options)
    eligible, candidates = ranked.counts()
    candidate_scores = ranked.one(
      f'SELECT min({ranked.score}), max({ranked.score}) FROM ranked '
      'WHERE candidate'
    )
    cut = _cut(ranked, asked, sql, eligible, counted, role_of)
    rows = connection.execute('SELECT row FROM chosen ORDER BY row')
    rows = rows.fetchnumpy()['row'].astype(np.int64)
    measured = Facts(
      roles=cast.roles,
      num_strata=int(num_strata),
      by=by,
      include_truncated=bool(include_truncated),
      models=tuple(models),
      eligible=eligible,
      candidates=candidates,
      candidate_scores=candidate_scores,
      dropped=dropped,
      cut=None if sql.order else cut,
      engine='duckdb',
      **facts.measure(ranked, models, under, shown),
    )
  return Selection(rows, summary.build(asked, measured, rows))


def sql_of(rule: rule_lib.Rule) -> rule_lib.Sql:
  """The rule in SQL.

  Raises:
    ValueError: it has none; names the engine that has the rule.
  """
  if rule.sql is None:
    able = ', '.join(r.name for r in rule_lib.RULES.values() if r.sql)
    raise ValueError(
      f'select.engine=duckdb has no rule {rule.name!r}; it has {able}: use '
      'select.engine=memory'
    )
  return rule.sql


def load() -> types.ModuleType:
  """DuckDB, which is an extra.

  Raises:
    ModuleNotFoundError: it is not installed; says how to get it.
  """
  try:
    import duckdb
  except ModuleNotFoundError as e:
    raise ModuleNotFoundError(
      "select.engine=duckdb needs duckdb: pip install '.[duckdb]'"
    ) from e
  return duckdb


@contextlib.contextmanager
def _connect(memory_gb, threads, temporary) -> Iterator:
  duckdb = load()
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


class Ranked:
  """The table `ranked` of one selection: its candidates, and the best of them.

  A rule's own filter in SQL (`Sql.dropped`) may use it as the rule's function
  in memory uses `budget.take`.

  Args:
    connection: a connection of DuckDB, with the table.
    score: the rule's score in SQL.
    seed: the seed of the hash.

  Attributes:
    score: the same as a finite DOUBLE, or null.
  """

  def __init__(self, connection, score: str, seed: int):
    self._connection, self._seed = connection, seed
    score = f'({score})::DOUBLE'
    self.score = f'CASE WHEN isfinite({score}) THEN {score} END'
    connection.execute('ALTER TABLE ranked ADD COLUMN candidate BOOLEAN')
    connection.execute('UPDATE ranked SET candidate = eligible')

  def all(self, query: str) -> list[tuple]:
    """The lines of a query's result."""
    return self._connection.execute(query).fetchall()

  def one(self, query: str) -> tuple:
    """The first of them."""
    return self._connection.execute(query).fetchone()

  def counts(self) -> tuple[int, int]:
    """Eligible rows, and candidates."""
    return self.one(
      'SELECT count(*), count(*) FILTER (candidate) FROM ranked WHERE eligible'
    )

  def lose(self, condition: str) -> int:
    """Drops candidates of which it is true; returns how many those are."""
    return self.one(
      f'UPDATE ranked SET candidate = false WHERE candidate AND ({condition})'
    )[0]

  def drop(self, sql: rule_lib.Sql, options: Mapping) -> dict[str, int]:
    """Applies the rule's own filter; returns the rows lost for each reason.

    The last of them is to have no score.
    """
    tests = sql.dropped(options, self) if sql.dropped else {}
    tests = {**tests, 'no value': f'{self.score} IS NULL'}
    lost = {why: self.lose(test) for why, test in tests.items()}
    return {why: number for why, number in lost.items() if number}

  def take(
    self, name: str, order: str, limit: int | None, stream=budget_lib.TIES
  ) -> None:
    """Makes table `name`: the best candidates by (order, hash, row).

    Those whose order is null are none.

    Args:
      name: the name of the table, whose one column is `row`.
      order: expression, higher is better.
      limit: rows to take; None = all.
      stream: the stream of the hash.
    """
    source = f'SELECT row FROM ranked WHERE candidate AND {order} IS NOT NULL'
    count = self.one(f'SELECT count(*) FROM ({source})')[0]
    if limit is None or limit >= count:
      query = source
    elif limit == 0:
      query = f'{source} LIMIT 0'
    else:
      line = self.one(
        f'SELECT {order} AS value FROM ranked WHERE candidate '
        f'ORDER BY value DESC LIMIT 1 OFFSET {limit - 1}'
      )[0]
      line = expressions.number(line)
      above = self.one(f'SELECT count(*) FROM ({source} AND {order} > {line})')
      query = f"""
        {source} AND {order} > {line}
        UNION ALL SELECT row FROM (
          {source} AND {order} = {line}
          ORDER BY {expressions.row_hash(self._seed, stream)}, row
          LIMIT {limit - above[0]})"""
    self._connection.execute(f'CREATE TABLE {name} AS {query}')

  def take_tokens(
    self, name: str, order: str, tokens: str, most: int, stream: int
  ) -> None:
    """As `take`, best-first until the next row's tokens would not fit."""
    self._connection.execute(f"""
      CREATE TABLE {name} AS SELECT row FROM (
        SELECT row, sum({tokens}) OVER (
          ORDER BY {order} DESC, {expressions.row_hash(self._seed, stream)}, row
          ROWS UNBOUNDED PRECEDING) AS spent
        FROM ranked WHERE candidate) WHERE spent <= {most}""")


def _cut(ranked, asked, sql, eligible, counted, role_of):
  """Makes the table `chosen`; returns the score of the line, and ties."""
  rule, budget = asked.rule, asked.budget
  score = ranked.score
  order = sql.order or (score if rule.highest else f'-({score})')
  if budget.threshold is not None:
    line = rule_lib.threshold_of_score(rule, budget.threshold)
    beyond = '>' if rule.highest else '<'
    ranked.lose(f'NOT (({score}) {beyond} {expressions.number(line)})')
  if budget.tokens is None:
    ranked.take('chosen', order, budget.limit(eligible), rule.stream)
  else:
    (model,) = counted
    tokens = _tokens(ranked, model, role_of)
    ranked.take_tokens('chosen', order, tokens, int(budget.tokens), rule.stream)
  return ranked.one(f"""
    WITH kept AS (
      SELECT {order} AS value FROM ranked JOIN chosen USING (row)),
    line AS (SELECT min(value) AS value FROM kept)
    SELECT (SELECT value FROM line),
      (SELECT count(*) FROM ranked
       WHERE candidate AND {order} = (SELECT value FROM line)),
      (SELECT count(*) FROM kept
       WHERE value = (SELECT value FROM line))""")


def _tokens(ranked, model, role_of):
  """The tokens of a row that a budget counts, as an expression."""
  tokens = f'n_q_{role_of[model]} + n_a_{role_of[model]}'
  unknown = ranked.one(
    f'SELECT min(row) FROM ranked WHERE candidate AND {tokens} IS NULL'
  )[0]
  if unknown is not None:
    raise request.no_tokens(unknown, model)
  return tokens
