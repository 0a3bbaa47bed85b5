"""The rules of QAQ (arXiv 2603.12165), and its plainest control.

`r_s` and `r_w` are the ranks of RMI inside strata of PPL(Q), under the strong
and the weak model. Rules that need both see only rows usable under both.
"""

import numpy as np

from qaq_jax.selection import budget as budget_lib
from qaq_jax.selection.rules.rule import (
  Candidates,
  present_roles,
  register,
  strong,
  strong_and_weak,
)

_METHOD = 'QAQ, arXiv 2603.12165'
_RMI = 'nll_q_{0}, n_q_{0}, nll_q_given_a_{0}, n_q_given_a_{0}'
_STRONG = (_RMI.format('{strong}'),)
_BOTH = (_RMI.format('{strong}'), _RMI.format('{weak}'))


@register(
  'diff_low',
  keeps='lowest r_s - r_w (ablation)',
  source=_METHOD,
  needs=_BOTH,
  score='r_s - r_w',
  models=strong_and_weak,
  highest=False,
)
@register(
  'diff_high',
  keeps='highest r_s - r_w, the cognitive gap (the method)',
  source=_METHOD,
  needs=_BOTH,
  score='r_s - r_w',
  models=strong_and_weak,
)
def _diff(columns, options, context):
  return Candidates(columns.diff())


@register(
  'sum_low',
  keeps='lowest r_s + r_w (ablation)',
  source=_METHOD,
  needs=_BOTH,
  score='r_s + r_w',
  models=strong_and_weak,
  highest=False,
)
@register(
  'sum_high',
  keeps='highest r_s + r_w (ablation)',
  source=_METHOD,
  needs=_BOTH,
  score='r_s + r_w',
  models=strong_and_weak,
)
def _sum(columns, options, context):
  return Candidates(columns.sum())


@register(
  'rmi_top',
  keeps='highest r_s',
  source=_METHOD,
  needs=_STRONG,
  score='r_s',
  models=strong,
  budget=budget_lib.Budget(share=0.5),
)
def _rmi_top(columns, options, context):
  return Candidates(columns.rank(columns.model('strong')))


@register(
  'rmi_window',
  keeps='lo <= r_s < hi (hi = 1 includes 1), both extremes out',
  source=_METHOD,
  needs=_STRONG,
  score='r_s',
  models=strong,
  options={
    'lo': (0.5, 'lower end of r_s, included'),
    'hi': (0.75, 'upper end of r_s, excluded unless it is 1'),
  },
  budget=budget_lib.Budget(),
  threshold=False,
)
def _rmi_window(columns, options, context):
  lo, hi = float(options['lo']), float(options['hi'])
  if not 0 <= lo < hi <= 1:
    raise ValueError(
      f'select.lo={lo} and select.hi={hi}: a window has 0 <= lo < hi <= 1.'
    )
  rank = columns.rank(columns.model('strong'))
  return Candidates(
    rank,
    dropped={
      f'r_s < {lo:g}': rank < lo,
      f'r_s >= {hi:g}': (rank >= hi) & (rank > 1 if hi == 1 else True),
    },
    # Inside the window no row is better: a smaller budget draws at random.
    order_N=np.zeros(len(rank)),
    stream=budget_lib.WINDOW,
  )


@register(
  'drop_low',
  keeps='all but the lowest share `drop` of r_s: the filter use',
  source=_METHOD,
  needs=_STRONG,
  score='r_s',
  models=strong,
  options={'drop': (0.25, 'share of the eligible rows to remove')},
  budget=budget_lib.Budget(),
  threshold=False,
)
def _drop_low(columns, options, context):
  drop = float(options['drop'])
  if not 0 <= drop < 1:
    raise ValueError(f'select.drop is {drop}; it is a share in [0, 1).')
  rank = columns.rank(columns.model('strong'))
  ranked = context.eligible_N & np.isfinite(rank)
  num_dropped = int(np.floor(drop * context.eligible_N.sum() + 1e-9))
  kept = budget_lib.take(
    rank,
    ranked,
    columns.row,
    limit=max(0, int(ranked.sum()) - num_dropped),
    seed=context.seed,
  )
  low = ranked.copy()
  low[kept.index] = False
  return Candidates(
    rank,
    dropped={f'among the lowest {drop:.0%} of r_s': low},
    order_N=np.zeros(len(rank)),
    stream=budget_lib.DROP_LOW,
  )


@register(
  'random',
  keeps='a uniform draw: the rows of smallest seeded hash',
  source='-',
  needs=(),
  score='-',
  models=present_roles,
  threshold=False,
)
@register(
  'all',
  keeps='every eligible row',
  source='-',
  needs=(),
  score='-',
  models=present_roles,
  budget=budget_lib.Budget(),
  threshold=False,
)
def _random(columns, options, context):
  return Candidates(np.zeros(columns.num_rows), stream=budget_lib.RANDOM)
