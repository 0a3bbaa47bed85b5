"""When a text is finished: tokens that end a turn, and strings it is cut at."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from qaq_jax.encoding.encoder import Encoder
from qaq_jax.encoding.tokenization import Tokenizer
from qaq_jax.models.config import ModelConfig
from qaq_jax.models.hf.source import ModelSource


def stop_ids(
  tokenizer: Tokenizer,
  config: ModelConfig | None = None,
  source: ModelSource | None = None,
  encoder: Encoder | None = None,
) -> tuple[int, ...]:
  """Returns the ids after which a model has nothing more to say, ascending.

  Args:
    tokenizer: its EOS is one.
    config: those of config.json are too.
    source: those of generation_config.json are too, where there is one: there
      instruct models name the end of a turn beside the end of a document.
    encoder: the last token of its template's turn is one too.

  Raises:
    ValueError: generation_config.json isn't JSON.
  """
  found = [tokenizer.hf.eos_token_id]
  if config is not None:
    found.append(config.eos_token_id)
  if source is not None:
    path = source.directory / 'generation_config.json'
    if path.is_file():
      try:
        found.append(json.loads(path.read_text('utf-8')).get('eos_token_id'))
      except (ValueError, AttributeError) as e:
        raise ValueError(f'{path}: not a JSON object ({e})') from e
  if encoder is not None:
    found.append(encoder.stop_id)
  flat: set[int] = set()
  for ids in found:
    flat.update([ids] if isinstance(ids, int) else ids or ())
  return tuple(sorted(flat))


def split_markers(
  tokenizer: Tokenizer, strings: Iterable[str]
) -> tuple[tuple[int, ...], tuple[str, ...]]:
  """Returns the stop strings that are one marker token as ids, and the others.

  A marker flagged special never appears in a text, so it must be found by id.

  Raises:
    ValueError: an empty string, which every text has.
  """
  strings = tuple(strings)
  if '' in strings:
    raise ValueError(f'stop_strings={list(strings)}: one is empty')
  markers: dict = {
    s: tokenizer.hf.convert_tokens_to_ids(s)
    for s in strings
    if s in tokenizer.hf.get_added_vocab()
  }
  ids: tuple[int, ...] = tuple(markers.values())
  return ids, tuple(s for s in strings if s not in markers)


def cut(
  tokenizer: Tokenizer,
  ids: Sequence[int],
  strings: Sequence[str],
  checked: int = 0,
) -> tuple[int, str] | None:
  """Finds where a text is to be cut.

  Args:
    tokenizer: decodes ids.
    ids: all that was generated.
    strings: the text ends before the first of them that is complete; of those
      that the same token completes, before the one that begins first.
    checked: ids among which no string was complete.

  Returns:
    The number of ids up to the one that completes a string, and the text before
    the string; None: there is none.
  """
  if not any(s in text_of(tokenizer, ids) for s in strings):
    return None
  for number in range(checked + 1, len(ids) + 1):
    text = text_of(tokenizer, ids[:number])
    starts = [at for at in map(text.find, strings) if at >= 0]
    if starts:
      return number, text[: min(starts)]
  return None


def text_of(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
  """Returns the text of ids that follow a prompt, without special tokens."""
  return tokenizer.decoder.decode(list(ids), skip_special_tokens=True)
