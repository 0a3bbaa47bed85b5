"""What a selection kept, measured on DuckDB's tables, for its report.

Means are summed in another order than numpy's, so their last bits may differ.
"""

from collections.abc import Sequence


def measure(
  ranked, models: Sequence[str], roles: Sequence[str], shown: Sequence[str]
) -> dict:
  """Measures what `engine.select` has chosen.

  Args:
    ranked: `engine.Ranked`, with the table `chosen` there too.
    models: the models under which rows had to be usable.
    roles: the roles of these models, in the tables.
    shown: the role of the first, if it has strata.

  Returns:
    Fields of `selection.facts.Facts`.
  """
  score = ranked.score
  low, high, mean = ranked.one(
    f'SELECT min({score}), max({score}), avg({score}) FROM ranked '
    'JOIN chosen USING (row)'
  )
  return {
    'rows': ranked.one('SELECT count(*) FROM ranked')[0],
    'status': {
      model: _statuses(ranked, role)
      for model, role in zip(models, roles, strict=True)
    },
    'score': {
      'kept_low': low,
      'kept_high': high,
      'kept_mean': mean,
      'eligible_mean': ranked.one(
        f'SELECT avg({score}) FROM ranked WHERE eligible'
      )[0],
    },
    'tokens': _tokens(ranked, models[0], roles[0]) if models else None,
    'strata_of': models[0] if shown else None,
    'per_stratum': _per_stratum(ranked, *shown) if shown else [],
  }


def _statuses(ranked, role):
  lines = ranked.all(
    f'SELECT status_{role}, count(*) AS n FROM ranked '
    'GROUP BY 1 ORDER BY n DESC, 1'
  )
  return {str(name): number for name, number in lines}


def _tokens(ranked, model, role):
  tokens = f'coalesce(n_q_{role} + n_a_{role}, 0)'
  everyone, kept = ranked.one(f"""
    SELECT sum({tokens}),
      sum({tokens}) FILTER (row IN (SELECT row FROM chosen))
    FROM ranked WHERE eligible""")
  return {
    'model': model,
    'eligible': int(everyone or 0),
    'kept': int(kept or 0),
  }


def _per_stratum(ranked, role):
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
  lines = ranked.all(f"""
    WITH marked AS (
      SELECT ranked.*, chosen.row IS NOT NULL AS kept
      FROM ranked LEFT JOIN chosen USING (row)
      WHERE eligible AND stratum_{role} IS NOT NULL)
    SELECT stratum_{role}, min(by_ppl_{role}), max(by_ppl_{role}),
      count(*), count(*) FILTER (kept),
      min({ranked.score}) FILTER (kept), max({ranked.score}) FILTER (kept),
      avg(n_q_{role}), avg(n_q_{role}) FILTER (kept),
      avg(n_a_{role}), avg(n_a_{role}) FILTER (kept)
    FROM marked GROUP BY 1 ORDER BY 1""")
  return [dict(zip(names, line, strict=True)) for line in lines]
