"""Sequences of many lengths -> batches of the few shapes of a plan.

`plan_shapes` chooses the shapes from the histogram of lengths, before any
batch; `make_batches` fills one window of rows. Both are deterministic.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence as AbstractSequence

import numpy as np

from qaq_jax.encoding.sequences import SPANS, Sequence
from qaq_jax.scoring.shapes import BatchPlan, cut, plan_shapes

__all__ = ['Batch', 'BatchPlan', 'make_batches', 'plan_shapes']


@dataclasses.dataclass(frozen=True)
class Batch:
  """One batch; dimension letters: B rows, T tokens, 2 spans of (start, stop).

  Attributes:
    shape_index: the index into `BatchPlan.shapes`.
    tokens_BT: int32, padded with 0 on the right.
    spans_B22: int32; a span that is not there is (0, 0).
    lengths_B: int32, real tokens; 0 for a masked row.
    row_B: int64, the sample's row; -1 for a masked row.
    slot_B: int32, index of the sequence among its row's; -1 if masked.
  """

  shape_index: int
  tokens_BT: np.ndarray
  spans_B22: np.ndarray
  lengths_B: np.ndarray
  row_B: np.ndarray
  slot_B: np.ndarray


def make_batches(
  items: AbstractSequence[tuple[int, int, Sequence]], plan: BatchPlan
) -> list[Batch]:
  """Puts one window of sequences into batches of the plan's shapes.

  Longest first, each batch the next sequences in order of length, cut so that
  the padding is least. A batch with room left over takes in shorter sequences;
  rows beyond the last are masked.

  Args:
    items: (row, slot, `Sequence`) in any order; (row, slot) is unique.
    plan: the plan of `plan_shapes`.

  Returns:
    Batches that hold every item exactly once, in an order that depends on the
    set of items only.

  Raises:
    ValueError: a sequence is longer than the plan's longest shape.
  """
  items = sorted(items, key=lambda i: (-len(i[2].ids), i[0], i[1]))
  lengths = np.array([len(i[2].ids) for i in items], np.int64)
  if len(items) and (not plan.shapes or lengths[0] > plan.shapes[0][1]):
    row, slot, sequence = items[0]
    raise ValueError(
      f'row {row}, sequence {slot} ({sequence.kind}): {lengths[0]} tokens; '
      f"the plan's longest shape is {plan.shapes[0] if plan.shapes else 0}"
    )
  return [
    _fill(items[start:stop], shape, plan.shapes[shape])
    for start, stop, shape in cut(lengths, plan.shapes)
  ]


def _fill(items, index, shape) -> Batch:
  rows, length = shape
  batch = Batch(
    index,
    np.zeros((rows, length), np.int32),
    np.zeros((rows, SPANS, 2), np.int32),
    np.zeros(rows, np.int32),
    np.full(rows, -1, np.int64),
    np.full(rows, -1, np.int32),
  )
  for i, (row, slot, sequence) in enumerate(items):
    n = len(sequence.ids)
    batch.tokens_BT[i, :n] = sequence.ids
    for j, (_, start, stop) in enumerate(sequence.spans):
      batch.spans_B22[i, j] = start, stop
    batch.lengths_B[i] = n
    batch.row_B[i] = row
    batch.slot_B[i] = slot
  return batch
