"""What selection rules are worth: cells, statistics and the table of results.

A *cell* is one fine-tuning run: a rule, a budget, a seed. A *line* of the table
is a rule at a budget, over its seeds. Lines are judged by the loss on held-out
samples; pure functions, the work is done by stages/compare.py.

Intervals are 95% percentile intervals of a paired bootstrap: each draw takes
held-out samples with replacement, the same for both lines, and seeds with
replacement, each line its own. With few seeds the part of the seeds is rough,
which is why the spread over seeds stands beside it.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from qaq_jax.evaluation import pass_at_k

BUDGETS = ('share', 'rows', 'tokens', 'token_share')
_DRAWS = 2000


@dataclasses.dataclass(frozen=True)
class Line:
  """A rule at a budget.

  Attributes:
    rule: name of the rule.
    kind: 'share', 'rows', 'tokens' (of queries and answers), or 'token_share',
      a share of the tokens of all eligible rows.
    amount: how much of it.
    seeds: 0, 1, ... up to this number, of selection and training.
  """

  rule: str
  kind: str
  amount: float
  seeds: int

  @property
  def budget(self) -> str:
    """As shown in a table: '25% of rows', '25% of tokens', '500 rows'."""
    shares = {'share': 'rows', 'token_share': 'tokens'}
    if self.kind in shares:
      return f'{self.amount:.0%} of {shares[self.kind]}'
    return f'{self.amount:,.0f} {self.kind}'

  def selection_budget(self, tokens: int) -> dict[str, float]:
    """The budget in the words of `selection.budget.Budget`.

    Args:
      tokens: the number of tokens of all eligible rows.
    """
    if self.kind == 'token_share':
      return {'tokens': int(self.amount * tokens)}
    return {self.kind: self.amount}


def parse_table(table: Sequence[Sequence]) -> list[Line]:
  """`config.compare.table` as lines.

  Raises:
    ValueError: an entry is not (rule, budget, amount, seeds), or stands twice;
      names it.
  """
  lines = []
  for entry in table:
    try:
      rule, kind, amount, seeds = entry
    except (TypeError, ValueError):
      raise ValueError(
        f'config.compare.table: {entry!r} is not (rule, budget, amount, '
        "seeds), as in ('RULE', 'share', 0.25, 3)"
      ) from None
    if kind not in BUDGETS:
      raise ValueError(
        f'config.compare.table: budget {kind!r} of {rule!r} is not one of '
        + ', '.join(BUDGETS)
      )
    if seeds != int(seeds) or seeds < 1 or not amount > 0:
      raise ValueError(
        f'config.compare.table: {entry!r}: the amount is positive, the '
        'number of seeds a whole number from 1 on'
      )
    lines.append(Line(rule, kind, amount, int(seeds)))
  keys = [(line.rule, line.kind, line.amount) for line in lines]
  doubled = [key for key in keys if keys.count(key) > 1]
  if doubled:
    raise ValueError(f'config.compare.table has {doubled[0]!r} twice')
  return lines


@dataclasses.dataclass(frozen=True)
class Loss:
  """Held-out losses of a line.

  Attributes:
    nll_SR: float64, sum of -log p of each answer's tokens, nats, by seed and
      held-out sample.
    n_R: tokens of each answer.
  """

  nll_SR: np.ndarray
  n_R: np.ndarray

  @property
  def by_seed(self) -> np.ndarray:
    """Nats per token of each seed's model, over all held-out tokens."""
    return self.nll_SR.sum(axis=1) / self.n_R.sum()


def interval(
  one: Loss, other: Loss | None = None, *, seed: int = 0
) -> tuple[float, float]:
  """95% interval of a line's loss, or of its difference to another's.

  Args:
    one: losses of the line.
    other: the losses of the line that is subtracted, over the same held-out
      samples; None: nothing is.
    seed: the seed of the bootstrap.

  Returns:
    Lower and upper end, nats per token.
  """
  rng = np.random.default_rng(seed)
  rows = len(one.n_R)
  # A draw is how often each sample is in it.
  counts_DR = rng.multinomial(rows, np.full(rows, 1 / rows), size=_DRAWS)
  tokens_D = counts_DR @ one.n_R

  def drawn(loss):
    per_seed_DS = counts_DR @ loss.nll_SR.T / tokens_D[:, None]
    seeds = per_seed_DS.shape[1]
    picks_DS = rng.integers(seeds, size=per_seed_DS.shape)
    return np.take_along_axis(per_seed_DS, picks_DS, axis=1).mean(axis=1)

  values = drawn(one) - (0 if other is None else drawn(other))
  low, high = np.quantile(values, [0.025, 0.975])
  return float(low), float(high)


