"""What encoding gives: sequences of token ids with the spans to score."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

SPANS = 2  # of a sequence, at most
# Those of every sample: sequence -> its spans. Published forms have their own.
TERMS = {'forward': ('q', 'a_given_q'), 'reverse': ('a', 'q_given_a')}


@dataclasses.dataclass(frozen=True)
class Sequence:
  """Token ids with the spans whose likelihood is wanted.

  Attributes:
    kind: 'forward', 'reverse', 'cherry_alone', 'cherry_cond',
      'superfilter_alone', 'superfilter_cond', 'author_q' or
      'author_q_given_a'.
    ids: int32 [length].
    spans: (term, start, stop) of scored tokens, at most SPANS, disjoint,
      increasing, `1 <= start < stop <= length`.
  """

  kind: str
  ids: np.ndarray
  spans: tuple[tuple[str, int, int], ...]


@dataclasses.dataclass(frozen=True)
class Encoded:
  """The sequences of one row.

  Attributes:
    row: the row's number.
    status: 'ok', 'truncated', 'too_long', 'empty' or 'invalid'.
    reason: why not 'ok'.
    sequences: () unless the status is 'ok' or 'truncated'.
    nulls: term -> why it has no span although its row has sequences.
    merged: whether tokenizing the whole text at once would have given other
      ids at a boundary; None where not measured. The mean over rows is the
      rate of boundary merges.
  """

  row: int
  status: str
  reason: str = ''
  sequences: tuple[Sequence, ...] = ()
  nulls: Mapping[str, str] = dataclasses.field(default_factory=dict)
  merged: bool | None = None
