"""The ids that a template puts around the two slots of a sequence."""

from __future__ import annotations

import collections
import dataclasses

import numpy as np

from qaq_jax.encoding import chat
from qaq_jax.encoding.tokenization import Tokenizer

_CACHED_PROMPTS = 1024  # encoded system prompts kept


@dataclasses.dataclass(frozen=True)
class Frame:
  """Ids before the first slot and between the two, int32."""

  head: np.ndarray
  between: np.ndarray

  @property
  def size(self) -> int:
    """Tokens of the frame."""
    return len(self.head) + len(self.between)


class Layout:
  """A chat in the ids of one tokenizer."""

  def __init__(self, tokenizer: Tokenizer, the_chat: chat.Chat):
    """Encodes nothing yet.

    Raises:
      TemplateError: `plain`, and the tokenizer names neither BOS nor EOS.
    """
    self._tokenizer = tokenizer
    self._chat = the_chat
    self._plain = the_chat.origin == chat.PLAIN
    self.prefix: list[int] = []  # ids that `plain` begins with
    if self._plain:
      # Of the tokenizer, never of config.json, where some name another.
      ids = (tokenizer.hf.bos_token_id, tokenizer.hf.eos_token_id)
      self.prefix = [i for i in ids if i is not None][:1]
      if not self.prefix:
        raise chat.TemplateError(
          f'{tokenizer.hf.name_or_path}: template plain begins with BOS, or '
          'else EOS, and its tokenizer names neither; add bos_token or '
          'eos_token to tokenizer_config.json'
        )
    self._frames: collections.OrderedDict[str | None, tuple[Frame, Frame]] = (
      collections.OrderedDict()
    )
    self._runs: dict[str, list[str]] = {}

  def _pieces(self, system) -> tuple[chat.Pieces, chat.Pieces, str | None]:
    """Pieces of both sequences, and the system prompt that is used."""
    if self._chat.system == 'ignored':
      system = None
    has = system is not None
    return self._chat.forward[has], self._chat.reverse[has], system

  def frames(self, system: str | None) -> tuple[Frame, Frame]:
    """Frames of the forward and the reverse sequence."""
    forward, reverse, system = self._pieces(system)
    if system not in self._frames:
      self._frames[system] = (
        self._frame(forward, system),
        self._frame(reverse, system),
      )
      if len(self._frames) > _CACHED_PROMPTS:
        self._frames.popitem(last=False)
    self._frames.move_to_end(system)
    return self._frames[system]

  def _frame(self, pieces: chat.Pieces, system) -> Frame:
    return Frame(
      self._encode_head(pieces, system), self._encode_between(pieces)
    )

  def _encode_head(self, pieces: chat.Pieces, system) -> np.ndarray:
    tokens = self._tokenizer
    if self._plain:
      text = pieces.head(system)
      return np.concatenate(
        [np.array(self.prefix, np.int32), tokens.plain.encode(text)]
      )
    if system is None or len(tokens.plain_runs(system)) == 1:
      return tokens.start.encode(pieces.head(system))
    # The system prompt spells a marker; it stays plain text.
    first, last = pieces.before
    return np.concatenate(
      [
        tokens.start.encode(first),
        tokens.plain.encode(system),
        tokens.middle.encode(last),
      ]
    )

  def _encode_between(self, pieces: chat.Pieces) -> np.ndarray:
    view = self._tokenizer.plain if self._plain else self._tokenizer.middle
    return view.encode(pieces.between)

  def ending(self, system: str | None) -> np.ndarray:
    """Ids that end an answer, int32: what a trained model stops with.

    What the template puts behind the answer, up to its last marker (ChatML:
    `<|im_end|>`, DeepSeek-Coder: a newline and `<|EOT|>`); EOS for `plain` and
    for templates that put no marker there.

    Raises:
      TemplateError: it should be EOS, and the tokenizer names none.
    """
    tokens = self._tokenizer
    if not self._plain:
      ids = tokens.middle.encode(self._pieces(system)[0].after)
      markers = np.flatnonzero(np.isin(ids, list(tokens.marker_ids)))
      if len(markers):
        return ids[: markers[-1] + 1]
    eos = tokens.hf.eos_token_id
    if eos is None:
      raise chat.TemplateError(
        f'{tokens.hf.name_or_path}: the chat template ({self._chat.origin}) '
        'puts no special token behind an answer, so an answer ends with EOS, '
        'and the tokenizer names none; add eos_token to tokenizer_config.json'
      )
    return np.array([eos], np.int32)

  def rendered(
    self, query: str, answer: str, system: str | None
  ) -> tuple[str, str]:
    """Text of the forward and the reverse sequence, without what follows."""
    forward, reverse, system = self._pieces(system)
    prefix = self._tokenizer.decode(self.prefix)
    return (
      f'{prefix}{forward.head(system)}{query}{forward.between}{answer}',
      f'{prefix}{reverse.head(system)}{answer}{reverse.between}{query}',
    )

  def has_merges(
    self,
    query: tuple[str, np.ndarray],
    answer: tuple[str, np.ndarray],
    system: str | None,
  ) -> bool:
    """Whether joint tokenization would differ at a boundary of a piece.

    Compared are the runs of plain text between markers, which is where joint
    tokenization could merge across a boundary.

    Args:
      query: text and ids of Q.
      answer: text and ids of A.
      system: the row's system prompt.
    """
    forward, reverse, _ = self._pieces(system)
    encode = self._tokenizer.plain.encode
    for pieces, first, second in (
      (forward, query, answer),
      (reverse, answer, query),
    ):
      between = self._plain_runs(pieces.between)
      runs = [
        [
          (self._plain_runs(pieces.before[-1])[-1], None),
          first,
          (between[0], None),
        ]
      ]
      if len(between) > 1:
        runs.append([(between[-1], None)])
      runs[-1] += [second, (self._plain_runs(pieces.after)[0], None)]
      for run in runs:
        joint = encode(''.join(text for text, _ in run))
        apart = [encode(t) if ids is None else ids for t, ids in run]
        if not np.array_equal(joint, np.concatenate(apart)):
          return True
    return False

  def _plain_runs(self, text: str) -> list[str]:
    if text not in self._runs:
      self._runs[text] = (
        [text] if self._plain else self._tokenizer.plain_runs(text)
      )
    return self._runs[text]
