"""What was kept and why: the report of a selection, and its printed form."""

import textwrap

import numpy as np

from qaq_jax.selection import budget as budget_lib
from qaq_jax.selection import columns as columns_lib


def _number(value):
  """A float for JSON: None instead of NaN or infinity."""
  return float(value) if value is not None and np.isfinite(value) else None


def _mean(values):
  values = values[np.isfinite(values)]
  return _number(values.mean()) if len(values) else None


def _span(values):
  values = values[np.isfinite(values)]
  if not len(values):
    return None, None
  return _number(values.min()), _number(values.max())


def build(
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
):
  """Builds the report of `select` (JSON-serialisable; see there)."""
  num_eligible, num_kept = int(eligible.sum()), int(chosen.sum())
  limit = budget.limit(num_eligible)
  counts = {
    'rows': table.num_rows,
    'eligible': num_eligible,
    'candidates': int(candidate.sum()),
    'kept': num_kept,
  }
  low, high = _span(found.score_N[chosen])
  scored = found.picks is None and found.order_N is None and rule.score != '-'
  report = {
    'rule': rule.name,
    'keeps': rule.keeps,
    'source': rule.source,
    'options': {
      name: value if _is_plain(value) else f'array {np.shape(value)}'
      for name, value in options.items()
      if value is not None
    },
    'budget': budget.given(),
    'budget_is_default': default_budget,
    'target_rows': limit,
    'seed': seed,
    'hash_key': budget_lib.hash_key(seed, found.stream),
    'roles': dict(table.roles),
    'strata': {'num_strata': table.num_strata, 'by': table.by},
    'include_truncated': table.include_truncated,
    'eligible_under': list(models),
    'status': {model: table.status_counts(model) for model in models},
    'counts': counts,
    'dropped': dropped,
    'share_of_eligible': _number(num_kept / num_eligible)
    if num_eligible
    else None,
    'score': {
      'name': rule.score,
      'kept_low': low,
      'kept_high': high,
      'kept_mean': _mean(found.score_N[chosen]),
      'eligible_mean': _mean(found.score_N[eligible]),
    },
    'cut': {
      'score': cut.last if rule.highest or cut.last is None else -cut.last,
      'tied': cut.tied,
      'tied_kept': cut.tied_kept,
    }
    if scored
    else None,
    'ran_short': limit is not None and num_kept < limit,
  }
  report['tokens'] = _tokens(table, models, eligible, chosen)
  report['strata_of'], report['per_stratum'] = _per_stratum(
    table, models, eligible, chosen, found.score_N
  )
  report['notes'] = _notes(report, table, rule, budget, found, candidate)
  return report


def _is_plain(value):
  return isinstance(value, (str, int, float, bool))


def _notes(report, table, rule, budget, found, candidate):
  """Sentences that a user should read."""
  notes = list(found.notes)
  counts = report['counts']
  if not counts['eligible']:
    notes.append(nobody(report))
  if report['ran_short']:
    notes.append(ran_short(report))
  if budget.threshold is not None and not counts['kept']:
    side = 'above' if rule.highest else 'below'
    text = f'Nothing is {side} the threshold {budget.threshold:g}'
    score = found.score_N[candidate]
    if len(score) and rule.score == 'r_s - r_w' and not np.any(score):
      text += (
        ': the strong and the weak model rank every row alike (the same '
        'model twice?)'
      )
    elif len(score):
      low, high = score.min(), score.max()
      text += f': the scores of {len(score):,} rows lie in {low:g} to {high:g}'
    notes.append(text + '. Selected nothing.')
  cut = report['cut']
  if cut and budget.threshold is None and cut['tied_kept'] < cut['tied']:
    notes.append(ties(report))
  return notes


def nobody(report) -> str:
  """The note where no row is eligible."""
  under = ' and '.join(report['eligible_under']) or 'no model'
  return f'No row is eligible (status ok under {under}).'


def ran_short(report) -> str:
  """The note where the rule has fewer rows than the budget asks for."""
  return (
    f'Ran short: {report["counts"]["kept"]:,} of the '
    f'{report["target_rows"]:,} rows asked for; the rule has no more, and '
    'nothing else is filled in.'
  )


def ties(report) -> str:
  """The note where not all rows of the same score were kept."""
  return (
    f'{report["cut"]["tied"]:,} rows tie at the cut; the hash of `row` under '
    f'seed {report["seed"]} kept {report["cut"]["tied_kept"]:,} of them.'
  )


def _tokens(table, models, eligible, chosen):
  """Tokens of query and answer, in all eligible and in the kept rows."""
  for model in models:
    if table.has(f'n_q_{model}') and table.has(f'n_a_{model}'):
      tokens = np.nan_to_num(table.tokens(model))
      return {
        'model': model,
        'eligible': int(tokens[eligible].sum()),
        'kept': int(tokens[chosen].sum()),
      }
  return None


