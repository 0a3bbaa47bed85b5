"""The two published forms of IFD: their own prompts, two sequences each.

Prompt and answer are tokenized as one text (as released, so prompt lengths are
those of the prompt alone); special tokens spelled in a sample stay plain text
(ours); BOS only if the tokenizer itself adds it. Limits are the releases'
defaults; a term that a limit leaves without tokens is null with a reason.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Mapping

import numpy as np

from qaq_jax.encoding.sequences import Sequence

if typing.TYPE_CHECKING:  # rules read FORMS, and start without transformers
  from qaq_jax.encoding.tokenization import Tokenizer

# Of a sample: sequences, and term -> reason of a null.
_Result = tuple[tuple[Sequence, ...], dict[str, str]]
HEADING = '### Response:'
_ALPACA = (
  'Below is an instruction that describes a task{0}. Write a response that '
  'appropriately completes the request.\n\n### Instruction:\n{1}\n\n{2}'
  + HEADING
)
_ALPACA_INPUT = ', paired with an input that provides further context'
_NOTHING_LEFT = 'no answer token is left to score'


def alpaca_prompt(instruction: str, extra: str) -> str:
  """The Alpaca prompt up to and including its response heading."""
  if extra:
    return _ALPACA.format(
      _ALPACA_INPUT, instruction, f'### Input:\n{extra}\n\n'
    )
  return _ALPACA.format('', instruction, '')


def cherry(tokenizer: Tokenizer, samples, limit: int) -> list[_Result]:
  """Cherry LLM, arXiv 2308.12032: ratio of mean losses on A.

  Alone: the response heading directly followed by A. Conditional: Alpaca
  prompt and A, cut to `limit` tokens. The alone text is cut so that as much
  of A is left as beside the prompt: to `limit` minus the prompt's tokens plus
  the heading's. (The release adds 4, the heading's tokens and BOS in Llama's
  tokenizer.) Both sides score the same number of answer tokens, also where a
  tokenizer joins the heading with the answer. Null: a side has no answer
  token left, so also where the prompt fills the limit.

  Returns:
    For each sample (sequences, term -> reason of a null).
  """
  prompts = [alpaca_prompt(s.instruction, s.input) for s in samples]
  heading = len(_encode(tokenizer, [HEADING])[0])
  prompt_ids = _encode(tokenizer, prompts)
  alone = _encode(tokenizer, [HEADING + s.answer for s in samples])
  whole = _encode(
    tokenizer,
    [p + s.answer for p, s in zip(prompts, samples, strict=True)],
  )
  results: list[_Result] = []
  for prompt, one, two in zip(prompt_ids, alone, whole, strict=True):
    room = limit - len(prompt)  # for the answer, beside the prompt
    kept = min(room, len(one) - heading, len(two) - len(prompt))
    if kept < 1:
      why = (
        f'prompt of {len(prompt)} tokens leaves no room in {limit}'
        if room < 1
        else _NOTHING_LEFT
      )
      results.append(((), {'a_cherry_alone': why, 'a_cherry_cond': why}))
      continue
    results.append(
      _pair(
        'cherry',
        [
          (one[: heading + kept], heading),
          (two[: len(prompt) + kept], len(prompt)),
        ],
      )
    )
  return results


def superfilter(tokenizer: Tokenizer, samples, limit: int) -> list[_Result]:
  """Superfiltering, arXiv 2402.00530: ratio of perplexities of A.

  Alone: bare A, its first token unscored (a tokenizer that adds BOS scores it
  after BOS), cut to `limit` minus the prompt's tokens plus 1. Conditional:
  instruction, newline, (input, newline), A, cut to `limit`. A one-token
  answer has no alone loss: null.

  Returns:
    For each sample (sequences, term -> reason of a null).
  """
  prompts = [
    f'{s.instruction}\n{s.input}\n' if s.input else f'{s.instruction}\n'
    for s in samples
  ]
  prompt_ids = _encode(tokenizer, prompts)
  alone = _encode(tokenizer, [s.answer for s in samples])
  whole = _encode(
    tokenizer,
    [p + s.answer for p, s in zip(prompts, samples, strict=True)],
  )
  return [
    _pair(
      'superfilter',
      [
        (one[: limit - min(len(prompt), limit) + 1], 1),
        (two[:limit], len(prompt)),
      ],
    )
    for prompt, one, two in zip(prompt_ids, alone, whole, strict=True)
  ]


def _pair(form: str, sides) -> _Result:
  """Sequences of the two sides, or the reason why a side has none."""
  sequences, nulls = [], {}
  for name, (ids, start) in zip(('alone', 'cond'), sides, strict=True):
    term = f'a_{form}_{name}'
    start = max(start, 1)
    if start >= len(ids):
      nulls[term] = _NOTHING_LEFT
    else:
      sequences.append(
        Sequence(f'{form}_{name}', ids, ((term, start, len(ids)),))
      )
  return tuple(sequences), nulls


def _encode(tokenizer: Tokenizer, texts) -> list[np.ndarray]:
  prefix = np.array(tokenizer.added_prefix, np.int32)
  ids = tokenizer.plain_start.encode_batch(texts)
  return [np.concatenate([prefix, i]) for i in ids] if len(prefix) else ids


def ratio_of_losses(cond_N: np.ndarray, alone_N: np.ndarray) -> np.ndarray:
  """IFD as published with Cherry LLM, arXiv 2308.12032, section 2.2.

  Args:
    cond_N: mean -log p of the answer behind the prompt, nats per token.
    alone_N: the same of the answer alone.

  Returns:
    float64 [N], NaN where one is not finite or that of the answer alone is 0.
  """
  good = np.isfinite(cond_N) & np.isfinite(alone_N) & (alone_N != 0)
  ratio = np.full(cond_N.shape, np.nan)
  return np.divide(cond_N, alone_N, out=ratio, where=good)


def ratio_of_perplexities(
  cond_N: np.ndarray, alone_N: np.ndarray
) -> np.ndarray:
  """IFD as published with Superfiltering, arXiv 2402.00530, equation 1.

  Orders samples differently from the ratio of losses; see it for arguments.
  """
  with np.errstate(over='ignore'):
    return np.exp(cond_N - alone_N)


@dataclasses.dataclass(frozen=True)
class Form:
  """A published form: two sequences of its own, and a ratio of their terms.

  Attributes:
    option: the option of the encoder, that asks for it; its column has the
      same name.
    limit: option with the most tokens of prompt and answer.
    encode: tokenizer, samples and limit -> for each sample (sequences, term ->
      reason of a null).
    terms: the terms of the answer alone, then behind the prompt, with what is
      scored.
    ratio: mean losses behind the prompt and alone, [N] each -> the form's
      number.
  """

  option: str
  limit: str
  encode: Callable
  terms: Mapping[str, str]
  ratio: Callable


FORMS = {
  form.option: form
  for form in (
    Form(
      'ifd_cherry',
      'cherry_limit',
      cherry,
      {
        'a_cherry_alone': 'answer after the response heading',
        'a_cherry_cond': 'answer after the Alpaca prompt',
      },
      ratio_of_losses,
    ),
    Form(
      'ifd_superfilter',
      'superfilter_limit',
      superfilter,
      {
        'a_superfilter_alone': 'bare answer but for its first token',
        'a_superfilter_cond': 'answer after the bare instruction',
      },
      ratio_of_perplexities,
    ),
  )
}
