"""What was kept and why: the report of a selection, and its printed form."""

import hashlib
import textwrap

import numpy as np

from qaq_jax.selection import budget as budget_lib
from qaq_jax.selection.facts import Facts


def build(asked, facts: Facts, rows) -> dict:
  """Builds the report of a selection (JSON-serialisable).

  Args:
    asked: the Request.
    facts: what was measured.
    rows: int64, the chosen rows' keys, ascending.
  """
  rule, kept = asked.rule, len(rows)
  limit = asked.budget.limit(facts.eligible)
  # Where a rule picks, no hash draws the line: the key of ties stands there.
  stream = budget_lib.TIES if facts.picked else rule.stream
  report = {
    'rule': rule.name,
    'keeps': rule.keeps,
    'source': rule.source,
    'options': {
      name: value
      if isinstance(value, str | int | float)
      else f'array {np.shape(value)}'
      for name, value in asked.options.items()
      if value is not None
    },
    'budget': asked.budget.given(),
    'budget_is_default': asked.budget_is_default,
    'target_rows': limit,
    'seed': asked.seed,
    'hash_key': budget_lib.hash_key(asked.seed, stream),
    'roles': dict(facts.roles),
    'strata': {'num_strata': facts.num_strata, 'by': facts.by},
    'include_truncated': facts.include_truncated,
    'eligible_under': list(facts.models),
    'status': facts.status,
    'counts': {
      'rows': facts.rows,
      'eligible': facts.eligible,
      'candidates': facts.candidates,
      'kept': kept,
    },
    'dropped': facts.dropped,
    'share_of_eligible': kept / facts.eligible if facts.eligible else None,
    'score': {'name': rule.score, **facts.score},
    'cut': _cut(rule, facts),
    'ran_short': limit is not None and kept < limit,
    'tokens': facts.tokens,
    'strata_of': facts.strata_of,
    'per_stratum': facts.per_stratum,
    'rows_sha256': hashlib.sha256(rows.astype('<i8')).hexdigest(),
  }
  if facts.engine:
    report['engine'] = facts.engine
  report['notes'] = _notes(asked, facts, report)
  return report


def _cut(rule, facts):
  if facts.cut is None or rule.score == '-':
    return None
  last, tied, tied_kept = facts.cut
  return {
    'score': last if rule.highest or last is None else -last,
    'tied': tied,
    'tied_kept': tied_kept,
  }


def _notes(asked, facts, report):
  """Sentences that a user should read."""
  notes, cut = list(facts.notes), report['cut']
  kept = report['counts']['kept']
  if not facts.eligible:
    under = ' and '.join(facts.models) or 'no model'
    notes.append(f'No row is eligible (status ok under {under}).')
  if report['ran_short']:
    notes.append(
      f'Ran short: {kept:,} of the {report["target_rows"]:,} rows asked for; '
      'the rule has no more, and nothing else is filled in.'
    )
  if asked.budget.threshold is not None:
    if not kept:
      notes.append(_nothing_beyond(asked, facts))
  elif cut and cut['tied_kept'] < cut['tied']:
    notes.append(
      f'{cut["tied"]:,} rows tie at the cut; the hash of `row` under seed '
      f'{asked.seed} kept {cut["tied_kept"]:,} of them.'
    )
  return notes


def _nothing_beyond(asked, facts):
  """The note where no candidate is beyond the threshold."""
  threshold = asked.budget.threshold
  side = 'above' if asked.rule.highest else 'below'
  text = f'Nothing is {side} the threshold {threshold:g}'
  low, high = facts.candidate_scores
  if low is not None and low == high == 0 and asked.rule.all_zero:
    text += f': {asked.rule.all_zero}'
  elif low is not None:
    text += (
      f': the scores of {facts.candidates:,} rows lie in {low:g} to {high:g}'
    )
  return text + '. Selected nothing.'


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
    report: the report of a Selection.
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
