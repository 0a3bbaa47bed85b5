"""Lengths of a data set's sequences, for planning."""

from collections.abc import Callable

import numpy as np

from qaq_jax.scoring import parts, planning
from qaq_jax.workdir.layout import WorkDir

_BLOCK = 64  # neighbouring rows that are read together


def stored(workdir: WorkDir, model: str) -> dict | None:
  """The survey that a scoring run of `model` left in the work directory."""
  return parts.read_plan(workdir.parts(model)).get('survey')


def blocks(num_rows: int, most: int) -> list[tuple[int, int]]:
  """First and last + 1 rows to read of so many; at most about `most`."""
  if num_rows <= most:
    return [(0, num_rows)]
  size = min(_BLOCK, num_rows)
  starts = np.linspace(0, num_rows - size, max(most // _BLOCK, 1)).astype(int)
  return [(int(start), int(start) + size) for start in starts]


def sampled(
  num_rows: int, encode: Callable[[int, int], list], most: int
) -> dict:
  """Surveys some rows, and scales the counts to all of them.

  Args:
    num_rows: the number of rows of the input.
    encode: first and last + 1 row -> `Encoded` of each.
    most: rows to read at most, in blocks spread evenly over the input.

  Returns:
    As `planning.survey`, with `surveyed`: the rows that were read.
  """
  found = planning.survey(encode(*block) for block in blocks(num_rows, most))
  if found['rows'] == num_rows:
    return found | {'surveyed': num_rows}
  scale = num_rows / found['rows']
  for name in ('sequences', 'tokens', 'scored_tokens'):
    found[name] = round(found[name] * scale)
  for name in ('lengths', 'statuses'):
    found[name] = {k: round(n * scale) for k, n in found[name].items()}
  return found | {'surveyed': found['rows'], 'rows': num_rows}
