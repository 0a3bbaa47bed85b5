"""Training sequences -> batches of few shapes, in a seeded order.

Sequences are sorted by length into buckets, so that little is padded, and the
batches of all buckets are shuffled together. The order is a function of the
seed and the epoch alone: a resumed run continues with the same batches.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Example:
  """One training sequence.

  Attributes:
    ids: int32 [T], tokens.
    weights: float32 [T], weight of each token's loss; the first is not a
      target, so its weight is not read.
  """

  ids: np.ndarray
  weights: np.ndarray


@dataclasses.dataclass(frozen=True)
class Buckets:
  """Which example goes into which shape.

  Attributes:
    lengths: padded length of each bucket.
    rows: rows of a batch of each bucket.
    members: indices of each bucket's examples.
  """

  lengths: tuple[int, ...]
  rows: tuple[int, ...]
  members: tuple[np.ndarray, ...]

  @property
  def batches_per_epoch(self) -> int:
    """Full batches; a bucket's odd rows wait for another epoch's shuffle."""
    return sum(
        len(m) // r for m, r in zip(self.members, self.rows, strict=True)
    )


def make_buckets(
    examples: Sequence[Example],
    *,
    tokens_per_batch: int,
    num_buckets: int,
    multiple: int = 8,
) -> Buckets:
  """Cuts the sorted lengths into buckets of about equal tokens."""
  sizes = np.array([len(e.ids) for e in examples])
  order = np.argsort(sizes, kind='stable')
  totals = np.cumsum(sizes[order])
  cuts = np.searchsorted(
      totals, totals[-1] * np.arange(1, num_buckets) / num_buckets
  )
  tops = [*sizes[order[cuts]], sizes.max()]
  lengths = sorted({-(-int(top) // multiple) * multiple for top in tops})
  which = np.searchsorted(lengths, sizes)
  return Buckets(
      lengths=tuple(lengths),
      rows=tuple(max(tokens_per_batch // n, 1) for n in lengths),
      members=tuple(
          np.flatnonzero(which == i) for i in range(len(lengths))
      ),
  )


def batches(
    examples: Sequence[Example],
    buckets: Buckets,
    *,
    seed: int,
    start: int = 0,
) -> Iterator[dict[str, np.ndarray]]:
  """Yields batches for ever, from batch number `start` on.

  Yields:
    tokens int32 [B, T] and weights float32 [B, T]; padding has weight 0.
  """
  per_epoch = buckets.batches_per_epoch
  if not per_epoch:
    raise ValueError(
        f'no bucket of the {len(examples)} examples fills a batch: lower'
        ' tokens_per_batch or num_buckets'
    )
  epoch, skip = divmod(start, per_epoch)
  while True:
    random = np.random.default_rng((seed, epoch))
    plan = []
    for bucket, (members, rows) in enumerate(
        zip(buckets.members, buckets.rows, strict=True)
    ):
      shuffled = random.permutation(members)
      full = len(shuffled) // rows * rows
      plan += [(bucket, part) for part in shuffled[:full].reshape(-1, rows)]
    for number in random.permutation(len(plan))[skip:]:
      bucket, part = plan[number]
      yield _pad([examples[i] for i in part], buckets.lengths[bucket])
    epoch, skip = epoch + 1, 0


def _pad(examples, length):
  tokens = np.zeros((len(examples), length), np.int32)
  weights = np.zeros((len(examples), length), np.float32)
  for row, example in enumerate(examples):
    tokens[row, : len(example.ids)] = example.ids
    weights[row, : len(example.ids)] = example.weights
  return {'tokens': tokens, 'weights': weights}
