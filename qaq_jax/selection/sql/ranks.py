"""Strata and ranks in DuckDB: `columns.py` and `strata.py` as SQL."""

import glob
import os
from collections.abc import Mapping, Sequence

from qaq_jax.scoring import table as table_lib
from qaq_jax.selection.roles import ROLES
from qaq_jax.selection.sql import expressions
from qaq_jax.workdir import files


def join(
  connection, tables: str | os.PathLike | Mapping[str, str]
) -> tuple[str, list[str]]:
  """The score table as a source to select from, and its columns' names.

  Args:
    connection: a connection of DuckDB.
    tables: see `engine.select`.

  Raises:
    ValueError: `row` is no key of a table, or the tables have other rows.
  """
  import duckdb  # of an extra

  if not isinstance(tables, Mapping):
    tables = {'': os.fspath(tables)}
  for path in tables.values():  # DuckDB checks no checksums
    table_lib.check(path)
    source = f'read_parquet({expressions.text(path)})'
    try:  # its reader of the table of contents is another one
      connection.execute(f'DESCRIBE SELECT * FROM {source}')
    except (duckdb.Error, RuntimeError) as e:
      if not glob.glob(path):
        raise  # nothing is there to be damaged
      raise files.damaged(path, e, table_lib.BACK) from e
  _check_rows(connection, tables)
  first, *others = (
    f'read_parquet({expressions.text(path)}) AS t{i}'
    for i, path in enumerate(tables.values())
  )
  joined = first + ''.join(f' JOIN {other} USING (row)' for other in others)
  lines = connection.execute(f'DESCRIBE SELECT * FROM {joined}').fetchall()
  return joined, [line[0] for line in lines]


def view(
  connection, table: str, roles: Mapping[str, str], include_truncated: bool
) -> None:
  """Makes the view `scored`: log PPL(Q), RMI, usable, tokens per role."""
  good = "('ok', 'truncated')" if include_truncated else "('ok')"
  columns = ['row']
  for role, model in roles.items():
    log_ppl = expressions.log_ppl('q', model)
    columns += [
      f'"status_{model}" AS status_{role}',
      f'"status_{model}" IN {good} AS usable_{role}',
      f'{log_ppl} AS log_ppl_{role}',
      f'{log_ppl} - {expressions.log_ppl("q_given_a", model)} AS rmi_{role}',
      f'"n_q_{model}" AS n_q_{role}',
      f'"n_a_{model}" AS n_a_{role}',
    ]
  connection.execute(
    f'CREATE VIEW scored AS SELECT {", ".join(columns)} FROM {table}'
  )


def _check_rows(connection, tables):
  """A row that stands twice or not in all would be counted twice or lost."""
  for path in tables.values():
    source = f'read_parquet({expressions.text(path)})'
    nulls = connection.execute(
      f'SELECT count(*) FROM {source} WHERE row IS NULL'
    ).fetchone()[0]
    if nulls:
      raise ValueError(f"{path}: column 'row' has {nulls} nulls.")
    # Groups go to disk where memory ends; count(DISTINCT row) would not.
    twice = connection.execute(f"""
      SELECT row, count(*) AS times FROM {source} GROUP BY row
      HAVING times > 1 ORDER BY row LIMIT 1""").fetchone()
    if twice:
      row, times = twice
      raise ValueError(
        f"{path}: row {row} stands {times} times; 'row' is the key and must be "
        'unique.'
      )
  (first, one), *others = tables.items()
  for model, other in others:
    for a, b, where in ((one, other, model), (other, one, first)):
      number, row = connection.execute(f"""
        SELECT count(*), min(a.row)
        FROM read_parquet({expressions.text(a)}) AS a
        ANTI JOIN read_parquet({expressions.text(b)}) AS b ON a.row = b.row
        """).fetchone()
      if number:
        raise ValueError(
          f'{number} rows of {a}, row {row} first, are not scored by model '
          f'{where!r} ({b}): score all models on the same samples.'
        )


def rank(
  connection,
  roles: Mapping[str, str],
  under: Sequence[str],
  needed: Sequence[str],
  num_strata: int,
  by: str,
) -> None:
  """Makes the table `ranked`, as strata.py ranks rows.

  Args:
    connection: a connection with the view `scored`.
    roles: role -> model.
    under: roles under which an eligible row is usable.
    needed: roles to rank under; with both there are diff and total.
    num_strata: K.
    by: 'own', or the role whose PPL(Q) makes the strata.
  """
  whose = by
  others = [
    f'{name}_{role}'
    for role in roles
    for name in ('status', 'usable', 'n_q', 'n_a')
  ]
  last = 'scored'
  for role in needed:
    by = role if whose == 'own' else whose
    by_ppl = f'CASE WHEN usable_{by} THEN log_ppl_{by} END'
    kept = f'usable_{role} AND isfinite(rmi_{role}) AND isfinite({by_ppl})'
    # Ranks are over the rows that have one; the join brings the others back.
    connection.execute(f"""
      CREATE TABLE strata_{role} AS
      SELECT row, rmi_{role} AS rmi, {by_ppl} AS log_ppl,
        ntile({num_strata}) OVER (ORDER BY {by_ppl}, row) - 1
          AS stratum
      FROM scored WHERE {kept}""")
    connection.execute(f"""
      CREATE TABLE rank_{role} AS
      SELECT row, stratum, log_ppl,
        CASE WHEN size = 1 THEN 0.5
          ELSE (2 * (place - 1) + ties - 1) / (2.0::DOUBLE * (size - 1))
        END::DOUBLE AS rank
      FROM (
        SELECT row, stratum, log_ppl,
          rank() OVER (PARTITION BY stratum ORDER BY rmi) AS place,
          count(*) OVER (PARTITION BY stratum, rmi) AS ties,
          count(*) OVER (PARTITION BY stratum) AS size
        FROM strata_{role})""")
    connection.execute(f'DROP TABLE strata_{role}')
    last += f' LEFT JOIN rank_{role} USING (row)'
  ranks = [
    f'rank_{role}.{a} AS {b}_{role}'
    for role in needed
    for a, b in (
      ('stratum', 'stratum'),
      ('rank', 'rank'),
      ('log_ppl', 'by_ppl'),
    )
  ]
  both = []
  if set(ROLES) <= set(needed):
    strong, weak = (f'rank_{role}.rank' for role in ROLES)
    both = [
      f'{expressions.grid(f"{strong} - {weak}")} AS diff',
      f'{expressions.grid(f"{strong} + {weak}")} AS total',
    ]
  usable = ' AND '.join(f'usable_{role}' for role in under) or 'true'
  connection.execute(
    'CREATE TABLE ranked AS SELECT row, '
    + ', '.join([*others, *ranks, *both, f'({usable}) AS eligible'])
    + f' FROM {last}'
  )
  for role in needed:
    connection.execute(f'DROP TABLE rank_{role}')
