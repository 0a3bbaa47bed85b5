"""Samples -> training examples: token ids with a loss weight for each.

    [system][user: Q][assistant: A][end of turn]

is the forward sequence of scoring (same pieces, same ids, Q and A encoded each
on its own: see `templates.py`) plus the ids that end the answer, so that a
trained model stops.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
from collections.abc import Iterable, Mapping

import numpy as np

from qaq_jax.data.types import Sample
from qaq_jax.encoding.encoder import Encoder
from qaq_jax.encoding.options import TrainingOptions

_CHUNK = 2048  # samples tokenized at once


@dataclasses.dataclass(frozen=True)
class Example:
  """One training sequence.

  Attributes:
    ids: int32 [T], tokens.
    weights: float32 [T], weight of each token's loss; the first token is not a
      target, so its weight is not read.
    row: the number of the sample, for messages.
  """

  ids: np.ndarray
  weights: np.ndarray
  row: int = -1


@dataclasses.dataclass(frozen=True)
class Rendered:
  """The examples of a data set, and what became of the other samples.

  Attributes:
    examples: the examples in the order of the samples.
    skipped: reason -> samples that gave no example.
    truncated: examples whose answer was cut.
    longest: tokens that the longest sample would have taken, and its row.
  """

  examples: list[Example]
  skipped: Mapping[str, int]
  truncated: int
  longest: tuple[int, int]

  @property
  def tokens(self) -> int:
    """Tokens of all examples."""
    return sum(len(e.ids) for e in self.examples)

  def describe(self) -> list[str]:
    """Lines to print."""
    tokens = self.tokens
    lines = [
      f'{len(self.examples):,} examples, {tokens:,} tokens '
      f'({tokens / max(len(self.examples), 1):,.0f} each)'
    ]
    if self.truncated:
      lines.append(f'  {self.truncated:,} answers cut at max_length')
    for reason, rows in sorted(self.skipped.items()):
      lines.append(f'  {rows:,} samples left out: {reason}')
    if self.truncated or 'too long' in self.skipped:
      lines.append(
        '  the longest, row {1}, has {0:,} tokens'.format(*self.longest)
      )
    return lines


def make_examples(
  samples: Iterable[Sample],
  encoder: Encoder,
  options: TrainingOptions,
  max_length: int,
) -> Rendered:
  """Renders samples for training.

  Args:
    samples: any number; those whose status is not 'ok' are left out and
      counted.
    encoder: the encoder of the model's tokenizer, template and system prompt;
      its own `max_length` and `on_long` are for scoring and not used here.
    options: weights, and what becomes of long examples.
    max_length: tokens of an example at most, end of turn included.

  Returns:
    Examples of 2 to `max_length` tokens, each with a target of weight above 0.
  """
  examples: list[Example] = []
  skipped: collections.Counter[str] = collections.Counter()
  truncated, longest = 0, (0, -1)
  samples = iter(samples)
  while chunk := list(itertools.islice(samples, _CHUNK)):
    good = [s for s in chunk if s.status == 'ok']
    skipped.update(s.status for s in chunk if s.status != 'ok')
    encode = encoder.tokenizer.plain.encode_batch
    queries = encode([s.query for s in good])
    answers = encode([s.answer for s in good])
    for sample, query, answer in zip(good, queries, answers, strict=True):
      if not len(query) or not len(answer):
        skipped['no tokens in the query or the answer'] += 1
        continue
      frame, ending = encoder.turn(sample)
      prompt = np.concatenate([frame.head, query, frame.between])
      response = np.concatenate([answer, ending])
      size = len(prompt) + len(response)
      longest = max(longest, (size, sample.row), key=lambda x: x[0])
      if size > max_length:
        # At least one token of the answer must be left to learn from.
        if options.on_long == 'skip' or len(prompt) >= max_length:
          skipped['too long'] += 1
          continue
        response = answer[: max_length - len(prompt)]
        truncated += 1
      examples.append(_example(prompt, response, options, sample.row))
  return Rendered(examples, dict(skipped), truncated, longest)


def _example(prompt, response, options, row) -> Example:
  weights = np.full(len(prompt) + len(response), options.prompt_weight)
  weights[len(prompt) :] = options.response_weight
  return Example(
    np.concatenate([prompt, response]), weights.astype(np.float32), row
  )