def _per_stratum(table, models, eligible, chosen, score):
  """One dict per stratum of the first model that has strata."""
  for model in models:
    try:
      stratum = table.stratum(model)
      log_ppl = table.log_ppl_q(
        model if table.by == 'own' else table.model(table.by)
      )
    except columns_lib.MissingColumn:
      continue
    lengths = {
      'query': table.length(model, 'q') if table.has(f'n_q_{model}') else None,
      'answer': table.length(model, 'a') if table.has(f'n_a_{model}') else None,
    }
    # Sorted once, so that a stratum is a slice: no pass per stratum.
    index = np.flatnonzero(eligible & (stratum >= 0))
    order = index[
      np.argsort(
        stratum[index].astype(np.int16, copy=False)
        if table.num_strata < 2**15
        else stratum[index],
        kind='stable',
      )
    ]
    edges = np.searchsorted(stratum[order], np.arange(table.num_strata + 1))
    out = []
    for k in range(table.num_strata):
      rows = order[edges[k] : edges[k + 1]]
      if not len(rows):
        continue
      kept = rows[chosen[rows]]
      ppl_low, ppl_high = _span(log_ppl[rows])
      low, high = _span(score[kept])
      entry = {
        'stratum': k,
        'log_ppl_q_low': ppl_low,
        'log_ppl_q_high': ppl_high,
        'eligible': len(rows),
        'kept': len(kept),
        'score_low': low,
        'score_high': high,
      }
      for name, length in lengths.items():
        if length is not None:
          entry[f'mean_{name}_tokens'] = _mean(length[rows])
          entry[f'mean_{name}_tokens_kept'] = _mean(length[kept])
      out.append(entry)
    return model, out
  return None, []


def _cell(value, digits=3):
  if value is None:
    return '-'
  if isinstance(value, float):
    return f'{value:.{digits}f}'
  return f'{value:,}'


def _percent(part, whole):
  return f'{part / whole:.1%}' if whole else '-'


def _table(header, rows):
  """Right-aligned columns, two spaces between."""
  widths = [
    max(len(str(r[i])) for r in [header, *rows]) for i in range(len(header))
  ]
  lines = [
    '  '.join(str(c).rjust(w) for c, w in zip(r, widths, strict=True))
    for r in [header, *rows]
  ]
  return [lines[0], '-' * len(lines[0]), *lines[1:]]


def format_selection(report, width: int = 100) -> str:
  """The report as text: what was kept and why, per stratum.

  Args:
    report: of a Selection.
    width: columns of the console; lines are not longer.
  """
  counts = report['counts']
  lines = [
    f'Rule {report["rule"]}: keeps {report["keeps"]} [{report["source"]}]'
  ]
  if report['options']:
    lines.append(
      'Options: '
      + ', '.join(
        f'{name}={value}' for name, value in report['options'].items()
      )
    )
  for model, status in report['status'].items():
    lines.append(
      f'Status under {model}: '
      + ', '.join(f'{name} {number:,}' for name, number in status.items())
    )
  under = ' and '.join(report['eligible_under']) or 'no model needed'
  truncated = ' or truncated' if report['include_truncated'] else ''
  lines.append(
    f'Rows {counts["rows"]:,}; eligible (ok{truncated} under '
    f'{under}) {counts["eligible"]:,}'
  )
  for reason, number in report['dropped'].items():
    lines.append(f'Left out by the rule itself: {number:,} ({reason})')
  lines += _budget_lines(report)
  if report['score']['kept_low'] is not None and report['score']['name'] != '-':
    score = report['score']
    lines.append(
      f'Score {score["name"]}: kept {_cell(score["kept_low"])} to '
      f'{_cell(score["kept_high"])}, mean {_cell(score["kept_mean"])} '
      f'(all eligible: {_cell(score["eligible_mean"])})'
    )
  wrapped = []
  for line in lines:
    wrapped += textwrap.wrap(line, width, subsequent_indent='  ') or ['']
  for note in report['notes']:
    wrapped += textwrap.wrap(
      note, width, initial_indent='! ', subsequent_indent='  '
    )
  if report['per_stratum']:
    wrapped += ['', *_stratum_lines(report)]
  return '\n'.join(wrapped)


def _budget_lines(report):
  counts, tokens = report['counts'], report['tokens']
  budget = ', '.join(
    f'{name} {value:g}' if isinstance(value, float) else f'{name} {value:,}'
    for name, value in report['budget'].items()
  )
  line = f'Budget: {budget or "all that qualify"}'
  if report['budget_is_default']:
    line += " (the rule's own default)"
  if report['target_rows'] is not None:
    line += f' = {report["target_rows"]:,} rows'
  kept = (
    f'Kept {counts["kept"]:,} rows, '
    f'{_percent(counts["kept"], counts["eligible"])} of the eligible'
  )
  if tokens:
    kept += (
      f'; {tokens["kept"]:,} of {tokens["eligible"]:,} tokens '
      f'({_percent(tokens["kept"], tokens["eligible"])}, '
      f'{tokens["model"]})'
    )
  return [line, kept]


def _stratum_lines(report):
  """One line per stratum; the kept rows' means beside all rows' means."""
  by = report['strata']['by']
  whose = report['strata_of'] if by == 'own' else report['roles'][by]
  header = (
    'stratum',
    'PPL(Q)',
    'eligible',
    'kept',
    'share',
    'score kept',
    'query tok',
    'kept',
    'answer tok',
    'kept',
  )
  rows = []
  for entry in report['per_stratum']:
    low, high = (np.exp(entry[f'log_ppl_q_{end}']) for end in ('low', 'high'))
    score = '-'
    if entry['score_low'] is not None and report['score']['name'] != '-':
      score = f'{entry["score_low"]:.2f}..{entry["score_high"]:.2f}'
    lengths = [
      _cell(entry.get(f'mean_{name}_tokens{suffix}'), 0)
      for name in ('query', 'answer')
      for suffix in ('', '_kept')
    ]
    rows.append(
      (
        entry['stratum'],
        f'{low:.3g}..{high:.3g}',
        f'{entry["eligible"]:,}',
        f'{entry["kept"]:,}',
        _percent(entry['kept'], entry['eligible']),
        score,
        *lengths,
      )
    )
  title = (
    f'Strata by PPL(Q) under {whose}, 0 = lowest; mean tokens of all '
    'eligible rows, then of the kept'
  )
  return [title, *_table(header, rows)]
