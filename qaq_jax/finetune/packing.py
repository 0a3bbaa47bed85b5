"""Several sequences into one row."""

import numpy as np
import numpy.typing as npt


def first_fit_decreasing(
  lengths: npt.ArrayLike, capacity: int
) -> list[list[int]]:
  """Puts sequences into as few rows as first-fit decreasing finds.

  Longest first, each into the first row that still has room: at most 11/9 of
  the best number of rows, plus 1 (Johnson 1973).

  Args:
    lengths: tokens of each sequence, [S].
    capacity: tokens of a row.

  Returns:
    Rows of indices into `lengths`, every index once. A function of the lengths
    alone: equal lengths keep their order.

  Raises:
    ValueError: a sequence is longer than a row.
  """
  lengths_S = np.asarray(lengths, np.int64)
  if len(lengths_S) and lengths_S.max() > capacity:
    raise ValueError(
      f'a sequence of {lengths_S.max()} tokens does not fit into rows of '
      f'{capacity}'
    )
  room = np.full(len(lengths_S), capacity, np.int64)
  rows: list[list[int]] = []
  for index in np.argsort(-lengths_S, kind='stable'):
    row = int(np.argmax(room >= lengths_S[index]))
    if row >= len(rows):
      rows.append([])
    rows[row].append(int(index))
    room[row] -= lengths_S[index]
  return rows
