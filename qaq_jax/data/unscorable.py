"""Why rows cannot be scored: counts per reason, in constant memory."""

from __future__ import annotations

import re

from qaq_jax.data.types import Sample

_NUMBER = re.compile(r'\b(?:0x[0-9a-fA-F]+|\d+)\b')  # lines, positions, bytes
_MAX_REASONS = 100  # kept apart; a reason may hold text of the row
_OTHER = 'other reasons'
_SHOWN = 8  # lines
_WIDTH = 100  # characters of a reason shown
_MANY = 0.1  # share of the rows that is worth a warning


class ReasonCounter:
  """Rows and first row of each reason; numbers in reasons don't count."""

  def __init__(self):
    self._reasons: dict[str, dict] = {}

  def add(self, sample: Sample) -> None:
    """Counts a sample, unless its status is 'ok'."""
    if sample.status == 'ok':
      return
    key = _NUMBER.sub('N', sample.reason)
    if key not in self._reasons and len(self._reasons) >= _MAX_REASONS:
      key = _OTHER
    if key in self._reasons:
      self._reasons[key]['rows'] += 1
      self._reasons[key]['reason'] = key
    else:
      # A reason of one row is shown with its numbers.
      text = key if key == _OTHER else sample.reason
      self._reasons[key] = {'reason': text, 'rows': 1, 'first': sample.row}

  def result(self) -> list[dict]:
    """Returns `reason`, `rows` and `first` (a row), most frequent first."""
    return sorted(
      self._reasons.values(), key=lambda r: (-r['rows'], r['first'])
    )


def describe(info: dict) -> list[str]:
  """Returns the lines to print about the rows that cannot be scored.

  Args:
    info: `rows`, `statuses` and `reasons`, as `prepare` returns them.
  """
  reasons = info.get('reasons', [])  # none in older folders
  shown = reasons if len(reasons) <= _SHOWN else reasons[: _SHOWN - 1]
  lines = [
    f'  {r["rows"]:,} x {_cut(r["reason"])} (first: row {r["first"]},'
    ' counted from 0)'
    for r in shown
  ]
  if rest := reasons[len(shown) :]:
    lines.append(
      f'  {sum(r["rows"] for r in rest):,} x {len(rest)} more reasons'
    )
  bad = info['rows'] - info['statuses'].get('ok', 0)
  if bad > _MANY * info['rows']:
    lines.append(
      f'! {bad:,} of {info["rows"]:,} rows ({bad / info["rows"]:.0%}) cannot '
      'be scored and will not be selected: check config.data.columns and '
      'config.data.turns against the reasons above, or the data'
    )
  return lines


def _cut(text: str) -> str:
  return text if len(text) <= _WIDTH else text[: _WIDTH - 3] + '...'
