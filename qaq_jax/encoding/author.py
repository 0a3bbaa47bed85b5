"""The sequences of the paper's released scorer, for comparing numbers.

Facts from the scorer published with arXiv 2603.12165 (spec 1, rule 8): two
separate sequences, each rendered to text with the sample inside and tokenized
as a whole with special tokens on; a token is scored when its start offset is
at or after a character boundary. For PPL(Q) that boundary is the length of the
rendering with an *empty* user turn, which contains the end-of-turn text and so
lies late by its length; for PPL(Q|A) it is the end of the assistant header.
What the template puts behind Q is scored. Thinking is off for PPL(Q|A) only.
"""

from __future__ import annotations

import numpy as np

from qaq_jax.encoding import chat
from qaq_jax.encoding.sequences import Sequence
from qaq_jax.encoding.tokenization import Tokenizer


def messages_of(sample, system, reverse_instruction, folded) -> dict:
  """The three conversations of one sample: 'q', 'empty', 'q_given_a'."""
  asked = reverse_instruction.replace(chat.ANSWER_SLOT, sample.answer)

  def conversation(user, assistant=None):
    turns = [{'role': 'user', 'content': user}]
    if system and folded:
      turns[0]['content'] = f'{system}\n\n{user}'
    elif system:
      turns.insert(0, {'role': 'system', 'content': system})
    if assistant is not None:
      turns.append({'role': 'assistant', 'content': assistant})
    return turns

  return {
    'q': conversation(sample.query),
    'empty': conversation(''),
    'q_given_a': conversation(asked, sample.query),
  }


def encode(
  tokenizer: Tokenizer,
  messages: dict,
  *,
  template: str,
  date_string,
  max_length,
) -> tuple[list[Sequence], dict[str, str], str]:
  """Sequences 'author_q' and 'author_q_given_a' of one sample.

  Args:
    tokenizer: the model's.
    messages: see `messages_of`.
    template: the Jinja text.
    date_string: 'DD Mon YYYY', for templates that print the date.
    max_length: tokens that a sequence is cut to.

  Returns:
    The sequences, the terms that have none with the reason, and what was cut
    off ('' if nothing).
  """

  def render(turns, **options):
    return chat.render(
      tokenizer.hf,
      turns,
      template=template,
      date_string=date_string,
      **options,
    )

  # Qwen3's own default is thinking on, so leaving the option out matters.
  renders = (
    ('q', render(messages['q']), len(render(messages['empty']))),
    (
      'q_given_a',
      render(messages['q_given_a'], enable_thinking=False),
      len(
        render(
          messages['q_given_a'][:-1],
          add_generation_prompt=True,
          enable_thinking=False,
        )
      ),
    ),
  )
  sequences, cut = [], ''
  nulls = {t: 'not scored by the released scorer' for t in ('a', 'a_given_q')}
  for term, rendered, boundary in renders:
    encoded = tokenizer.hf.backend_tokenizer.encode(rendered)
    ids = np.array(encoded.ids, np.int32)
    starts = np.array([start for start, _ in encoded.offsets], np.int64)
    if len(ids) > max_length:
      cut = f'{term} cut to {max_length} of {len(ids)} tokens'
      ids, starts = ids[:max_length], starts[:max_length]
    scored = np.flatnonzero(starts >= boundary)
    # Special tokens that the tokenizer adds have offset 0: never scored.
    if not scored.size or scored[0] < 1:
      nulls[term] = 'no token of the query is left'
      cut = cut or f'{term}: {nulls[term]}'
      continue
    sequences.append(
      Sequence(f'author_{term}', ids, ((term, int(scored[0]), len(ids)),))
    )
  return sequences, nulls, cut
