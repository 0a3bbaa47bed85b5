"""What a selection rule is, and the registry of those there are.

A rule looks at the score table and says which rows are candidates and how
good each is; the budget then keeps the best (see budget.py). All that is known
of a rule stands in its one record, made by `register` where its function is
written; the other modules of this package hold them, and importing the package
registers them. `describe_rules()` prints them all.
"""

import dataclasses
import difflib
import textwrap
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from qaq_jax.selection import budget as budget_lib
from qaq_jax.selection import strata
from qaq_jax.selection.options import SelectOptions


@dataclasses.dataclass
class Candidates:
  """A rule's verdict on the rows of a score table.

  Attributes:
    score_N: float [N], the rule's score in its own direction, NaN = none.
    dropped: reason -> bool [N], the rule's own filter (of eligible rows).
    order_N: float [N], what the budget goes by, always higher first, where
      that is not the score. A constant leaves it to the seeded hash.
    notes: sentences for the report.
    picks: int64 positions chosen by the rule itself, best first; the budget
      then only says how many.
  """

  score_N: np.ndarray
  dropped: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
  order_N: np.ndarray | None = None
  notes: list[str] = dataclasses.field(default_factory=list)
  picks: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Context:
  """What a rule may use besides the columns.

  Attributes:
    eligible_N: bool [N].
    budget: the budget in force.
    seed: the seed of the hash.
    stream: the stream of the hash, the rule's own.
    select: runs another rule: (name) -> int64 positions it keeps.
  """

  eligible_N: np.ndarray
  budget: budget_lib.Budget
  seed: int
  stream: int
  select: Callable[[str], np.ndarray]

  def max_picks(self) -> int:
    """Most rows that the budget can let a rule pick."""
    num_eligible = int(self.eligible_N.sum())
    limit = self.budget.limit(num_eligible)
    return num_eligible if limit is None else min(limit, num_eligible)


@dataclasses.dataclass(frozen=True)
class Sql:
  """A rule in SQL: the same verdict on the rows as its function's.

  The expressions are over the table `ranked`, one row per sample: `row`,
  `eligible`, and of every role `status_<role>`, `usable_<role>`, `n_q_<role>`
  and `n_a_<role>`; of the roles in `ranks` also `stratum_<role>` and
  `rank_<role>`, and `diff` and `total` where these are both.

  Attributes:
    score: a number; null or not finite where a row has none.
    ranks: roles whose ranks of RMI are read, 'strong' before 'weak'.
    order: what the budget goes by, always higher first, where that is not the
      score; see `Candidates.order_N`.
    dropped: (options, engine) -> reason -> condition, the rule's own filter of
      eligible rows, with a score or without; the engine is a
      `sql.engine.Ranked`.
  """

  score: str
  ranks: tuple[str, ...] = ()
  order: str = ''
  dropped: Callable[..., Mapping[str, str]] | None = None


@dataclasses.dataclass(frozen=True)
class Rule:
  """One selection rule.

  Attributes:
    name: the value of `config.select.rule`.
    keeps: what it keeps, one line.
    source: paper, or 'ours'.
    score: the name of its score in reports, '-' for none.
    function: (ScoreColumns, options, Context) -> Candidates.
    models: (ScoreColumns, options) -> models whose status decides who is
      eligible.
    needs: columns, with {strong}, {weak} or {model} for a model's name.
    options: name -> (default, meaning), fields of `config.select` too; a type
      in place of the default where there is none, and None for what `inputs`
      fills in.
    inputs: option -> (stages.artifacts.Inputs, options) -> its value, for
      options that a run fills in from what it has; None where it has nothing.
    budget: the budget in force when the user sets none.
    highest: whether the highest scores are kept.
    threshold: whether a threshold on the score makes sense.
    on_grid: whether scores are rounded by `strata.to_grid`.
    all_zero: what it means if every candidate's score is 0.
    compared: whether analyses that run every rule run it.
    stream: the stream of the hash of `row` by which it breaks ties or draws:
      its own, so that its draws do not repeat another's (`budget.row_hash`).
    sql: the rule in SQL; None: only in memory.
  """

  name: str
  keeps: str
  source: str
  score: str
  function: Callable[..., Candidates]
  models: Callable[..., tuple[str, ...]]
  needs: tuple[str, ...] = ()
  options: Mapping[str, tuple[Any, str]] = dataclasses.field(
    default_factory=dict
  )
  inputs: Mapping[str, Callable[..., Any]] = dataclasses.field(
    default_factory=dict
  )
  budget: budget_lib.Budget = budget_lib.Budget(share=0.25)
  highest: bool = True
  threshold: bool = True
  on_grid: bool = False
  all_zero: str = ''
  compared: bool = True
  stream: int = budget_lib.TIES
  sql: Sql | None = None

  def defaults(self) -> dict[str, Any]:
    """Option -> its default, None where it has none."""
    return {
      name: None if isinstance(default, type) else default
      for name, (default, _) in self.options.items()
    }


