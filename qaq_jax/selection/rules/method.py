"""The rules of QAQ (arXiv 2603.12165), and its plainest control.

`r_s` and `r_w` are the ranks of RMI inside strata of PPL(Q), under the strong
and the weak model. Rules that need both see only rows usable under both.
"""

import numpy as np

from qaq_jax.selection import budget as budget_lib
from qaq_jax.selection.rules import eligible
from qaq_jax.selection.rules.rule import Candidates, Sql, register
from qaq_jax.selection.sql import expressions

_RMI = 'nll_q_{0}, n_q_{0}, nll_q_given_a_{0}, n_q_given_a_{0}'
_METHOD = {'source': 'QAQ, arXiv 2603.12165'}
_STRONG = _METHOD | {
  'needs': (_RMI.format('{strong}'),),
  'score': 'r_s',
  'models': eligible.played('strong'),
}
_BOTH = _METHOD | {
  'needs': (_RMI.format('{strong}'), _RMI.format('{weak}')),
  'models': eligible.played('strong', 'weak'),
  'on_grid': True,
}
_DIFF = _BOTH | {
  'score': 'r_s - r_w',
  'all_zero': 'the strong and the weak model rank every row alike (the same '
  'model twice?)',
  'sql': Sql('diff', ranks=('strong', 'weak')),
}
_SUM = _BOTH | {
  'score': 'r_s + r_w',
  'sql': Sql('total', ranks=('strong', 'weak')),
}
_NO_SCORE = {
  'source': '-',
  'score': '-',
  'models': eligible.present_roles,
  'threshold': False,
  'stream': 2,
  'sql': Sql('0'),
}


@register(
  'diff_low', keeps='lowest r_s - r_w (ablation)', highest=False, **_DIFF
)
@register(
  'diff_high',
  keeps='highest r_s - r_w, the cognitive gap (the method)',
  **_DIFF,
)
def _diff(columns, options, context):
  return Candidates(columns.diff())


@register('sum_low', keeps='lowest r_s + r_w (ablation)', highest=False, **_SUM)
@register('sum_high', keeps='highest r_s + r_w (ablation)', **_SUM)
def _sum(columns, options, context):
  return Candidates(columns.sum())


@register(
  'rmi_top',
  keeps='highest r_s',
  budget=budget_lib.Budget(share=0.5),
  sql=Sql('rank_strong', ranks=('strong',)),
  **_STRONG,
)
def _rmi_top(columns, options, context):
  return Candidates(columns.rank(columns.model('strong')))


def _window(options):
  lo, hi = float(options['lo']), float(options['hi'])
  if not 0 <= lo < hi <= 1:
    raise ValueError(
      f'select.lo={lo} and select.hi={hi}: a window has 0 <= lo < hi <= 1.'
    )
  return lo, hi, f'r_s < {lo:g}', f'r_s >= {hi:g}'


def _window_in_sql(options, ranked):
  del ranked
  lo, hi, low, high = _window(options)
  over = f'rank_strong >= {expressions.number(hi)}' if hi < 1 else 'false'
  return {low: f'rank_strong < {expressions.number(lo)}', high: over}


@register(
  'rmi_window',
  keeps='lo <= r_s < hi (hi = 1 includes 1), both extremes out',
  options={
    'lo': (0.5, 'lower end of r_s, included'),
    'hi': (0.75, 'upper end of r_s, excluded unless it is 1'),
  },
  budget=budget_lib.Budget(),
  threshold=False,
  stream=4,
  # Inside the window no row is better: a smaller budget draws at random.
  sql=Sql('rank_strong', ('strong',), order='0.0', dropped=_window_in_sql),
  **_STRONG,
)
def _rmi_window(columns, options, context):
  lo, hi, low, high = _window(options)
  rank = columns.rank(columns.model('strong'))
  return Candidates(
    rank,
    dropped={
      low: rank < lo,
      high: (rank >= hi) & (rank > 1 if hi == 1 else True),
    },
    order_N=np.zeros(len(rank)),
  )


def _drop(options, num_eligible):
  """How many rows to drop, and what the report says of them."""
  drop = float(options['drop'])
  if not 0 <= drop < 1:
    raise ValueError(f'select.drop is {drop}; it is a share in [0, 1).')
  number = int(np.floor(drop * num_eligible + 1e-9))
  return number, f'among the lowest {drop:.0%} of r_s'


def _drop_in_sql(options, ranked):
  num_eligible, num_ranked = ranked.one(
    'SELECT count(*), count(rank_strong) FROM ranked WHERE eligible'
  )
  number, reason = _drop(options, num_eligible)
  ranked.take('kept_high', 'rank_strong', max(0, num_ranked - number))
  return {
    reason: 'rank_strong IS NOT NULL AND row NOT IN (SELECT row FROM kept_high)'
  }


@register(
  'drop_low',
  keeps='all but the lowest share `drop` of r_s: the filter use',
  options={'drop': (0.25, 'share of the eligible rows to remove')},
  budget=budget_lib.Budget(),
  threshold=False,
  stream=5,
  sql=Sql('rank_strong', ('strong',), order='0.0', dropped=_drop_in_sql),
  **_STRONG,
)
def _drop_low(columns, options, context):
  number, reason = _drop(options, context.eligible_N.sum())
  rank = columns.rank(columns.model('strong'))
  low = context.eligible_N & np.isfinite(rank)
  kept = budget_lib.take(
    rank,
    low,
    columns.row,
    limit=max(0, int(low.sum()) - number),
    seed=context.seed,
  )
  low[kept.index] = False
  return Candidates(rank, dropped={reason: low}, order_N=np.zeros(len(rank)))


@register(
  'random',
  keeps='a uniform draw: the rows of smallest seeded hash',
  **_NO_SCORE,
)
@register(
  'all',
  keeps='every eligible row',
  budget=budget_lib.Budget(),
  compared=False,
  **_NO_SCORE,
)
def _random(columns, options, context):
  return Candidates(np.zeros(columns.num_rows))
