"""Prompts as ids: through a chat template, or as they stand."""

from __future__ import annotations

import numpy as np

from qaq_jax.encoding.encoder import Encoder
from qaq_jax.encoding.tokenization import Tokenizer


def chat_prompt(
  encoder: Encoder,
  query: str,
  *,
  system: str | None = None,
  answer: str = '',
) -> np.ndarray:
  """Returns the ids of a user's turn and the start of the model's, int32.

  They are those that scoring and training put before the answer: markers in
  the texts are plain text, and each text is encoded on its own.

  Args:
    encoder: the encoder of the model's tokenizer and template.
    query: the user's text.
    system: system prompt; None: that of the encoder.
    answer: a beginning of the answer for the model to go on with.
  """
  frame, _ = encoder.frames(system or encoder.system_prompt)
  encode = encoder.tokenizer.plain.encode
  parts = [frame.head, encode(query), frame.between]
  if answer:
    parts.append(encode(answer))
  return np.concatenate(parts)


def text_prompt(tokenizer: Tokenizer, text: str) -> np.ndarray:
  """Returns the ids of a text for a base model to go on with, int32.

  What the tokenizer adds before a text (BOS, or nothing) is before this one.
  Markers in it are plain text.
  """
  prefix = np.array(tokenizer.added_prefix, np.int32)
  return np.concatenate([prefix, tokenizer.plain_start.encode(text)])
