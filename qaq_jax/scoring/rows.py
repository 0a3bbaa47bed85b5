"""Rows as the scorer wants them: encoded, with the wanted terms alone."""

from collections.abc import Collection, Iterable

from qaq_jax.scoring import metrics
from qaq_jax.scoring.window import trim

_ROWS = 1024  # tokenized at a time where all rows are read


def offered_terms(encoder) -> tuple[str, ...]:
  """Terms that an encoder's options offer, in the order of the columns."""
  offers = encoder.fingerprint()['options']
  return (
    *metrics.SHARED_TERMS,
    *(metrics.CHERRY_TERMS if offers['ifd_cherry'] else ()),
    *(metrics.SUPERFILTER_TERMS if offers['ifd_superfilter'] else ()),
  )


def wanted_terms(encoder, terms: Collection[str]) -> tuple[str, ...]:
  """Terms that will be computed: `terms`, or with none all that are offered.

  Raises:
    ValueError: one of `terms` is not offered.
  """
  offered = offered_terms(encoder)
  unknown = set(terms) - set(offered)
  if unknown:
    raise ValueError(
      f'score.terms: {sorted(unknown)} is not offered; there are: '
      + ', '.join(offered)
    )
  return tuple(t for t in offered if t in (terms or offered))


class Source:
  """Encoded rows by row range, trimmed to the wanted terms."""

  def __init__(self, samples, encoder, terms, embeddings):
    self._samples, self._encoder = samples, encoder
    self._terms = terms if terms != offered_terms(encoder) else None
    self._embeddings = embeddings

  def encode(self, start: int, stop: int) -> list:
    """Encodes rows `start` to `stop - 1`."""
    rows = self._encoder.encode(list(self._samples.iter_rows(start, stop)))
    if self._terms is None:
      return rows
    return [trim(row, self._terms, self._embeddings) for row in rows]

  def all(self) -> Iterable[list]:
    """All rows, a list at a time."""
    for start in range(0, self._samples.num_rows, _ROWS):
      yield self.encode(start, min(start + _ROWS, self._samples.num_rows))
