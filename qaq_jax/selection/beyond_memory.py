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
from collections.abc import Iterator, Mapping

import numpy as np

from qaq_jax.selection import budget as budget_lib
from qaq_jax.selection import columns as columns_lib
from qaq_jax.selection import registry, strata, summary
from qaq_jax.selection.select import Selection

# Rule -> its score in SQL, over the columns of the table `ranked`.
_SCORES = {
  'diff_high': 'diff', 'diff_low': 'diff', 'sum_high': 'total',
  'sum_low': 'total', 'rmi_top': 'rank_strong', 'rmi_window': 'rank_strong',
  'drop_low': 'rank_strong', 'random': '0.0', 'all': '0.0',
}
RULES = tuple(_SCORES)
_ROLES = columns_lib.ROLES
_GRID = int(strata.GRID)


def select(
  tables: str | os.PathLike | Mapping[str, str],
  *,
  rule: str = 'diff_high',
  budget=None,
  seed: int = 0,
  roles: Mapping[str, str] | None = None,
  num_strata: int = 10,
  by: str = 'own',
  include_truncated: bool = False,
  memory_gb: float = 4.0,
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
    temporary: folder for what does not fit; must have room for about 100
      bytes per row.
    **options: the rule's own.

  Returns:
    A Selection: the rows that are kept are held, 8 bytes each.

  Raises:
    ValueError: a rule that is not expressed in SQL, or as `select.select`.
    ModuleNotFoundError: duckdb is not installed; says how to get it.
  """
  made = registry.get_rule(rule)
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
  with _Run(
    tables, roles, num_strata, by, include_truncated, memory_gb, threads,
    temporary,
  ) as run:
    return run.select(
      made, registry.resolve_options(made, options), amount, default, int(seed)
    )


@contextlib.contextmanager
def _connection(memory_gb, threads, temporary) -> Iterator:
  try:
    import duckdb
  except ModuleNotFoundError as e:
    raise ModuleNotFoundError(
      "select.engine=duckdb needs duckdb: pip install '.[duckdb]'"
    ) from e
  os.makedirs(temporary, exist_ok=True)
  path = os.path.join(temporary, f'selection-{os.getpid()}.duckdb')
  with contextlib.ExitStack() as stack:
    stack.callback(lambda: [
      os.unlink(p) for p in (path, path + '.wal') if os.path.exists(p)
    ])
    connection = duckdb.connect(path, config={
      'memory_limit': f'{memory_gb}GB', 'threads': threads,
      'temp_directory': os.fspath(temporary),
      'preserve_insertion_order': False,
    })
    stack.callback(connection.close)
    yield connection


class _Run:
  """One selection: a connection with the table `scored`, then `ranked`."""

  def __init__(self, tables, roles, num_strata, by, include_truncated,
               memory_gb, threads, temporary):
    self._tables = tables
    self._roles = dict(roles) if roles is not None else None
    self._num_strata, self._by = int(num_strata), by
    self._truncated = bool(include_truncated)
    self._stack = contextlib.ExitStack()
    self._settings = memory_gb, threads, temporary

  def __enter__(self):
    self._sql = self._stack.enter_context(_connection(*self._settings))
    return self

  def __exit__(self, *unused):
    self._stack.close()

  def _one(self, query):
    return self._sql.execute(query).fetchone()

  def select(self, rule, options, budget, default, seed) -> Selection:
    self._open()
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
    self._rank(needed or tuple(self._roles), ranked)
    self._candidates(rule, options, seed)
    eligible, candidates = self._one(
      'SELECT count(*), count(*) FILTER (candidate) FROM ranked WHERE eligible'
    )
    limit = budget.limit(eligible)
    stream = {
      'rmi_window': budget_lib.WINDOW, 'drop_low': budget_lib.DROP_LOW,
      'random': budget_lib.RANDOM, 'all': budget_lib.RANDOM,
    }.get(rule.name, budget_lib.TIES)
    cut = self._cut(rule, budget, limit, seed, stream)
    rows = self._sql.execute(
      'SELECT row FROM chosen ORDER BY row'
    ).fetchnumpy()['row'].astype(np.int64)
    report = self._report(
      rule, options, budget, default, seed, stream, models, limit, eligible,
      candidates, cut, len(rows), ranked,
    )
    report['rows_sha256'] = hashlib.sha256(rows.astype('<i8')).hexdigest()
    return Selection(rows, report)

  # Scores.

  def _open(self):
    """Makes the view `scored`: log PPL(Q), RMI, usable, tokens per role."""
    if isinstance(self._tables, Mapping):
      sources = [
        f'read_parquet({_text(path)}) AS t{i}'
        for i, path in enumerate(self._tables.values())
      ]
    else:
      sources = [f'read_parquet({_text(os.fspath(self._tables))})']
    joined = sources[0] + ''.join(
      f' JOIN {source} USING (row)' for source in sources[1:]
    )
    names = {
      line[0] for line in
      self._sql.execute(f'DESCRIBE SELECT * FROM {joined}').fetchall()
    }
    models = [n[len('status_'):] for n in sorted(names)
              if n.startswith('status_')]
    if self._roles is None:
      self._roles = {r: r for r in _ROLES if r in models}
    self._roles = {r: m for r, m in self._roles.items() if m}
    good = "('ok', 'truncated')" if self._truncated else "('ok')"
    columns = ['row']
    for role, model in self._roles.items():
      if model not in models:
        raise columns_lib.MissingColumn(
          f"roles.{role} is {model!r}, but the score table has no column "
          f"'status_{model}'"
        )
      log_ppl = _log_ppl('q', model)
      columns += [
        f'"status_{model}" AS status_{role}',
        f'"status_{model}" IN {good} AS usable_{role}',
        f'{log_ppl} AS log_ppl_{role}',
        f'{log_ppl} - {_log_ppl("q_given_a", model)} AS rmi_{role}',
        f'"n_q_{model}" AS n_q_{role}', f'"n_a_{model}" AS n_a_{role}',
      ]
    self._sql.execute(
      f'CREATE VIEW scored AS SELECT {", ".join(columns)} FROM {joined}'
    )

  def _rank(self, under, needed):
    """Makes the table `ranked`: eligible under the roles `under`; stratum and
    rank per role `needed`, diff, sum.
    """
    others = [
      f'{name}_{role}' for role in self._roles
      for name in ('status', 'usable', 'n_q', 'n_a')
    ]
    last = 'scored'
    for role in needed:
      by = role if self._by == 'own' else self._by
      if by not in self._roles:
        raise columns_lib.MissingColumn(f'strata.by is {by!r}: no such role')
      by_ppl = f'CASE WHEN usable_{by} THEN log_ppl_{by} END'
      kept = f'usable_{role} AND isfinite(rmi_{role}) AND isfinite({by_ppl})'
      # Ranks are over the rows that have one; the join brings the others back.
      self._sql.execute(f'''
        CREATE TABLE strata_{role} AS
        SELECT row, rmi_{role} AS rmi, {by_ppl} AS log_ppl,
          ntile({self._num_strata}) OVER (ORDER BY {by_ppl}, row) - 1
            AS stratum
        FROM scored WHERE {kept}''')
      self._sql.execute(f'''
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
          FROM strata_{role})''')
      self._sql.execute(f'DROP TABLE strata_{role}')
      last += f' LEFT JOIN rank_{role} USING (row)'
    ranks = [
      f'rank_{role}.{a} AS {b}_{role}' for role in needed
      for a, b in (('stratum', 'stratum'), ('rank', 'rank'),
                   ('log_ppl', 'by_ppl'))
    ]
    both = []
    if tuple(needed) == _ROLES:
      strong, weak = (f'rank_{role}.rank' for role in _ROLES)
      both = [
        f'{_grid(f"{strong} - {weak}")} AS diff',
        f'{_grid(f"{strong} + {weak}")} AS total',
      ]
    usable = ' AND '.join(f'usable_{role}' for role in under) or 'true'
    self._sql.execute(
      'CREATE TABLE ranked AS SELECT row, '
      + ', '.join([*others, *ranks, *both, f'({usable}) AS eligible'])
      + f' FROM {last}'
    )
    for role in needed:
      self._sql.execute(f'DROP TABLE rank_{role}')

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
          f'select.lo={lo} and select.hi={hi}: a window has '
          '0 <= lo < hi <= 1.'
        )
      tests = [(f'r_s < {lo:g}', f'{score} < {_number(lo)}')]
      over = f'{score} >= {_number(hi)}' if hi < 1 else 'false'
      tests.append((f'r_s >= {hi:g}', over))
    self._sql.execute('ALTER TABLE ranked ADD COLUMN candidate BOOLEAN')
    self._sql.execute(f'''
      UPDATE ranked SET candidate = eligible AND {score} IS NOT NULL''')
    if rule.name == 'drop_low':
      self._drop_low(float(options['drop']), seed)
    for reason, test in tests:
      number = self._one(f'SELECT count(*) FROM ranked WHERE candidate AND '
                         f'{test}')[0]
      self._dropped[reason] = number
      self._sql.execute(
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
    self._sql.execute('''
      UPDATE ranked SET candidate = false
      WHERE candidate AND row NOT IN (SELECT row FROM kept_high)''')

  # The cut.

  def _take(self, name, order, limit, seed, stream):
    """Makes table `name`: the best candidates by (order, hash, row)."""
    count = self._one('SELECT count(*) FROM ranked WHERE candidate')[0]
    if limit is None or limit >= count:
      self._sql.execute(
        f'CREATE TABLE {name} AS SELECT row FROM ranked WHERE candidate'
      )
      return
    if limit == 0:
      self._sql.execute(f'CREATE TABLE {name} AS SELECT row FROM ranked '
                        'LIMIT 0')
      return
    line = self._one(
      f'SELECT {order} AS value FROM ranked WHERE candidate '
      f'ORDER BY value DESC LIMIT 1 OFFSET {limit - 1}'
    )[0]
    line = _number(line)
    above = self._one(
      f'SELECT count(*) FROM ranked WHERE candidate AND {order} > {line}'
    )[0]
    self._sql.execute(f'''
      CREATE TABLE {name} AS
      SELECT row FROM ranked WHERE candidate AND {order} > {line}
      UNION ALL SELECT row FROM (
        SELECT row FROM ranked WHERE candidate AND {order} = {line}
        ORDER BY {_hash(seed, stream)}, row LIMIT {limit - above})''')

  def _cut(self, rule, budget, limit, seed, stream):
    """Makes the table `chosen`; returns the score of the line, and ties."""
    sign = '' if rule.highest else '-'
    order = f'{sign}({self._score})'
    if stream not in (budget_lib.TIES, budget_lib.RANDOM):
      order = '0.0'
    if budget.threshold is not None:
      line = _number(registry.rank_grid_threshold(rule, budget.threshold))
      beyond = '>' if rule.highest else '<'
      self._sql.execute(
        f'UPDATE ranked SET candidate = false WHERE candidate AND NOT '
        f'({self._score} {beyond} {line})'
      )
    if budget.tokens is None:
      self._take('chosen', order, limit, seed, stream)
    else:
      self._take_tokens(order, int(budget.tokens), seed, stream)
    last, tied, tied_kept = self._one(f'''
      WITH kept AS (
        SELECT {order} AS value FROM ranked JOIN chosen USING (row)),
      line AS (SELECT min(value) AS value FROM kept)
      SELECT (SELECT value FROM line),
        (SELECT count(*) FROM ranked
         WHERE candidate AND {order} = (SELECT value FROM line)),
        (SELECT count(*) FROM kept
         WHERE value = (SELECT value FROM line))''')
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
    self._sql.execute(f'''
      CREATE TABLE chosen AS SELECT row FROM (
        SELECT row, sum({tokens}) OVER (
          ORDER BY {order} DESC, {_hash(seed, stream)}, row
          ROWS UNBOUNDED PRECEDING) AS spent
        FROM ranked WHERE candidate) WHERE spent <= {most}''')

  # The report.

  def _report(self, rule, options, budget, default, seed, stream, models,
              limit, eligible, candidates, cut, kept, ranked):
    role_of = {m: r for r, m in self._roles.items()}
    status = {}
    for model in models:
      lines = self._sql.execute(
        f'SELECT status_{role_of[model]}, count(*) AS n FROM ranked '
        'GROUP BY 1 ORDER BY n DESC, 1'
      ).fetchall()
      status[model] = {str(name): number for name, number in lines}
    score = self._score
    low, high, mean = self._one(
      f'SELECT min({score}), max({score}), avg({score}) FROM ranked '
      'JOIN chosen USING (row)'
    )
    everyone = self._one(
      f'SELECT avg({score}) FROM ranked WHERE eligible'
    )[0]
    last, tied, tied_kept = cut
    scored = stream == budget_lib.TIES
    report = {
      'rule': rule.name, 'keeps': rule.keeps, 'source': rule.source,
      'options': {k: v for k, v in options.items() if v is not None},
      'budget': budget.given(), 'budget_is_default': default,
      'target_rows': limit, 'seed': seed,
      'hash_key': budget_lib.hash_key(seed, stream),
      'roles': dict(self._roles),
      'strata': {'num_strata': self._num_strata, 'by': self._by},
      'include_truncated': self._truncated,
      'eligible_under': list(models), 'status': status,
      'counts': {
        'rows': self._one('SELECT count(*) FROM ranked')[0],
        'eligible': eligible, 'candidates': candidates, 'kept': kept,
      },
      'dropped': self._dropped,
      'share_of_eligible': kept / eligible if eligible else None,
      'score': {
        'name': rule.score, 'kept_low': low, 'kept_high': high,
        'kept_mean': mean, 'eligible_mean': everyone,
      },
      'cut': {
        'score': last if rule.highest or last is None else -last,
        'tied': tied, 'tied_kept': tied_kept,
      } if scored else None,
      'ran_short': limit is not None and kept < limit,
      'engine': 'duckdb',
    }
    report['tokens'] = self._tokens(models, role_of)
    strata_role = ranked[0] if ranked else None
    report['strata_of'] = self._roles.get(strata_role)
    report['per_stratum'] = self._per_stratum(strata_role)
    report['notes'] = self._notes(report)
    return report

  def _tokens(self, models, role_of):
    if not models:
      return None
    role = role_of[models[0]]
    tokens = f'coalesce(n_q_{role} + n_a_{role}, 0)'
    everyone, kept = self._one(f'''
      SELECT sum({tokens}),
        sum({tokens}) FILTER (row IN (SELECT row FROM chosen))
      FROM ranked WHERE eligible''')
    return {
      'model': models[0], 'eligible': int(everyone or 0), 'kept': int(kept or 0)
    }

  def _per_stratum(self, role):
    if role is None:
      return []
    names = (
      'stratum', 'log_ppl_q_low', 'log_ppl_q_high', 'eligible', 'kept',
      'score_low', 'score_high', 'mean_query_tokens',
      'mean_query_tokens_kept', 'mean_answer_tokens',
      'mean_answer_tokens_kept',
    )
    lines = self._sql.execute(f'''
      WITH marked AS (
        SELECT ranked.*, chosen.row IS NOT NULL AS kept
        FROM ranked LEFT JOIN chosen USING (row)
        WHERE eligible AND stratum_{role} IS NOT NULL)
      SELECT stratum_{role}, min(by_ppl_{role}), max(by_ppl_{role}),
        count(*), count(*) FILTER (kept),
        min({self._score}) FILTER (kept), max({self._score}) FILTER (kept),
        avg(n_q_{role}), avg(n_q_{role}) FILTER (kept),
        avg(n_a_{role}), avg(n_a_{role}) FILTER (kept)
      FROM marked GROUP BY 1 ORDER BY 1''').fetchall()
    return [dict(zip(names, line, strict=True)) for line in lines]

  def _notes(self, report):
    notes, counts, cut = [], report['counts'], report['cut']
    if not counts['eligible']:
      notes.append(summary.nobody(report))
    if report['ran_short']:
      notes.append(summary.ran_short(report))
    if cut and 'threshold' not in report['budget'] and (
      cut['tied_kept'] < cut['tied']
    ):
      notes.append(summary.ties(report))
    return notes


def _text(path: str) -> str:
  return "'" + path.replace("'", "''") + "'"


def _number(value: float) -> str:
  """A float64 that SQL reads as the same bits."""
  return f"'{float(value)!r}'::DOUBLE"


def _log_ppl(term, model):
  total, number = f'"nll_{term}_{model}"', f'"n_{term}_{model}"'
  return (
    f'CASE WHEN isfinite({total}) AND {number} > 0 '
    f'THEN {total}::DOUBLE / {number}::DOUBLE END'
  )


def _grid(x):
  """`strata.to_grid` in SQL."""
  return f'sign({x}) * floor(abs({x}) * {_GRID}.0::DOUBLE + 0.5::DOUBLE) ' \
         f'/ {_GRID}.0::DOUBLE'


def _hash(seed, stream):
  """`budget.row_hash` in SQL."""

  def mix(x):
    x = f'xor({x}, {x} >> 16)'
    x = f'(({x}) * 2146121005 & 4294967295)'
    x = f'xor({x}, {x} >> 15)'
    x = f'(({x}) * 73244475 & 4294967295)'
    return f'xor({x}, {x} >> 16)'

  key = budget_lib.hash_key(seed, stream)
  low = mix(f'xor(row & 4294967295, {key})')
  return mix(f'({low} + (row >> 32)) & 4294967295')
