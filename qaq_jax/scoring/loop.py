"""Windows through the device: one batch in flight, one being fetched."""

import contextlib
from collections.abc import Callable, Iterable, Sequence

import jax
import numpy as np

from qaq_jax.runtime import progress
from qaq_jax.scoring import batching
from qaq_jax.scoring import kinds as kinds_lib
from qaq_jax.scoring import programs as programs_lib
from qaq_jax.scoring.window import Window


class BatchOutOfMemory(Exception):
  """A batch did not fit although its compiled program should have."""

  def __init__(self, window: Window, batch):
    super().__init__()
    self.window, self.batch = window, batch

  @property
  def shape(self) -> tuple[int, int]:
    """(rows, length) of the batch."""
    return self.batch.tokens_BT.shape

  @property
  def longest_row(self) -> int:
    """Input row of the longest sequence in it."""
    return int(self.batch.row_B[int(np.argmax(self.batch.lengths_B))])


def make_windows(
  encode: Callable[[int, int], list],
  parts,
  plan: batching.BatchPlan,
  todo: Sequence[int],
  kinds: Sequence[kinds_lib.ScoreKind],
) -> Iterable[Window]:
  """Reads, tokenizes and batches windows, one after the other.

  Args:
    encode: first and last + 1 row -> `Encoded` of each.
    parts: the `ScoreStore`.
    plan: the shapes.
    todo: windows, in order.
    kinds: what is computed.
  """
  for index in todo:
    rows = parts.window(index)
    encoded = encode(rows.start, rows.stop)
    batches = batching.make_batches(
      [
        (row.row, slot, sequence)
        for row in encoded
        for slot, sequence in enumerate(row.sequences)
      ],
      plan,
    )
    yield Window(index, rows, encoded, batches, kinds)


def run_windows(
  windows: Iterable[Window],
  programs: programs_lib.Programs,
  finish: Callable[[Window], None],
  bar: progress.Progress,
) -> None:
  """Scores windows in order.

  A batch is started before the results of the one before it are fetched, so
  the device never waits for the host.

  Args:
    windows: the windows to score.
    programs: compiled for every shape of their batches.
    finish: writes a window whose results are all in.
    bar: counts tokens and rows.

  Raises:
    BatchOutOfMemory: names the batch; what was finished stays finished.
  """
  flying = None
  with contextlib.closing(progress.ahead(windows)) as ready:
    for window in bar.waiting(ready):
      if not window.pending:
        if flying is not None:  # windows are finished in order
          _land(flying, finish, bar)
          flying = None
        finish(window)
        bar.add_rows(len(window.rows))
      for batch in window.batches:
        with _naming(window, batch):
          results = programs.run(
            batch.tokens_BT, batch.spans_B22, batch.lengths_B
          )
        if flying is not None:
          _land(flying, finish, bar)
        flying = window, batch, results
    if flying is not None:
      _land(flying, finish, bar)


def _land(flying, finish, bar):
  """Fetches the results of a batch, and finishes its window if it can."""
  window, batch, results = flying
  with _naming(window, batch):
    results = {k: np.asarray(v) for k, v in jax.device_get(results).items()}
  window.add(batch, results)
  if not window.pending:
    finish(window)
    bar.add_rows(len(window.rows))
  bar.add_batch(int(batch.lengths_B.sum()), batch.tokens_BT.size)


class _naming:  # noqa: N801  (used like a function)
  """Turns an out-of-memory error into one that knows its batch."""

  def __init__(self, window, batch):
    self._where = window, batch

  def __enter__(self):
    return self

  def __exit__(self, kind, error, trace):
    if isinstance(
      error, jax.errors.JaxRuntimeError | programs_lib.OutOfMemory
    ) and programs_lib.is_out_of_memory(error):
      raise BatchOutOfMemory(*self._where) from error
    return False
