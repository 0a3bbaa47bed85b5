"""The page's sections with tables; '' where there is nothing to show."""

import numpy as np

from qaq_jax.report import markup
from qaq_jax.selection import analyses


def head(title, report) -> str:
  """Title, what the rule kept, and the notes of the selection."""
  counts, tokens = report['counts'], report['tokens']
  budget = ', '.join(f'{k} {v:g}' for k, v in report['budget'].items())
  tiles = [
    (f'{counts["rows"]:,}', 'rows of the input'),
    (f'{counts["eligible"]:,}', 'eligible'),
    (f'{counts["kept"]:,}', 'chosen'),
    (
      markup.percent(counts['kept'], counts['eligible']),
      'of the eligible rows',
    ),
  ]
  if tokens:
    tiles.append(
      (markup.percent(tokens['kept'], tokens['eligible']), 'of their tokens')
    )
  cut = report['cut']
  if cut and cut['score'] is not None:
    tiles.append((markup.number(cut['score']), 'score at the cut'))
  notes = list(report['notes'])
  for reason, number in report['dropped'].items():
    notes.append(f'{number:,} rows left out by the rule itself: {reason}.')
  return (
    f'<h1>{markup.escape(title)}</h1>'
    f'<p class="soft">Rule <b>{markup.escape(report["rule"])}</b>: keeps '
    f'{markup.prose(report["keeps"])} [{markup.escape(report["source"])}]. '
    f'Budget: {markup.escape(budget) or "all that qualify"}. '
    f'Seed {report["seed"]}.</p>'
    '<div class="tiles">'
    + ''.join(
      f'<div class="tile"><b>{value}</b><span>{name}</span></div>'
      for value, name in tiles
    )
    + '</div>'
    + ''.join(f'<div class="note">{markup.prose(note)}</div>' for note in notes)
  )


def status(columns) -> str:
  """Rows per status and model."""
  counts = {m: columns.status_counts(m) for m in markup.models_of(columns)}
  if not counts:
    return ''
  names = list(dict.fromkeys(n for c in counts.values() for n in c))
  rows = [
    [markup.role_name(columns, model)]
    + [
      f'{found.get(name, 0):,} <span class="soft">'
      f'{markup.percent(found.get(name, 0), columns.num_rows)}</span>'
      for name in names
    ]
    for model, found in counts.items()
  ]
  return '<h2>Rows and their status</h2>' + markup.table(
    ['model', *map(markup.escape, names)], rows
  )


def strata(report) -> str:
  """The selection's table per stratum."""
  entries = report['per_stratum']
  if not entries:
    return ''
  by = report['strata']['by']
  whose = report['strata_of'] if by == 'own' else report['roles'][by]
  has_score = report['score']['name'] != '-'
  header = ['stratum', 'PPL(Q)', 'eligible', 'chosen', 'share']
  if has_score:
    header.append(f'{markup.escape(report["score"]["name"])}, chosen')
  header += [
    f'{name} tokens, {whose_rows}'
    for name in ('query', 'answer')
    for whose_rows in ('all', 'chosen')
  ]
  rows = []
  for entry in entries:
    share = entry['kept'] / entry['eligible']
    low, high = (np.exp(entry[f'log_ppl_q_{end}']) for end in ('low', 'high'))
    row = [
      entry['stratum'],
      f'{low:.3g} to {high:.3g}',
      f'{entry["eligible"]:,}',
      f'{entry["kept"]:,}',
      (
        'style="text-align:left"',
        f'<span class="bar" style="width:{share * 90:.0f}px"></span>'
        f'{share:.1%}',
      ),
    ]
    if has_score:
      row.append(
        '\u2013'
        if entry['score_low'] is None
        else f'{markup.number(entry["score_low"], 2)} to '
        f'{markup.number(entry["score_high"], 2)}'
      )
    row += [
      markup.number(entry.get(f'mean_{name}_tokens{suffix}'), 0)
      for name in ('query', 'answer')
      for suffix in ('', '_kept')
    ]
    rows.append(row)
  return (
    '<h2>Per stratum</h2><p>Strata of equal count by PPL(Q) under '
    f'{markup.escape(whose)}, 0 = lowest. Tokens are means per row.</p>'
    + markup.table(header, rows)
  )


def correlations(columns) -> str:
  """Spearman correlations between scores."""
  models = markup.models_of(columns)
  rows, ratio = [], ''
  for found in analyses.correlations(columns, models):
    paper = ''
    if found['score'] == 'IFD' and found['model'] == models[0]:
      paper = '0.252'
      ratio = (
        ' IFD is a ratio where lower means easier, so the sign and size of its '
        'correlation with RMI vary with models and data.'
      )
    rows.append(
      [
        f'RMI ({markup.role_name(columns, found["model"])})',
        f'{markup.escape(found["score"])} '
        f'({markup.role_name(columns, found["other"])})',
        markup.number(found['spearman']),
        paper,
      ]
    )
  if not rows:
    return ''
  return (
    '<h2>Rank correlations</h2><p>Spearman, over rows that have both. The '
    'paper\u2019s value is for its own data and models.'
    + ratio
    + '</p>'
    + markup.table(['of', 'with', 'Spearman', 'paper'], rows)
  )


def overlaps(columns, budget, seed) -> str:
  """How much the rules' choices have in common."""
  found, _ = analyses.select_all(columns, budget=budget, seed=seed)
  if len(found) < 2:
    return ''
  names = list(found)
  matrix = analyses.overlap({n: s.rows for n, s in found.items()}, of='first')
  rows = []
  for name, line in zip(names, matrix, strict=True):
    cells = [
      ('class="heat"', '\u2013')
      if not np.isfinite(value)
      else (
        f'class="heat" style="background:rgba(var(--heat),{0.75 * value:.2f})"',
        f'{value:.0%}',
      )
      for value in line
    ]
    rows.append([markup.escape(name), f'{len(found[name].rows):,}', *cells])
  what = ', '.join(f'{k} {v:g}' for k, v in dict(budget).items())
  return (
    f'<h2>Rules side by side</h2><p>At {markup.escape(what)}: the share of the '
    'rows that the rule on the left keeps and the rule above keeps too. Two '
    'unrelated rules at a share of 25% have 25% in common.</p>'
    + markup.table(
      ['rule', 'rows', *map(markup.escape, names)], rows, ' class="turn"'
    )
  )


def run_info(report, info) -> str:
  """Settings and fingerprints."""
  facts = {
    'strata': f'{report["strata"]["num_strata"]} by {report["strata"]["by"]}',
    'roles': ', '.join(f'{k}: {v}' for k, v in report['roles'].items()),
    'options': ', '.join(f'{k}={v}' for k, v in report['options'].items())
    or 'none',
    'rows (SHA-256)': report.get('rows_sha256', ''),
    **info,
  }
  rows = [
    [
      markup.escape(name),
      ('style="text-align:left;white-space:normal"', markup.escape(value)),
    ]
    for name, value in facts.items()
    if value != ''
  ]
  return '<h2>Run</h2>' + markup.table(['', ''], rows)
