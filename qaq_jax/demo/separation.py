"""How well a model's RMI separates true pairs from swapped ones."""

import dataclasses
from collections.abc import Sequence
from functools import partial

import jax
import numpy as np
from flax import nnx

from qaq_jax.scoring import head as head_lib
from qaq_jax.scoring import likelihood


@dataclasses.dataclass(frozen=True)
class Tokens:
  """Token ids of one pair, and the pieces of the text around it.

  The same pieces as the `plain` template of scoring: `bos`, query, newline,
  answer; and `bos`, answer, `after_answer`, newline, query.
  """

  query: tuple[int, ...]
  answer: tuple[int, ...]


def auroc(positive: Sequence[float], negative: Sequence[float]) -> float:
  """Chance that a positive exceeds a negative; ties count half."""
  both = np.concatenate([positive, negative])
  _, inverse, counts = np.unique(both, return_inverse=True, return_counts=True)
  ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
  n, m = len(positive), len(negative)
  return float((ranks[:n].sum() - n * (n + 1) / 2) / (n * m))


def swap_by_length(lengths: Sequence[int]) -> np.ndarray:
  """A partner for each row: its neighbour in the order of length.

  Neighbours swap with each other; of an odd number the longest three rotate.
  """
  order = np.argsort(lengths, kind='stable')
  partner = np.empty(len(order), int)
  even = len(order) // 2 * 2
  if len(order) > even >= 2:
    even -= 2
    partner[order[even:]] = np.roll(order[even:], 1)
  partner[order[0:even:2]] = order[1:even:2]
  partner[order[1:even:2]] = order[0:even:2]
  return partner


def nll(
  model: nnx.Module,
  rows: Sequence[tuple[Sequence[int], int]],
  *,
  tokens_per_batch: int = 8192,
  multiple: int = 64,
) -> np.ndarray:
  """Sum of -log p, nats, over each row's tokens from position `start` on.

  Args:
    model: a Decoder.
    rows: (ids, start) with start >= 1.
    tokens_per_batch: the tokens of a padded batch.
    multiple: lengths are rounded up to it.
  """
  graphdef, params = nnx.split(model)
  chunks = head_lib.HeadChunks.for_platform(jax.default_backend())
  batch_nll = jax.jit(
    partial(likelihood.batch_likelihood, graphdef, chunks=chunks)
  )
  sums = np.zeros(len(rows))
  length_of: dict[int, list[int]] = {}
  for i, (ids, _) in enumerate(rows):
    length_of.setdefault(-(-len(ids) // multiple) * multiple, []).append(i)
  for length, members in sorted(length_of.items()):
    size = max(tokens_per_batch // length, 1)
    for at in range(0, len(members), size):
      part = members[at : at + size]
      tokens = np.zeros((size, length), np.int32)
      spans = np.zeros((size, 2, 2), np.int32)
      lengths = np.zeros(size, np.int32)
      for row, i in enumerate(part):
        ids, start = rows[i]
        tokens[row, : len(ids)] = ids
        spans[row, 0] = start, len(ids)
        lengths[row] = len(ids)
      nll_BS = batch_nll(params, tokens, spans, lengths)['nll_BS']
      sums[part] = np.asarray(nll_BS)[: len(part), 0]
  return sums


def separation(
  model: nnx.Module,
  pairs: Sequence[Tokens],
  *,
  bos: int,
  before_query: Sequence[int],
) -> dict[str, float]:
  """AUROC of RMI, true answers against answers of about equal length.

  Args:
    model: a Decoder.
    pairs: held-out pairs.
    bos: first token.
    before_query: tokens between answer and query in the reverse text.

  Returns:
    `auroc`; `nll_q`, `nll_q_given_a`, `nll_q_given_swapped` (nats per token,
    mean over pairs).
  """
  partner = swap_by_length([len(p.answer) for p in pairs])

  def reverse(pair, answer):
    head = (bos, *answer, *before_query)
    return (*head, *pair.query), len(head)

  rows = [((bos, *p.query), 1) for p in pairs]
  rows += [reverse(p, p.answer) for p in pairs]
  rows += [
    reverse(p, pairs[j].answer) for p, j in zip(pairs, partner, strict=True)
  ]
  sizes = np.array([len(p.query) for p in pairs])
  alone, true, swapped = nll(model, rows).reshape(3, -1) / sizes
  return {
    'auroc': auroc(alone - true, alone - swapped),
    'nll_q': float(alone.mean()),
    'nll_q_given_a': float(true.mean()),
    'nll_q_given_swapped': float(swapped.mean()),
  }
