"""The report of a selection that DuckDB made; see `summary.build`.

Means are summed in another order than numpy's, so their last bits may differ.
"""

import dataclasses
from collections.abc import Mapping

from qaq_jax.selection import budget as budget_lib
from qaq_jax.selection import summary
from qaq_jax.selection.rules import rule as rule_lib


@dataclasses.dataclass(frozen=True)
class Facts:
  """What is known once the tables `ranked` and `chosen` are there.

  Attributes:
    rule, options, budget, budget_is_default, seed: of the selection.
    stream: of the hash that broke ties.
    roles: role -> model.
    models: under which rows had to be usable.
    num_strata, by, include_truncated: of the strata.
    limit: rows asked for, None for other budgets.
    eligible, candidates, kept: rows.
    cut: score at the line (the rule's order), rows there, rows kept there.
    dropped: reason -> rows that the rule itself left out.
    score: the rule's score in SQL.
    ranked: the role whose strata are shown.
  """

  rule: rule_lib.Rule
  options: Mapping
  budget: budget_lib.Budget
  budget_is_default: bool
  seed: int
  stream: int
  roles: Mapping[str, str]
  models: tuple[str, ...]
  num_strata: int
  by: str
  include_truncated: bool
  limit: int | None
  eligible: int
  candidates: int
  cut: tuple
  kept: int
  dropped: Mapping[str, int]
  score: str
  ranked: str | None


def build(connection, facts: Facts) -> dict:
  """Returns the report (JSON-serialisable).

  Args:
    connection: of DuckDB, with the tables `ranked` and `chosen`.
    facts: the rest.
  """

  def one(query):
    return connection.execute(query).fetchone()

  score, rule = facts.score, facts.rule
  low, high, mean = one(
    f'SELECT min({score}), max({score}), avg({score}) FROM ranked '
    'JOIN chosen USING (row)'
  )
  everyone = one(f'SELECT avg({score}) FROM ranked WHERE eligible')[0]
  last, tied, tied_kept = facts.cut
  report = {
    'rule': rule.name,
    'keeps': rule.keeps,
    'source': rule.source,
    'options': {k: v for k, v in facts.options.items() if v is not None},
    'budget': facts.budget.given(),
    'budget_is_default': facts.budget_is_default,
    'target_rows': facts.limit,
    'seed': facts.seed,
    'hash_key': budget_lib.hash_key(facts.seed, facts.stream),
    'roles': dict(facts.roles),
    'strata': {'num_strata': facts.num_strata, 'by': facts.by},
    'include_truncated': facts.include_truncated,
    'eligible_under': list(facts.models),
    'status': _statuses(connection, facts),
    'counts': {
      'rows': one('SELECT count(*) FROM ranked')[0],
      'eligible': facts.eligible,
      'candidates': facts.candidates,
      'kept': facts.kept,
    },
    'dropped': dict(facts.dropped),
    'share_of_eligible': (
      facts.kept / facts.eligible if facts.eligible else None
    ),
    'score': {
      'name': rule.score,
      'kept_low': low,
      'kept_high': high,
      'kept_mean': mean,
      'eligible_mean': everyone,
    },
    'cut': {
      'score': last if rule.highest or last is None else -last,
      'tied': tied,
      'tied_kept': tied_kept,
    }
    if facts.stream == budget_lib.TIES
    else None,
    'ran_short': facts.limit is not None and facts.kept < facts.limit,
    'engine': 'duckdb',
    'tokens': _tokens(one, facts),
    'strata_of': facts.roles.get(facts.ranked),
    'per_stratum': _per_stratum(connection, facts),
  }
  report['notes'] = _notes(report)
  return report


def _role(facts, model):
  return next(role for role, name in facts.roles.items() if name == model)


def _statuses(connection, facts):
  found = {}
  for model in facts.models:
    lines = connection.execute(
      f'SELECT status_{_role(facts, model)}, count(*) AS n FROM ranked '
      'GROUP BY 1 ORDER BY n DESC, 1'
    ).fetchall()
    found[model] = {str(name): number for name, number in lines}
  return found


def _tokens(one, facts):
  if not facts.models:
    return None
  role = _role(facts, facts.models[0])
  tokens = f'coalesce(n_q_{role} + n_a_{role}, 0)'
  everyone, kept = one(f"""
    SELECT sum({tokens}),
      sum({tokens}) FILTER (row IN (SELECT row FROM chosen))
    FROM ranked WHERE eligible""")
  return {
    'model': facts.models[0],
    'eligible': int(everyone or 0),
    'kept': int(kept or 0),
  }


def _per_stratum(connection, facts):
  role, score = facts.ranked, facts.score
  if role is None:
    return []
  names = (
    'stratum',
    'log_ppl_q_low',
    'log_ppl_q_high',
    'eligible',
    'kept',
    'score_low',
    'score_high',
    'mean_query_tokens',
    'mean_query_tokens_kept',
    'mean_answer_tokens',
    'mean_answer_tokens_kept',
  )
  lines = connection.execute(f"""
    WITH marked AS (
      SELECT ranked.*, chosen.row IS NOT NULL AS kept
      FROM ranked LEFT JOIN chosen USING (row)
      WHERE eligible AND stratum_{role} IS NOT NULL)
    SELECT stratum_{role}, min(by_ppl_{role}), max(by_ppl_{role}),
      count(*), count(*) FILTER (kept),
      min({score}) FILTER (kept), max({score}) FILTER (kept),
      avg(n_q_{role}), avg(n_q_{role}) FILTER (kept),
      avg(n_a_{role}), avg(n_a_{role}) FILTER (kept)
    FROM marked GROUP BY 1 ORDER BY 1""").fetchall()
  return [dict(zip(names, line, strict=True)) for line in lines]


def _notes(report):
  notes, cut = [], report['cut']
  if not report['counts']['eligible']:
    notes.append(summary.nobody(report))
  if report['ran_short']:
    notes.append(summary.ran_short(report))
  if 'threshold' in report['budget']:
    if not report['counts']['kept']:
      notes.append(
        f'Nothing is beyond the threshold {report["budget"]["threshold"]:g}. '
        'Selected nothing.'
      )
  elif cut and cut['tied_kept'] < cut['tied']:
    notes.append(summary.ties(report))
  return notes
