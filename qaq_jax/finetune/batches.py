"""Training examples -> batches, each laid out in micro-batches of few shapes.

A batch is `batch_size` examples, whatever the machine: one update. Its layout
in arrays depends on the number of devices and on what one can hold, and changes
nothing but rounding. The order is a function of seed and epoch, and a batch one
of seed, epoch and its number, so a resumed run needs to know its step alone.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from qaq_jax.encoding.examples import Example
from qaq_jax.finetune import packing as packing_lib
from qaq_jax.finetune.options import PACKING, FitOptions

# Lengths of padded rows, as shares of max_length: fixed, so that every data set
# runs with the same few compiled programs.
_SHARES = (0.125, 0.25, 0.375, 0.5, 0.75, 1.0)
_MULTIPLE = 8  # of padded lengths


@dataclasses.dataclass(frozen=True)
class Layout:
  """How examples are put into arrays [B, T].

  Attributes:
    max_length: T of a packed row and of the longest padded one.
    packing: 'packed': rows of max_length, filled with several examples each
      (first-fit decreasing); 'padded': one example per row, rows of a
      micro-batch as long as the first of `lengths` that holds its longest.
    tokens_per_device: the tokens of a micro-batch, padding included; at least
      one row.
    shards: devices that the rows are split over; B is a multiple.
    batch_size: examples of an update; there are never more rows than that.
  """

  max_length: int
  packing: str = FitOptions.packing
  tokens_per_device: int = FitOptions.tokens_per_device
  shards: int = 1
  batch_size: int = FitOptions.batch_size

  def __post_init__(self):
    if self.packing not in PACKING:
      raise ValueError(f'packing={self.packing!r}: choose one of {PACKING}')
    for name in ('max_length', 'tokens_per_device', 'shards', 'batch_size'):
      if getattr(self, name) < 1:
        raise ValueError(f'{name}={getattr(self, name)}: it is at least 1')

  @classmethod
  def of(cls, options: FitOptions, shards: int) -> 'Layout':
    """The layout of a run on so many devices."""
    return cls(
      max_length=options.max_length,
      packing=options.packing,
      tokens_per_device=options.tokens_per_device,
      shards=shards,
      batch_size=options.batch_size,
    )

  @property
  def lengths(self) -> tuple[int, ...]:
    """T of every shape there can be, shortest first."""
    if self.packing == 'packed':
      return (self.max_length,)
    rounded = {
      min(
        -(-int(self.max_length * share) // _MULTIPLE) * _MULTIPLE,
        self.max_length,
      )
      for share in _SHARES
    }
    return tuple(sorted(rounded - {0}))

  def rows(self, length: int) -> int:
    """B of micro-batches of that length."""
    most = -(-self.batch_size // self.shards)
    per_device = max(self.tokens_per_device // length, 1)
    return min(per_device, most) * self.shards

  @property
  def shapes(self) -> tuple[tuple[int, int], ...]:
    """(B, T) of every micro-batch there can be."""
    return tuple((self.rows(t), t) for t in self.lengths)

  def lay_out(self, examples: Sequence[Example]) -> list[dict]:
    """Puts examples into micro-batches, each exactly once.

    Returns:
      dicts of `tokens`, `segment_ids` (1, 2, ... within a row, 0 = padding),
      int32 [B, T], and `weights` float32 [B, T], 0 for padding and for the
      first token of every example.
    """
    sizes = np.array([len(e.ids) for e in examples], np.int64)
    if self.packing == 'packed':
      rows = packing_lib.first_fit_decreasing(sizes, self.max_length)
    else:
      rows = [[int(i)] for i in np.argsort(-sizes, kind='stable')]
    micros = []
    while rows:
      # The first row is the longest: sorted, or all of one length.
      longest = int(sizes[rows[0]].sum())
      length = next(t for t in self.lengths if t >= longest)
      number = self.rows(length)
      part, rows = rows[:number], rows[number:]
      micros.append(
        _fill([[examples[i] for i in row] for row in part], number, length)
      )
    return micros


def _fill(rows, number, length) -> dict:
  tokens = np.zeros((number, length), np.int32)
  segment_ids = np.zeros((number, length), np.int32)
  weights = np.zeros((number, length), np.float32)
  for r, row in enumerate(rows):
    at = 0
    for segment, example in enumerate(row, start=1):
      stop = at + len(example.ids)
      tokens[r, at:stop] = example.ids
      segment_ids[r, at:stop] = segment
      weights[r, at + 1 : stop] = example.weights[1:]
      at = stop
  return {'tokens': tokens, 'segment_ids': segment_ids, 'weights': weights}


@dataclasses.dataclass(frozen=True)
class Batch:
  """One update.

  Attributes:
    step: number of updates made when this one is done (from 1).
    rows: the numbers of the samples in it.
    tokens: real tokens.
    attended: sum over examples of tokens squared, for counting operations.
    micros: see `Layout.lay_out`.
  """

  step: int
  rows: list[int]
  tokens: int
  attended: int
  micros: list[dict]


def indices(
  number_of_examples: int, batch_size: int, *, seed: int, step: int
) -> np.ndarray:
  """Examples of update `step` (from 0): a slice of its epoch's permutation."""
  steps = -(-number_of_examples // batch_size)
  epoch, number = divmod(step, steps)
  order = np.random.default_rng((seed, epoch)).permutation(number_of_examples)
  return order[number * batch_size : (number + 1) * batch_size]


def batches(
  examples: Sequence[Example],
  layout: Layout,
  *,
  seed: int,
  first: int,
  last: int,
) -> Iterator[Batch]:
  """Yields the batches of updates first, first + 1, ... last - 1 (from 0)."""
  for step in range(first, last):
    part = [
      examples[i]
      for i in indices(len(examples), layout.batch_size, seed=seed, step=step)
    ]
    sizes = [len(e.ids) for e in part]
    yield Batch(
      step=step + 1,
      rows=[e.row for e in part],
      tokens=sum(sizes),
      attended=sum(n * n for n in sizes),
      micros=layout.lay_out(part),
    )
