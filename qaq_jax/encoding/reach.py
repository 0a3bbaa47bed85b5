"""Which ids can occur in what a model is given.

A tokenizer may know ids that its model does not embed, and many do: a `[PAD]`
that was added for some training, reserved tokens, those of a sibling. They do
no harm as long as they cannot occur. What can:

- what texts (queries, answers, system prompts) become: the vocabulary's ids
  that encoding can build, and added tokens that are not flagged special. Those
  that are markers (`<think>`) count although a text that spells one stays plain
  text, see `tokenization.py`: they are words of the model's language, and a
  tokenizer whose words are not embedded belongs to another model. A special
  one is no text;
- what the template puts around them, and the ids that end an answer;
- what the tokenizer itself puts before a text, where that is asked for.

JAX reads row V - 1 of an embedding of V rows where row V or a later one is
asked for, so an id too large would go unnoticed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from qaq_jax.encoding.tokenization import NO_TEXT, Tokenizer


def beyond(
  tokenizer: Tokenizer, own: Iterable[int], vocab_size: int
) -> dict[int, str]:
  """Returns the ids from `vocab_size` on that can occur, ascending.

  Args:
    tokenizer: the tokenizer of the model.
    own: ids that sequences have besides those of texts.
    vocab_size: ids that the model embeds.

  Returns:
    Id -> its token.
  """
  tokens = {i: token for token, i in tokenizer.hf.get_vocab().items()}
  found = {i for i in own if i >= vocab_size}
  if max(tokens) >= vocab_size:
    found.update(i for i in _of_texts(tokenizer) if i >= vocab_size)
  return {i: tokens.get(i, '') for i in sorted(found)}


def _of_texts(tokenizer: Tokenizer) -> set[int]:
  """Ids that count as a text's."""
  added = tokenizer.hf.added_tokens_decoder
  ids = {i for i, token in added.items() if not token.special}
  # Of the view whose vocabulary has no markers.
  model = json.loads(tokenizer.plain.tokenizer.to_str())['model']
  vocab = model['vocab']
  if isinstance(vocab, list):  # Unigram: [piece, score] each
    return ids | {
      i for i, (piece, _) in enumerate(vocab) if not piece.startswith(NO_TEXT)
    }
  if (
    model['type'] == 'BPE'
    and not model.get('ignore_merges')
    and not model.get('continuing_subword_prefix')
    and not model.get('end_of_word_suffix')
  ):
    # Single characters, and what merges make of them.
    built = {
      m.replace(' ', '', 1) if isinstance(m, str) else ''.join(m)
      for m in model['merges']
    }
    built.add(model.get('unk_token'))
    if model.get('byte_fallback'):
      built.update(f'<0x{byte:02X}>' for byte in range(256))
    vocab = {t: i for t, i in vocab.items() if len(t) == 1 or t in built}
  return ids | set(vocab.values())
