"""The registry of selection rules.

A rule looks at the score table and says which rows are candidates and how
good each is; the budget then keeps the best (see budget.py). The method's
rules are in rules.py, the others in baselines.py; importing the package
registers them. `describe_rules()` prints them all.
"""

import dataclasses
import textwrap
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from qaq_jax.selection import budget as budget_lib
from qaq_jax.selection import columns as columns_lib
from qaq_jax.selection import strata


@dataclasses.dataclass
class Candidates:
  """A rule's verdict on the rows of a score table.

  Attributes:
    score_N: float [N], the rule's score in its own direction, NaN = none.
    dropped: reason -> bool [N], the rule's own filter (of eligible rows).
    order_N: float [N], what the budget goes by, always higher first, where
      that is not the score. A constant leaves it to the seeded hash.
    stream: the hash's stream.
    notes: sentences for the report.
    picks: int64 positions chosen by the rule itself, best first; the budget
      then only says how many.
  """

  score_N: np.ndarray
  dropped: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
  order_N: np.ndarray | None = None
  stream: int = budget_lib.TIES
  notes: list[str] = dataclasses.field(default_factory=list)
  picks: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Context:
  """What a rule may use besides the columns.

  Attributes:
    eligible_N: bool [N].
    budget: the budget in force.
    seed: of the hash.
    select: runs another rule: (name) -> int64 positions it keeps.
  """

  eligible_N: np.ndarray
  budget: budget_lib.Budget
  seed: int
  select: Callable[[str], np.ndarray]

  def max_picks(self) -> int:
    """Most rows that the budget can let a rule pick."""
    num_eligible = int(self.eligible_N.sum())
    limit = self.budget.limit(num_eligible)
    return num_eligible if limit is None else min(limit, num_eligible)


@dataclasses.dataclass(frozen=True)
class Rule:
  """One selection rule.

  Attributes:
    name: the value of `config.select.rule`.
    keeps: what it keeps, one line.
    source: paper, or 'ours'.
    needs: columns, with {strong}, {weak} or {model} for a model's name.
    score: the name of its score in reports.
    function: (ScoreColumns, options, Context) -> Candidates.
    models: (ScoreColumns, options) -> models whose status decides who is
      eligible.
    options: name -> (default, meaning).
    budget: in force when the user sets none.
    highest: whether the highest scores are kept.
    threshold: whether a threshold on the score makes sense.
  """

  name: str
  keeps: str
  source: str
  needs: tuple[str, ...]
  score: str
  function: Callable[..., Candidates]
  models: Callable[..., tuple[str, ...]]
  options: Mapping[str, tuple[Any, str]] = dataclasses.field(
    default_factory=dict
  )
  budget: budget_lib.Budget = budget_lib.Budget(share=0.25)
  highest: bool = True
  threshold: bool = True


RULES: dict[str, Rule] = {}


def register(name, **fields):
  """Decorator: registers a rule's function under a name."""

  def add(function):
    RULES[name] = Rule(name=name, function=function, **fields)
    return function

  return add


def get_rule(name: str) -> Rule:
  """The rule of that name.

  Raises:
    ValueError: there is none; lists those there are.
  """
  if name not in RULES:
    raise ValueError(
      f'select.rule is {name!r}; the rules are {", ".join(RULES)}.'
    )
  return RULES[name]


def resolve_options(rule: Rule, given: Mapping[str, Any]) -> dict[str, Any]:
  """The rule's options with defaults; None counts as not given.

  Raises:
    ValueError: an option that the rule does not have.
  """
  options = {name: default for name, (default, _) in rule.options.items()}
  for name, value in given.items():
    if value is None:
      continue
    if name not in options:
      own = ', '.join(options) or 'none'
      raise ValueError(
        f'select.{name} is no option of the rule {rule.name!r}; its options: '
        f'{own}.'
      )
    options[name] = value
  return options


# Whose status makes a row eligible.


def strong(columns, options):
  """The strong model."""
  del options
  return (columns.model('strong'),)


def strong_and_weak(columns, options):
  """Both role models."""
  del options
  return columns.model('strong'), columns.model('weak')


def present_roles(columns, options):
  """The role models there are (else all): the same pool as the method's."""
  del options
  return tuple(dict.fromkeys(columns.roles.values())) or columns.models


def chosen_model(columns, options):
  """The model that the option `model` names (a role or a model)."""
  name = options['model']
  if name in columns_lib.ROLES and name not in columns.models:
    return (columns.model(name),)
  if name in columns.roles:
    return (columns.roles[name],)
  return (name,)


def describe_rules(width: int = 100) -> str:
  """A table of all rules: name, what it keeps, budget, columns, source."""
  lines = []
  for rule in RULES.values():
    budget = rule.budget.given()
    amount = (
      ' '.join(f'{name} {value:g}' for name, value in budget.items())
      or 'all that qualify'
    )
    head = f'{rule.name:16} '
    indent = ' ' * len(head)
    lines += textwrap.wrap(
      f'{head}{rule.keeps}', width, subsequent_indent=indent
    )
    detail = f'[{rule.source}; default budget: {amount}]'
    lines += textwrap.wrap(
      detail, width, initial_indent=indent, subsequent_indent=indent
    )
    if rule.needs:
      lines += textwrap.wrap(
        'needs ' + '; '.join(rule.needs),
        width,
        initial_indent=indent,
        subsequent_indent=indent + '  ',
        break_on_hyphens=False,
      )
    for name, (default, meaning) in rule.options.items():
      lines += textwrap.wrap(
        f'select.{name}={default!r}: {meaning}',
        width,
        initial_indent=indent,
        subsequent_indent=indent + '  ',
      )
  return '\n'.join(lines)


def rank_grid_threshold(rule: Rule, threshold: float) -> float:
  """The threshold on the grid of the score (differences and sums of ranks)."""
  if rule.score in ('r_s - r_w', 'r_s + r_w'):
    return float(strata.to_grid(threshold))
  return float(threshold)
