"""From a score table and a rule to chosen rows and a report.

No model is needed: every rule re-runs on a finished table in seconds.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from qaq_jax.selection import budget as budget_lib
from qaq_jax.selection import columns as columns_lib
from qaq_jax.selection import facts, request, summary
from qaq_jax.selection.options import SelectOptions, StrataOptions
from qaq_jax.selection.rules import rule as rule_lib


@dataclasses.dataclass(frozen=True)
class Selection:
  """What a rule chose.

  Attributes:
    rows: int64, the chosen rows' keys, ascending.
    report: JSON-serialisable: everything `selection.json` says about it.
  """

  rows: np.ndarray
  report: dict[str, Any]


def select(
  table,
  *,
  rule: str = SelectOptions.rule,
  budget=None,
  seed: int = 0,
  roles: Mapping[str, str] | None = None,
  num_strata: int = StrataOptions.num_strata,
  by: str = StrataOptions.by,
  include_truncated: bool = SelectOptions.include_truncated,
  **options,
) -> Selection:
  """Applies a rule to a score table.

  Args:
    table: pyarrow Table, mapping of arrays, path of a Parquet file, or
      ScoreColumns (whose roles and stratification then count).
    rule: a name of the registry (`python -m qaq_jax.selection` prints it).
    budget: Budget, mapping with one of share, rows, tokens, threshold, or
      None for the rule's own default.
    seed: the seed of the hash that breaks ties and draws at random.
    roles: role -> model name.
    num_strata: K.
    by: whose PPL(Q) makes the strata: 'own', 'strong' or 'weak'.
    include_truncated: whether `truncated` rows are eligible.
    **options: the rule's own options; None means not given.

  Returns:
    A Selection. Choosing nothing is a result, said in the report.

  Raises:
    ValueError: an unknown rule, option or budget.
    MissingColumn: a column that the rule needs is not there; says how to get
      it.
  """
  asked = request.Request.of(rule, budget, seed, options)
  if not isinstance(table, columns_lib.ScoreColumns):
    table = columns_lib.ScoreColumns(
      table,
      roles=roles,
      num_strata=num_strata,
      by=by,
      include_truncated=include_truncated,
    )
  models = asked.rule.models(table, asked.options)
  eligible = table.usable_under(models)

  def run_other(name):
    other = select(table, rule=name, budget=asked.budget, seed=asked.seed)
    return np.flatnonzero(np.isin(table.row, other.rows))

  found = asked.rule.function(
    table,
    asked.options,
    rule_lib.Context(
      eligible, asked.budget, asked.seed, asked.rule.stream, run_other
    ),
  )
  dropped, candidate = _own_filter(found, eligible)
  cut = _cut(table, asked, eligible, found, candidate)
  rows = np.sort(table.row[cut.index])
  measured = facts.measure(
    table, asked, models, eligible, dropped, candidate, found, cut
  )
  return Selection(rows, summary.build(asked, measured, rows))


def _own_filter(found, eligible):
  """Rows per reason (each row under its first reason), and who is left."""
  candidate = eligible.copy()
  reasons = {}
  for reason, mask in found.dropped.items():
    hit = candidate & mask
    reasons[reason] = int(hit.sum())
    candidate &= ~hit
  if found.picks is None:
    missing = candidate & ~np.isfinite(found.score_N)
    reasons['no value'] = int(missing.sum())
    candidate &= ~missing
  return {reason: n for reason, n in reasons.items() if n}, candidate


def _cut(table, asked, eligible, found, candidate):
  """Applies the budget to the candidates."""
  rule, budget = asked.rule, asked.budget
  limit = budget.limit(int(eligible.sum()))
  tokens = max_tokens = None
  if budget.tokens is not None:
    max_tokens = budget.tokens
    tokens = table.tokens(table.token_model())
    unknown = candidate & ~np.isfinite(tokens)
    if unknown.any():
      row = table.row[np.flatnonzero(unknown)[0]]
      raise request.no_tokens(row, table.token_model())
  if found.picks is not None:
    return _cut_picks(found.picks, limit, budget, tokens)
  order = found.order_N
  if order is None:
    order = found.score_N if rule.highest else -found.score_N
  if budget.threshold is not None:
    line = rule_lib.threshold_of_score(rule, budget.threshold)
    beyond = found.score_N > line if rule.highest else found.score_N < line
    candidate = candidate & beyond
  return budget_lib.take(
    order,
    candidate,
    table.row,
    limit=limit,
    tokens_N=tokens,
    max_tokens=max_tokens,
    seed=asked.seed,
    stream=rule.stream,
  )


def _cut_picks(picks, limit, budget, tokens):
  """The first picks that the budget pays for."""
  picks = picks[:limit]
  if tokens is not None:
    spent = np.cumsum(tokens[picks])
    picks = picks[: np.searchsorted(spent, budget.tokens, side='right')]
  return budget_lib.Cut(np.sort(picks), None, 0, 0)
