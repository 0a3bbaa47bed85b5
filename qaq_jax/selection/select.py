"""From a score table and a rule to chosen rows and a report.

No model is needed: every rule re-runs on a finished table in seconds.
"""

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from qaq_jax.selection import budget as budget_lib
from qaq_jax.selection import columns as columns_lib
from qaq_jax.selection import summary
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
    rule: a name of the registry (`registry.describe_rules()` prints it).
    budget: Budget, mapping with one of share, rows, tokens, threshold, or
      None for the rule's own default.
    seed: of the hash that breaks ties and draws at random.
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
  rule = rule_lib.get_rule(rule)
  budget = budget_lib.Budget.of(budget)
  default_budget = not budget.given()
  if default_budget:
    budget = rule.budget
  if not isinstance(table, columns_lib.ScoreColumns):
    table = columns_lib.ScoreColumns(
      table,
      roles=roles,
      num_strata=num_strata,
      by=by,
      include_truncated=include_truncated,
    )
  options = rule_lib.resolve_options(rule, options)
  seed = int(seed)
  budget_lib.check_seed(seed)
  if budget.threshold is not None and not rule.threshold:
    raise ValueError(
      f'The rule {rule.name!r} has no score to compare with '
      f'select.budget.threshold={budget.threshold:g}: set share, rows or '
      'tokens.'
    )

  models = rule.models(table, options)
  eligible = table.usable_under(models)

  def run_other(name):
    other = select(table, rule=name, budget=budget, seed=seed)
    return np.flatnonzero(np.isin(table.row, other.rows))

  context = rule_lib.Context(eligible, budget, seed, run_other)
  found = rule.function(table, options, context)
  dropped, candidate = _own_filter(found, eligible)
  limit = budget.limit(int(eligible.sum()))
  cut = _cut(table, rule, budget, limit, seed, found, candidate)
  chosen = np.zeros(table.num_rows, bool)
  chosen[cut.index] = True
  report = summary.build(
    table,
    rule,
    options,
    budget,
    default_budget,
    seed,
    models,
    eligible,
    dropped,
    candidate,
    found,
    cut,
    chosen,
  )
  rows = np.sort(table.row[cut.index])
  report['rows_sha256'] = hashlib.sha256(rows.astype('<i8')).hexdigest()
  return Selection(rows=rows, report=report)


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


def token_model(table):
  """Whose tokens a token budget counts: the strong model's."""
  if 'strong' in table.roles:
    return table.roles['strong']
  return table.models[0] if table.models else table.model('strong')


def _cut(table, rule, budget, limit, seed, found, candidate):
  """Applies the budget to the candidates."""
  tokens = max_tokens = None
  if budget.tokens is not None:
    max_tokens = budget.tokens
    tokens = table.tokens(token_model(table))
    unknown = candidate & ~np.isfinite(tokens)
    if unknown.any():
      row = table.row[np.flatnonzero(unknown)[0]]
      raise ValueError(
        f'select.budget.tokens: row {row} has no token count (n_q or n_a of '
        f'model {token_model(table)!r} is null): set share or rows.'
      )
  if found.picks is not None:
    return _cut_picks(found.picks, limit, budget, tokens)
  order = found.order_N
  if order is None:
    order = found.score_N if rule.highest else -found.score_N
  if budget.threshold is not None:
    line = rule_lib.rank_grid_threshold(rule, budget.threshold)
    beyond = found.score_N > line if rule.highest else found.score_N < line
    candidate = candidate & beyond
  return budget_lib.take(
    order,
    candidate,
    table.row,
    limit=limit,
    tokens_N=tokens,
    max_tokens=max_tokens,
    seed=seed,
    stream=found.stream,
  )


def _cut_picks(picks, limit, budget, tokens):
  """The first picks that the budget pays for."""
  picks = picks[:limit]
  if tokens is not None:
    spent = np.cumsum(tokens[picks])
    picks = picks[: np.searchsorted(spent, budget.tokens, side='right')]
  return budget_lib.Cut(np.sort(picks), None, 0, 0)