def summarise(
  losses: Mapping[Line, Loss],
  facts: Mapping[Line, Mapping],
  baseline: str,
) -> list[dict]:
  """One record per line: loss with interval, and difference to the baseline.

  Args:
    losses: the held-out losses of every line.
    facts: facts of every line: `rows` and `tokens` trained on, `steps`, and
      `scores`, benchmark -> pass@1 `value` and number of `tasks`; means over
      seeds.
    baseline: rule whose line of the same budget is subtracted.
  """
  found = []
  for line, loss in losses.items():
    other = next(
      (
        losses[o]
        for o in losses
        if (o.rule, o.kind, o.amount) == (baseline, line.kind, line.amount)
        and o != line
      ),
      None,
    )
    by_seed = loss.by_seed
    record = {
      'rule': line.rule,
      'budget': line.budget,
      'seeds': line.seeds,
      **facts[line],
      'loss': float(by_seed.mean()),
      'interval': interval(loss),
      'by_seed': by_seed.tolist(),
    }
    if other is not None:
      record['minus_baseline'] = float(by_seed.mean() - other.by_seed.mean())
      record['minus_baseline_interval'] = interval(loss, other)
    found.append(record)
  return found


def format_table(records: Sequence[Mapping], baseline: str, start: Loss) -> str:
  """The records as a Markdown table, lowest loss first within a budget.

  Args:
    records: the records from `summarise`.
    baseline: the rule that was subtracted.
    start: losses of the model before any training.
  """
  budgets = list(dict.fromkeys(r['budget'] for r in records))
  scores = list(records[0]['scores'])
  ordered = sorted(
    records, key=lambda r: (budgets.index(r['budget']), r['loss'])
  )
  head = (
    'rule',
    'budget',
    'rows',
    'tokens',
    'updates',
    'seeds',
    'held-out loss [95%]',
    'lowest to highest seed',
    f'minus {baseline} [95%]',
    *(f'{name} pass@1 [95%]' for name in scores),
  )
  rows = [head, ('---',) * len(head)]
  low, high = interval(start)
  rows.append(
    (
      '(before)',
      '',
      '0',
      '0',
      '0',
      '',
      f'{start.by_seed.mean():.4f} [{low:.4f}, {high:.4f}]',
      '',
      '',
      *[''] * len(scores),
    )
  )
  for r in ordered:
    low, high = r['interval']
    spread = (
      f'{min(r["by_seed"]):.4f} to {max(r["by_seed"]):.4f}'
      if r['seeds'] > 1
      else ''
    )
    difference = ''
    if 'minus_baseline' in r:
      a, b = r['minus_baseline_interval']
      difference = f'{r["minus_baseline"]:+.4f} [{a:+.4f}, {b:+.4f}]'
    rows.append(
      (
        r['rule'],
        r['budget'],
        f'{r["rows"]:,.0f}',
        f'{r["tokens"]:,.0f}',
        f'{r["steps"]:,.0f}',
        str(r['seeds']),
        f'{r["loss"]:.4f} [{low:.4f}, {high:.4f}]',
        spread,
        difference,
        *(_percent(r['scores'][name]) for name in scores),
      )
    )
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  return '\n'.join(
    '| '
    + ' | '.join(
      cell.ljust(width, '-' if set(cell) == {'-'} else ' ')
      for cell, width in zip(row, widths, strict=True)
    )
    + ' |'
    for row in rows
  )


def _percent(score):
  # Wilson's interval over the tasks: what other seeds would give is not in it.
  low, high = pass_at_k.wilson(score['value'] * score['tasks'], score['tasks'])
  return f'{100 * score["value"]:.1f} [{100 * low:.1f}, {100 * high:.1f}]'
