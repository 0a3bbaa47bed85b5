"""What a selection is asked for, checked before any table is opened."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from qaq_jax.selection import budget as budget_lib
from qaq_jax.selection.rules import rule as rule_lib


@dataclasses.dataclass(frozen=True)
class Request:
  """A rule and how much of it, for whichever engine.

  Attributes:
    rule: the rule.
    options: the options of the rule, with its defaults.
    budget: the budget in force.
    budget_is_default: whether that is the rule's own.
    seed: the seed of the hash.
  """

  rule: rule_lib.Rule
  options: Mapping[str, Any]
  budget: budget_lib.Budget
  budget_is_default: bool
  seed: int

  @classmethod
  def of(cls, rule: str, budget, seed: int, options: Mapping) -> 'Request':
    """A request in the words of `select.select`.

    Raises:
      ValueError: an unknown rule, option or budget, or a seed out of range.
    """
    made = rule_lib.get_rule(rule)
    budget = budget_lib.Budget.of(budget)
    default = not budget.given()
    budget = made.budget if default else budget
    if budget.threshold is not None and not made.threshold:
      raise ValueError(
        f'The rule {rule!r} has no score to compare with '
        f'select.budget.threshold={budget.threshold:g}: set share, rows or '
        'tokens.'
      )
    budget_lib.check_seed(int(seed))
    options = rule_lib.resolve_options(made, options)
    return cls(made, options, budget, default, int(seed))


def no_tokens(row: int, model: str) -> ValueError:
  """The error where a token budget meets a row whose tokens are unknown."""
  return ValueError(
    f'select.budget.tokens: row {row} has no token count (n_q or n_a of '
    f'model {model!r} is null): set share or rows.'
  )
