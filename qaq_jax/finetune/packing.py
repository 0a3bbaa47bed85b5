"""Several sequences into one row."""

from collections.abc import Sequence

import numpy as np


def first_fit_decreasing(
  lengths: Sequence[int], capacity: int
) -> list[list[int]]:
  """Puts sequences into as few rows as first-fit decreasing finds.

  Longest first, each into the first row that still has room: at most 11/9 of
  the best number of rows, plus 1 (Johnson 1973).

  Args:
    lengths: tokens of each sequence.
    capacity: tokens of a row.

  Returns:
    Rows of indices into `lengths`, every index once. A function of the lengths
    alone: equal lengths keep their order.

  Raises:
    ValueError: a sequence is longer than a row.
  """
  lengths = np.asarray(lengths, np.int64)
  if len(lengths) and lengths.max() > capacity:
    raise ValueError(
      f'a sequence of {lengths.max()} tokens does not fit into rows of '
      f'{capacity}'
    )
  room = np.full(len(lengths), capacity, np.int64)
  rows: list[list[int]] = []
  for index in np.argsort(-lengths, kind='stable'):
    row = int(np.argmax(room >= lengths[index]))
    if row >= len(rows):
      rows.append([])
    rows[row].append(int(index))
    room[row] -= lengths[index]
  return rows
