"""The rows of one window while their sequences are being scored."""

import collections
import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from qaq_jax.encoding import sequences as sequences_lib
from qaq_jax.scoring import kinds as kinds_lib
from qaq_jax.scoring.kinds import ScoreKind


def trim(
  encoded: sequences_lib.Encoded, kinds: Sequence[ScoreKind]
) -> sequences_lib.Encoded:
  """Drops what the kinds don't need.

  RMI alone, for one, needs no answer behind the query of the forward sequence.

  Args:
    encoded: a row.
    kinds: what is wanted of it.

  Returns:
    The row with the spans that the kinds read alone, sequences cut behind
    their last one where none reads them whole, and none that nothing reads.
  """
  tokens = {k.tokens for k in kinds}
  whole = {k.sequence for k in kinds}
  kept = []
  for sequence in encoded.sequences:
    spans = tuple(s for s in sequence.spans if s[0] in tokens)
    ids = sequence.ids
    if sequence.kind not in whole:
      if not spans:
        continue
      ids = ids[: spans[-1][2]]
    kept.append(dataclasses.replace(sequence, ids=ids, spans=spans))
  return dataclasses.replace(encoded, sequences=tuple(kept))


@dataclasses.dataclass
class Window:
  """A window's sequences, then its columns.

  Attributes:
    index: its number.
    rows: its rows.
    encoded: one entry per row.
    batches: of its sequences.
    kinds: what is computed.
    pending: batches whose results aren't in yet.
  """

  index: int
  rows: range
  encoded: Sequence[sequences_lib.Encoded]
  batches: Sequence
  kinds: Sequence[ScoreKind]

  def __post_init__(self):
    self.pending = len(self.batches)
    self._found = {}  # (row, kind) -> (number, tokens)
    self._embeddings = {}  # row -> [D]
    self._readers = collections.defaultdict(list)  # span or sequence -> kinds
    for kind in self.kinds:
      self._readers[kind.sequence or kind.tokens].append(kind)

  def sequence(self, row: int, slot: int) -> sequences_lib.Sequence:
    """The sequence that a row of a batch holds."""
    return self.encoded[row - self.rows.start].sequences[slot]

  def add(self, batch, results: Mapping[str, np.ndarray]) -> None:
    """Takes what the scoring program gave for one batch."""
    for b, (row, slot) in enumerate(
      zip(batch.row_B.tolist(), batch.slot_B.tolist(), strict=True)
    ):
      if row < 0:
        continue
      sequence = self.sequence(row, slot)
      for s, (span, start, stop) in enumerate(sequence.spans):
        for kind in self._readers[span]:
          if (row, kind.name) in self._found:
            raise ValueError(f'row {row}: term {kind.name} was scored twice')
          value = results[kind.result][b, s].item()
          self._found[row, kind.name] = value, stop - start
      for kind in self._readers[sequence.kind]:
        self._embeddings[row] = results[kind.result][b]
    self.pending -= 1

  def columns(self, model: str, stored: Sequence[ScoreKind]):
    """Columns, statuses and reasons of the rows, in order.

    A row with a number that isn't finite is `non_finite` and null throughout.

    Args:
      model: name in the columns.
      stored: the kinds that have a column; null where not computed.

    Returns:
      name -> masked array, list of statuses, list of reasons.

    Raises:
      ValueError: a row's term was neither scored nor declared null.
    """
    columns = {
      name: np.ma.masked_all(len(self.rows), dtype)
      for name, dtype in kinds_lib.columns(model, stored).items()
    }
    status, reason = [], []
    for i, encoded in enumerate(self.encoded):
      found = [
        (kind, *self._found[encoded.row, kind.name])
        for kind in self.kinds
        if (encoded.row, kind.name) in self._found
      ]
      self._check(encoded, found)
      broken = [k.tokens for k, value, _ in found if not np.isfinite(value)]
      if broken:
        status.append('non_finite')
        shown = ', '.join(dict.fromkeys(broken))
        reason.append(f'nll of {shown} is not finite')
        self._embeddings.pop(encoded.row, None)
        continue
      status.append(encoded.status)
      reason.append(_reason(encoded))
      for kind, value, count in found:
        columns[kind.column_of(model)][i] = value
        if kind.count:
          columns[kind.count_of(model)][i] = count
    return columns, status, reason

  def embeddings(self, size: int) -> np.ndarray:
    """Embeddings of the rows, float16 [rows, size], NaN where there is none."""
    result = np.full((len(self.rows), size), np.nan, np.float16)
    for row, vector in self._embeddings.items():
      result[row - self.rows.start] = vector
    return result

  def _check(self, encoded, found):
    """Refuses a row with a term too few, or over other tokens than its like."""
    wanted = {
      kind.name
      for sequence in encoded.sequences
      for span, _, _ in sequence.spans
      for kind in self._readers[span]
    }
    missing = sorted(wanted - {kind.name for kind, _, _ in found})
    if missing:
      raise ValueError(f'row {encoded.row}: {missing} was not scored')
    counts = {}
    for kind, _, count in found:
      if kind.count and counts.setdefault(kind.count, count) != count:
        raise ValueError(
          f'row {encoded.row}: the terms of {kind.count} are over '
          f'{counts[kind.count]} and {count} tokens'
        )


def _reason(encoded) -> str:
  if encoded.reason or not encoded.sequences:
    return encoded.reason
  return '; '.join(f'{t}: {why}' for t, why in sorted(encoded.nulls.items()))
