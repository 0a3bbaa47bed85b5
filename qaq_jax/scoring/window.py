"""The rows of one window while their sequences are being scored."""

import dataclasses
from collections.abc import Collection, Sequence

import numpy as np

from qaq_jax.encoding import sequences as sequences_lib
from qaq_jax.scoring import metrics


def trim(
  encoded: sequences_lib.Encoded,
  terms: Collection[str],
  embeddings: bool = False,
) -> sequences_lib.Encoded:
  """Drops what the wanted terms don't need.

  RMI alone, for one, needs no answer behind the query of the forward sequence.

  Args:
    encoded: a row.
    terms: terms that are wanted.
    embeddings: whether forward sequences are pooled, so wanted whole.

  Returns:
    The row with the spans of the wanted terms alone, sequences cut behind
    their last one, and none that has none.
  """
  kept = []
  for sequence in encoded.sequences:
    spans = tuple(s for s in sequence.spans if s[0] in terms)
    ids = sequence.ids
    if not (embeddings and sequence.kind == 'forward'):
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
    pending: batches whose results aren't in yet.
  """

  index: int
  rows: range
  encoded: Sequence[sequences_lib.Encoded]
  batches: Sequence

  def __post_init__(self):
    self.pending = len(self.batches)
    self._nll = {}  # (row, term) -> (nats, tokens)
    self._embeddings = {}  # row -> [D]

  def sequence(self, row: int, slot: int) -> sequences_lib.Sequence:
    """The sequence that a row of a batch holds."""
    return self.encoded[row - self.rows.start].sequences[slot]

  def add(
    self, batch, nll_BS: np.ndarray, embedding_BD: np.ndarray | None = None
  ) -> None:
    """Takes the results of one batch."""
    for b, (row, slot) in enumerate(
      zip(batch.row_B.tolist(), batch.slot_B.tolist(), strict=True)
    ):
      if row < 0:
        continue
      sequence = self.sequence(row, slot)
      for s, (term, start, stop) in enumerate(sequence.spans):
        if (row, term) in self._nll:
          raise ValueError(f'row {row}: term {term} was scored twice')
        self._nll[row, term] = float(nll_BS[b, s]), stop - start
      if embedding_BD is not None and sequence.kind == 'forward':
        self._embeddings[row] = embedding_BD[b]
    self.pending -= 1

  def columns(self, model: str, terms: Sequence[str]):
    """Columns, statuses and reasons of the rows, in order.

    A row with a sum that isn't finite is `non_finite` and null throughout.

    Returns:
      name -> masked array, list of statuses, list of reasons.

    Raises:
      ValueError: a row's term was neither scored nor declared null.
    """
    size = len(self.rows)
    columns = {}
    for term in terms:
      columns[metrics.nll_column(term, model)] = np.ma.masked_all(
        size, np.float32
      )
      columns[metrics.count_column(term, model)] = np.ma.masked_all(
        size, np.int32
      )
    status, reason = [], []
    for i, encoded in enumerate(self.encoded):
      found = {
        term: self._nll[encoded.row, term]
        for term in terms
        if (encoded.row, term) in self._nll
      }
      self._check(encoded, found)
      broken = [t for t, (nll, _) in found.items() if not np.isfinite(nll)]
      if broken:
        status.append('non_finite')
        reason.append(f'nll of {", ".join(broken)} is not finite')
        self._embeddings.pop(encoded.row, None)
        continue
      status.append(encoded.status)
      reason.append(_reason(encoded))
      for term, (nll, count) in found.items():
        columns[metrics.nll_column(term, model)][i] = nll
        columns[metrics.count_column(term, model)][i] = count
    return columns, status, reason

  def embeddings(self, size: int) -> np.ndarray:
    """Embeddings of the rows, float16 [rows, size], NaN where there is none."""
    result = np.full((len(self.rows), size), np.nan, np.float16)
    for row, vector in self._embeddings.items():
      result[row - self.rows.start] = vector
    return result

  def _check(self, encoded, found):
    wanted = {t for s in encoded.sequences for t, _, _ in s.spans}
    if wanted - set(found):
      raise ValueError(
        f'row {encoded.row}: {sorted(wanted - set(found))} was not scored'
      )
    shared = 'a' in found and 'a_given_q' in found
    if shared and found['a'][1] != found['a_given_q'][1]:
      raise ValueError(
        f'row {encoded.row}: the terms of the answer are over '
        f'{found["a"][1]} and {found["a_given_q"][1]} tokens'
      )


def _reason(encoded) -> str:
  if encoded.reason or not encoded.sequences:
    return encoded.reason
  return '; '.join(f'{t}: {why}' for t, why in sorted(encoded.nulls.items()))