RULES: dict[str, Rule] = {}
# Fields of `config.select` that are no options of single rules.
FIXED = {'budget', *(f.name for f in dataclasses.fields(SelectOptions))}


def option_types(*rules: Rule) -> dict[str, type]:
  """The options of rules that a user sets: name -> type.

  Raises:
    ValueError: one has no type, or two rules have one of the same name and
      another type.
  """
  types: dict[str, type] = {}
  for rule in rules:
    for name, (default, _) in rule.options.items():
      if name in rule.inputs:
        continue
      if default is None:
        raise ValueError(
          f'The option {name!r} of the rule {rule.name!r} has no default: give '
          'its type in place of it.'
        )
      kind = default if isinstance(default, type) else type(default)
      if types.setdefault(name, kind) is not kind:
        raise ValueError(
          f'The option {name!r} of the rule {rule.name!r} is of type '
          f'{kind.__name__}; that of another rule is of type '
          f'{types[name].__name__}: name it otherwise.'
        )
  return types


def register(name, **fields):
  """Decorator: registers a rule's function under a name.

  Args:
    name: the name of the rule.
    **fields: the other fields of its Rule.

  Raises:
    ValueError: the name or the stream is that of another rule, or an option
      has the name of another field of `config.select` or another type than
      in another rule.
  """

  def add(function):
    rule = Rule(name=name, function=function, **fields)
    if name in RULES:
      raise ValueError(
        f'There is a rule {name!r} already, in '
        f'{RULES[name].function.__module__}: name the one in '
        f'{function.__module__} otherwise.'
      )
    for option in rule.options:
      if option in FIXED:
        raise ValueError(
          f'The option {option!r} of the rule {name!r} has the name of a field '
          'of config.select that holds for every rule: name it otherwise.'
        )
    option_types(*RULES.values(), rule)
    for other in RULES.values():
      same = rule.stream == other.stream != budget_lib.TIES
      if same and function is not other.function:
        raise ValueError(
          f'The rules {name!r} and {other.name!r} both draw by stream '
          f'{rule.stream}: their draws would repeat each other.'
        )
    RULES[name] = rule
    return function

  return add


def get_rule(name: str, key: str = 'select.rule') -> Rule:
  """The rule of that name.

  Args:
    name: the name of the rule.
    key: the field of the config that names it.

  Raises:
    ValueError: there is none; lists those there are, and the nearest.
  """
  if name not in RULES:
    near = difflib.get_close_matches(str(name), RULES, n=1)
    raise ValueError(
      f'{key} is {name!r}; the rules are {", ".join(RULES)}.'
      + (f' Did you mean {near[0]!r}?' if near else '')
    )
  return RULES[name]


def resolve_options(rule: Rule, given: Mapping[str, Any]) -> dict[str, Any]:
  """The rule's options with defaults; None counts as not given.

  Raises:
    ValueError: an option that the rule does not have.
  """
  options = rule.defaults()
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


def describe_rules(width: int = 100) -> str:
  """A table of all rules: name, what it keeps, budget, columns, source."""
  indent = ' ' * 17
  lines = []

  def add(text, hanging='', **options):
    options = {'initial_indent': indent} | options
    lines.extend(
      textwrap.wrap(text, width, subsequent_indent=indent + hanging, **options)
    )

  for rule in RULES.values():
    budget = [
      f'{name} {value:g}' for name, value in rule.budget.given().items()
    ]
    amount = ' '.join(budget) or 'all that qualify'
    add(f'{rule.name:16} {rule.keeps}', initial_indent='')
    add(f'[{rule.source}; default budget: {amount}]')
    if rule.needs:
      add('needs ' + '; '.join(rule.needs), '  ', break_on_hyphens=False)
    for name, default in rule.defaults().items():
      add(f'select.{name}={default!r}: {rule.options[name][1]}', '  ')
  return '\n'.join(lines)


def threshold_of_score(rule: Rule, threshold: float) -> float:
  """The threshold, on the grid of the score where it has one."""
  return float(strata.to_grid(threshold) if rule.on_grid else threshold)
