"""What each rule lets through, for rows whose kind is known.

With labelled rows (planted defects, human verdicts) a selection can be judged
without training: the share of each kind that a rule keeps, beside what a
random draw of the same size keeps.
"""

import collections
from collections.abc import Mapping, Sequence

import numpy as np


def let_through(
  chosen: Mapping[str, np.ndarray], labels: Sequence[str]
) -> dict[str, dict[str, float]]:
  """The share of each kind of row that each rule keeps.

  Args:
    chosen: rule -> int64 numbers of the rows that it keeps.
    labels: kind of every row, in row order.

  Returns:
    rule -> kind -> share in [0, 1], kinds by falling frequency.
  """
  labels_N = np.asarray(labels, dtype=object)
  totals: collections.Counter = collections.Counter(labels)
  table = {}
  for rule, rows in chosen.items():
    kept: collections.Counter = collections.Counter(
      labels_N[np.asarray(rows, np.int64)].tolist()
    )
    table[rule] = {k: kept[k] / n for k, n in totals.most_common()}
  return table


def format_audit(
  chosen: Mapping[str, np.ndarray], labels: Sequence[str]
) -> str:
  """`let_through` as text: a line per rule, a column per kind, in percent."""
  totals = collections.Counter(labels).most_common()
  lines = [['rows in the data', *(n for _, n in totals)]]
  for rule, shares in let_through(chosen, labels).items():
    lines.append([rule, *(f'{share:.1%}' for share in shares.values())])
  return aligned([['', *(kind for kind, _ in totals)], *lines], 7)


def aligned(lines: Sequence[Sequence], least: int) -> str:
  """Lines of a table as text: names on the left, cells on the right.

  Args:
    lines: lines of the same number of cells; the first is the header.
    least: characters of a column, where its header is shorter.
  """
  first = max(len(name) for name, *_ in lines)
  widths = [max(len(str(name)), least) for name in lines[0][1:]]
  return '\n'.join(
    name.ljust(first)
    + ''.join(
      '  ' + str(c).rjust(w) for c, w in zip(cells, widths, strict=True)
    )
    for name, *cells in lines
  )
