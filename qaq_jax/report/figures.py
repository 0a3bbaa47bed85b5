"""The page's sections with plots; '' where there is nothing to plot."""

import numpy as np

from qaq_jax.report import markup, svg
from qaq_jax.selection.columns import MissingColumn
from qaq_jax.selection.rules.baselines import LENGTH_CONTROL


def histograms(columns, chosen) -> str:
  """RMI per model."""
  figures = []
  for model in markup.models_of(columns):
    try:
      rmi = columns.rmi(model)
    except MissingColumn:
      continue
    used = rmi[np.isfinite(rmi)]
    if not len(used):
      continue
    caption = (
      f'{len(used):,} rows, median {markup.number(float(np.median(used)))}, '
      f'{np.mean(used < 0):.1%} below zero: there the answer makes the query '
      'less likely.'
    )
    picture = svg.histogram(rmi, chosen, 'RMI, nats per token')
    name = markup.role_name(columns, model)
    figures.append(markup.figure(name, picture, caption))
  if not figures:
    return ''
  return (
    '<h2>Reverse mutual information</h2><p>RMI = log PPL(Q) \u2212 log PPL(Q '
    'given A): how much the answer explains the query. Bars show all rows '
    '<span class="key" style="background:var(--all)"></span>all'
    '<span class="key" style="background:var(--kept)"></span>chosen. The first '
    'and the last bar hold what lies outside the central 99%.</p>'
    f'<div class="plots">{"".join(figures)}</div>'
  )


def maps(columns, chosen) -> str:
  """RMI over PPL(Q), with the strata; strong ranks over weak ranks."""
  figures = []
  for model in markup.models_of(columns):
    try:
      by = model if columns.by == 'own' else columns.model(columns.by)
      log_ppl, rmi = columns.log_ppl_q(by), columns.rmi(model)
      stratum = columns.stratum(model)
    except MissingColumn:
      continue
    used = stratum >= 0
    picture = svg.share_map(
      np.where(used, log_ppl, np.nan),
      rmi,
      chosen,
      f'log PPL(Q) under {by}, nats per token',
      f'RMI under {model}',
      marks=_strata_marks(log_ppl, rmi, stratum),
    )
    figures.append(
      markup.figure(
        f'{markup.role_name(columns, model)}: RMI over PPL(Q)',
        picture,
        f'Upright lines: edges of the {columns.num_strata} strata; level '
        'lines: median RMI of each. Queries of low PPL(Q) leave little to '
        'explain.',
      )
    )
  try:
    x = columns.rank(columns.model('strong'))
    y = columns.rank(columns.model('weak'))
  except MissingColumn:
    pass
  else:
    picture = svg.share_map(
      x,
      y,
      chosen,
      'r_s, rank under the strong model',
      'r_w, rank under the weak model',
      x_range=(0.0, 1.0),
      y_range=(0.0, 1.0),
      marks=lambda plot: plot.line([(0, 0), (1, 1)], 'zero'),
    )
    figures.append(
      markup.figure(
        'Strong against weak',
        picture,
        'Ranks of RMI inside strata. Below the diagonal the strong model sees '
        'more of the query in the answer than the weak one does: the cognitive '
        'gap.',
      )
    )
  figures.append(_lengths(columns, chosen))
  figures = [figure for figure in figures if figure]
  if not figures:
    return ''
  keys = ''.join(
    f'<svg viewBox="0 0 11 11" style="display:inline-block;width:11px;'
    f'vertical-align:-1px;margin-left:8px"><rect class="s{i}" width="11" '
    f'height="11"/></svg> {10 * i}%'
    for i in (0, 5, 10)
  )
  return (
    '<h2>Where the chosen rows lie</h2><p>The area of a cell grows with its '
    f'rows, the colour with the share chosen:{keys}.</p>'
    f'<div class="plots">{"".join(figures)}</div>'
  )


def _lengths(columns, chosen) -> str:
  """Answer lengths: a choice that is only one of length shows here."""
  for model in markup.models_of(columns):
    if not columns.has(f'n_a_{model}'):
      continue
    usable = columns.usable(model)
    length = np.where(usable, columns.length(model), np.nan)
    picture = svg.histogram(
      length, chosen, f'answer tokens of {model}', height=360
    )
    means = [
      markup.number(float(np.nanmean(length[mask])), 0)
      if np.isfinite(length[mask]).any()
      else markup.number(None)
      for mask in (usable, chosen)
    ]
    return markup.figure(
      'Answer length',
      picture,
      f'Mean {means[0]} tokens, of the chosen {means[1]}. If the two shapes '
      f'differ, compare with the rule {LENGTH_CONTROL}.',
    )
  return ''


def _strata_marks(log_ppl, rmi, stratum):
  """Draws the strata's edges and medians."""

  def draw(plot):
    used = np.flatnonzero((stratum >= 0) & np.isfinite(rmi))
    order = used[np.argsort(stratum[used], kind='stable')]
    edges = np.flatnonzero(np.diff(stratum[order])) + 1
    for index in np.split(order, edges):
      if not len(index):
        continue
      low, high = log_ppl[index].min(), log_ppl[index].max()
      low, high = np.clip([low, high], *plot.x_range)
      median = np.clip(np.median(rmi[index]), *plot.y_range)
      if len(edges) < 60:
        plot.line([(high, plot.y_range[0]), (high, plot.y_range[1])], 'edge')
      plot.line([(low, median), (high, median)], 'median')

  return draw
