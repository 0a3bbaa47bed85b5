"""Rows as the scorer wants them: encoded, with what the kinds need alone."""

from collections.abc import Iterable, Sequence

from qaq_jax.scoring import kinds as kinds_lib
from qaq_jax.scoring.window import trim

_ROWS = 1024  # tokenized at a time where all rows are read


class Source:
  """Encoded rows by row range, trimmed to what the kinds need."""

  def __init__(self, samples, encoder, kinds: Sequence[kinds_lib.ScoreKind]):
    self._samples, self._encoder = samples, encoder
    self._spans = {k.tokens for k in kinds}
    self._sequences = {k.sequence for k in kinds}
    offered = {k.tokens for k in kinds_lib.offered(encoder.options)}
    self._trim = self._spans != offered

  def encode(self, start: int, stop: int) -> list:
    """Encodes rows `start` to `stop - 1`."""
    rows = self._encoder.encode(list(self._samples.iter_rows(start, stop)))
    if not self._trim:
      return rows
    return [trim(row, self._spans, self._sequences) for row in rows]

  def all(self) -> Iterable[list]:
    """All rows, a list at a time."""
    for start in range(0, self._samples.num_rows, _ROWS):
      yield self.encode(start, min(start + _ROWS, self._samples.num_rows))
