"""Changes of layout between a checkpoint's tensors and our parameters.

Each knows the tensor's shape, how to read any block of our parameter from the
file without touching the rest, and how to write it back.
"""

import dataclasses
from collections.abc import Callable

import numpy as np


def bounds(piece: slice, size: int) -> tuple[int, int]:
  """Returns where a slice of an axis of this size begins and ends."""
  return piece.start or 0, size if piece.stop is None else piece.stop


@dataclasses.dataclass(frozen=True)
class Transform:
  """A named, invertible change of layout between a tensor and our parameter.

  Attributes:
    name: the name for messages.
    shape: (our shape, config) -> the tensor's shape.
    read: (tensor slicer, index into ours, our shape) -> that block of ours.
    write: ours -> the tensor, or this part of it.
    part: which third of a fused tensor this is; None where it isn't fused.
  """

  name: str
  shape: Callable
  read: Callable
  write: Callable
  part: int | None = None


SAME = Transform(
  'same',
  shape=lambda ours, config: ours,
  read=lambda tensor, index, ours: tensor[index],
  write=lambda x: x,
)

TRANSPOSE = Transform(
  'transpose',
  shape=lambda ours, config: ours[::-1],
  read=lambda tensor, index, ours: tensor[index[::-1]].T,
  write=lambda x: x.T,
)


def _read_vocab(tensor, index, ours):
  first, last = bounds(index[0], ours[0])
  known = tensor.get_shape()[0]
  if first >= known:  # all padding, and safetensors refuses empty slices
    left, right = bounds(index[1], ours[1])
    return np.zeros((last - first, right - left), np.float32)
  block = tensor[slice(first, min(last, known)), index[1]]
  return np.pad(block, ((0, last - first - len(block)), (0, 0)))


# Rows beyond the vocabulary are padding: zero here, masked in the logits.
VOCAB = Transform(
  'pad_vocabulary',
  shape=lambda ours, config: (config.vocab_size, ours[1]),
  read=_read_vocab,
  write=lambda x: x,  # the caller cuts the padding off
)


def _heads(piece: slice, ours_heads: int, size: int) -> slice:
  first, last = bounds(piece, ours_heads)
  return slice(first * size, last * size)


def _read_from_rows(tensor, index, ours):
  _, heads, size = ours
  block = tensor[_heads(index[1], heads, size), index[0]]
  return block.reshape(-1, size, block.shape[1]).transpose(2, 0, 1)


# [H K, D] of a linear layer to heads -> [D, H, K].
TO_HEADS = Transform(
  'to_heads',
  shape=lambda ours, config: (ours[1] * ours[2], ours[0]),
  read=_read_from_rows,
  write=lambda x: x.transpose(1, 2, 0).reshape(-1, x.shape[0]),
)


def _read_from_columns(tensor, index, ours):
  heads, size, _ = ours
  block = tensor[index[2], _heads(index[0], heads, size)]
  return block.reshape(block.shape[0], -1, size).transpose(1, 2, 0)


# [D, N K] of the output projection -> [N, K, D].
FROM_HEADS = Transform(
  'from_heads',
  shape=lambda ours, config: (ours[2], ours[0] * ours[1]),
  read=_read_from_columns,
  write=lambda x: x.reshape(-1, x.shape[2]).T,
)

# [N K, D]: GPT-2 stores its matrices input first (Conv1D).
FROM_HEADS_CONV = Transform(
  'from_heads_conv1d',
  shape=lambda ours, config: (ours[0] * ours[1], ours[2]),
  read=lambda tensor, index, ours: tensor[
    _heads(index[0], ours[0], ours[1]), index[2]
  ].reshape(
    -1, ours[1], bounds(index[2], ours[2])[1] - bounds(index[2], ours[2])[0]
  ),
  write=lambda x: x.reshape(-1, x.shape[2]),
)

HEAD_BIAS = Transform(
  'bias_of_heads',
  shape=lambda ours, config: (ours[0] * ours[1],),
  read=lambda tensor, index, ours: tensor[
    (_heads(index[0], ours[0], ours[1]),)
  ].reshape(-1, ours[1]),
  write=lambda x: x.reshape(-1),
)


def fused(part: int) -> Transform:
  """[D, 3 N K], query then key then value, one third of it -> [D, N, K]."""

  def read(tensor, index, ours):
    _, heads, size = ours
    piece = _heads(index[1], heads, size)
    offset = part * heads * size
    block = tensor[index[0], slice(piece.start + offset, piece.stop + offset)]
    return block.reshape(block.shape[0], -1, size)

  return Transform(
    f'third_{part}_to_heads_conv1d',
    shape=lambda ours, config: (ours[0], 3 * ours[1] * ours[2]),
    read=read,
    write=lambda x: x.reshape(x.shape[0], -1),
    part=part,
  )


def fused_bias(part: int) -> Transform:
  """[3 N K], one third of it -> [N, K]."""

  def read(tensor, index, ours):
    heads, size = ours
    piece = _heads(index[0], heads, size)
    offset = part * heads * size
    block = tensor[(slice(piece.start + offset, piece.stop + offset),)]
    return block.reshape(-1, size)

  return Transform(
    f'third_{part}_bias_of_heads',
    shape=lambda ours, config: (3 * ours[0] * ours[1],),
    read=read,
    write=lambda x: x.reshape(-1),
    part=part,
  )
