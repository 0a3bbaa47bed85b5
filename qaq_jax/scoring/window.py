"""The rows of one window while their sequences are being scored."""

import collections
import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from qaq_jax.encoding import sequences as sequences_lib
from qaq_jax.scoring import kinds as kinds_lib
from qaq_jax.scoring.kinds import ScoreKind


def trim(
  encoded: sequences_lib.Encoded,
  spans: Collection[str],
  sequences: Collection[str] = (),
) -> sequences_lib.Encoded:
  """Drops what no kind of score reads.

  RMI alone, for one, needs no answer behind the query of the forward sequence.

  Args:
    encoded: a row.
    spans: the spans that are read.
    sequences: the sequences that are read as a whole.

  Returns:
    The row with these spans alone, sequences cut behind their last one where
    they are not read as a whole, and none that nothing reads.
  """
  kept = []
  for sequence in encoded.sequences:
    read = tuple(s for s in sequence.spans if s[0] in spans)
    ids = sequence.ids
    if sequence.kind not in sequences:
      if not read:
        continue
      ids = ids[: read[-1][2]]
    kept.append(dataclasses.replace(sequence, ids=ids, spans=read))
  return dataclasses.replace(encoded, sequences=tuple(kept))


@dataclasses.dataclass
class Window:
  """A window's sequences, then its columns.

  Attributes:
    index: its number.
    rows: its rows.
    encoded: one entry per row.
    batches: the batches of its sequences.
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
    self._numbers = {kind.result for kind in self.kinds if kind.column}
    # Span or whole sequence -> (kind, result) of those that read it.
    self._readers = collections.defaultdict(list)
    for kind in self.kinds:
      self._readers[kind.sequence or kind.tokens].append(
        (kind.name, kind.result)
      )

  def sequence(self, row: int, slot: int) -> sequences_lib.Sequence:
    """The sequence that a row of a batch holds."""
    return self.encoded[row - self.rows.start].sequences[slot]

  def add(self, batch, results: Mapping[str, np.ndarray]) -> None:
    """Takes what the scoring program gave for one batch."""
    numbers = {name: results[name].tolist() for name in self._numbers}
    for b, (row, slot) in enumerate(
      zip(batch.row_B.tolist(), batch.slot_B.tolist(), strict=True)
    ):
      if row < 0:
        continue
      sequence = self.sequence(row, slot)
      for s, (span, start, stop) in enumerate(sequence.spans):
        for name, result in self._readers[span]:
          if (row, name) in self._found:
            raise ValueError(f'row {row}: term {name} was scored twice')
          self._found[row, name] = numbers[result][b][s], stop - start
      for _, result in self._readers[sequence.kind]:
        self._embeddings[row] = results[result][b]
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
      for name, dtype in kinds_lib.columns(stored).items()
    }
    # Masked arrays take a microsecond for each item, plain ones none.
    cells = {name: (c.data, c.mask) for name, c in columns.items()}
    status, reason = [], []
    for i, encoded in enumerate(self.encoded):
      found = [
        (kind, *self._found[encoded.row, kind.name])
        for kind in self.kinds
        if (encoded.row, kind.name) in self._found
      ]
      self._check(encoded, found)
      broken = [k for k, value, _ in found if not math.isfinite(value)]
      if broken:
        status.append('non_finite')
        reason.append(f'{_names(broken)} is not finite')
        self._embeddings.pop(encoded.row, None)
        continue
      status.append(encoded.status)
      reason.append(_reason(encoded))
      for kind, value, count in found:
        for name, number in ((kind.column, value), (kind.count, count)):
          if name:
            data, mask = cells[name]
            data[i], mask[i] = number, False
    columns = {f'{name}_{model}': c for name, c in columns.items()}
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
      name
      for sequence in encoded.sequences
      for span, _, _ in sequence.spans
      for name, _ in self._readers[span]
    }
    wanted -= {kind.name for kind, _, _ in found}
    if wanted:
      raise ValueError(f'row {encoded.row}: {sorted(wanted)} was not scored')
    counts: dict[str, int] = {}
    for kind, _, count in found:
      if kind.count and counts.setdefault(kind.count, count) != count:
        raise ValueError(
          f'row {encoded.row}: the terms of {kind.count} are over '
          f'{counts[kind.count]} and {count} tokens'
        )


def _names(kinds) -> str:
  """Likelihoods by their names, in the words of parts of before."""
  sums = [k.name for k in kinds if k.reduce is kinds_lib.nll]
  others = [k.column for k in kinds if k.reduce is not kinds_lib.nll]
  return ', '.join([f'nll of {", ".join(sums)}'] * bool(sums) + others)


def _reason(encoded) -> str:
  if encoded.reason or not encoded.sequences:
    return encoded.reason
  return '; '.join(f'{t}: {why}' for t, why in sorted(encoded.nulls.items()))
