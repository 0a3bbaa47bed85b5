"""Analyses of a score table that the paper reports (arXiv 2603.12165)."""

from collections.abc import Mapping, Sequence

import numpy as np

from qaq_jax.selection import audit, strata
from qaq_jax.selection import budget as budget_lib
from qaq_jax.selection import columns as columns_lib
from qaq_jax.selection import select as select_lib
from qaq_jax.selection.rules import rule as rule_lib


def spearman(x_N, y_N) -> float | None:
  """Spearman rank correlation with average ranks for ties.

  Args:
    x_N: float [N]; pairs with a NaN on either side are left out.
    y_N: float [N].

  Returns:
    The correlation, or None with fewer than two pairs or a constant side.
  """
  x_N, y_N = np.asarray(x_N, np.float64), np.asarray(y_N, np.float64)
  both = np.isfinite(x_N) & np.isfinite(y_N)
  if both.sum() < 2:
    return None
  one = np.zeros(int(both.sum()), np.int32)
  x = strata.rank_in_strata(x_N[both], one) - 0.5
  y = strata.rank_in_strata(y_N[both], one) - 0.5
  scale = np.sqrt(np.dot(x, x) * np.dot(y, y))
  return float(np.dot(x, y) / scale) if scale > 0 else None


def correlations(columns, models=None) -> list[dict]:
  """Spearman of each model's RMI with its other scores and other models' RMI.

  A model scored before and after fine-tuning stands in one table under two
  names: the paper reports 0.9539 for that pair, and 0.252 for RMI and IFD.

  Args:
    columns: ScoreColumns.
    models: names, in this order; None = all of the table.

  Returns:
    One record per pair: `model`, `score` ('IFD', 'log PPL(Q)', 'answer tokens'
    or 'RMI'), `other` (the model of that score), `spearman`.
  """
  readers = {
    'IFD': lambda model: columns.ifd(model, required=False),
    'log PPL(Q)': columns.log_ppl_q,
    'answer tokens': columns.length,
  }
  found, models = [], models or columns.models
  for i, model in enumerate(models):
    pairs = [(name, model, read) for name, read in readers.items()]
    pairs += [('RMI', other, columns.rmi) for other in models[i + 1 :]]
    for name, other, read in pairs:
      try:
        value = spearman(columns.rmi(model), read(other))
      except columns_lib.MissingColumn:
        continue
      if value is not None:
        found.append(
          {'model': model, 'score': name, 'other': other, 'spearman': value}
        )
  return found


def rmi_ifd_spearman(columns, model: str) -> float | None:
  """Spearman of RMI and IFD under a model (the paper: 0.252)."""
  return spearman(columns.rmi(model), columns.ifd(model, required=False))


def rmi_spearman_between(before, after, model: str) -> float | None:
  """Spearman of a model's RMI in two score tables of the same input.

  The paper: 0.9539 before and after fine-tuning.

  Args:
    before: ScoreColumns.
    after: ScoreColumns; rows are matched by `row`.
    model: the model's name in both.
  """
  _, first, second = np.intersect1d(
    before.row, after.row, assume_unique=True, return_indices=True
  )
  return spearman(before.rmi(model)[first], after.rmi(model)[second])


def select_all(columns, names=(), *, budget=None, seed: int = 0, options=None):
  """Runs rules on one table, by default all that it has the columns for.

  Args:
    columns: ScoreColumns.
    names: rules that must run; () = all that are compared, where they can.
    budget: the budget of every rule; None = each rule's own. A threshold leaves
      out the rules without a score.
    seed: the seed of the hash.
    options: function from a rule's name to its options; None = its defaults.

  Returns:
    Name -> Selection in the registry's order, and name -> why it is not there
    of the rules left out.

  Raises:
    ValueError: a rule of `names` can't run; says what it needs.
  """
  budget = budget_lib.Budget.of(budget)
  found, left_out = {}, {}
  for name in names or [r.name for r in rule_lib.RULES.values() if r.compared]:
    rule = rule_lib.get_rule(name)
    if not names and budget.threshold is not None and not rule.threshold:
      left_out[name] = 'has no score to compare with a threshold'
      continue
    try:
      own = options(name) if options else {}
      found[name] = select_lib.select(
        columns, rule=name, budget=budget, seed=seed, **own
      )
    except columns_lib.MissingColumn as e:
      if names:
        raise
      left_out[name] = str(e)
  return found, left_out


def overlap(rows_by_rule: Mapping[str, np.ndarray], of: str = 'union'):
  """How much the choices of rules have in common.

  Args:
    rows_by_rule: name -> chosen rows (unique).
    of: 'union' (intersection over union), or 'first': the share of the first
      rule's rows that the second keeps too.

  Returns:
    float64 [R, R] in the mapping's order; NaN where the base is empty.
  """
  if of not in ('union', 'first'):
    raise ValueError(f"of is {of!r}; it is 'union' or 'first'.")
  chosen = [np.asarray(rows, np.int64) for rows in rows_by_rule.values()]
  out = np.full((len(chosen), len(chosen)), np.nan)
  for i, a in enumerate(chosen):
    for j, b in enumerate(chosen):
      common = len(np.intersect1d(a, b, assume_unique=True))
      base = len(a) if of == 'first' else len(a) + len(b) - common
      if base:
        out[i, j] = common / base
  return out


def format_overlap(names: Sequence[str], matrix) -> str:
  """An overlap matrix as text, a line per rule, in percent."""
  lines = [
    [name, *('-' if not np.isfinite(v) else f'{v:.0%}' for v in values)]
    for name, values in zip(names, matrix, strict=True)
  ]
  return audit.aligned([['', *names], *lines], 5)
