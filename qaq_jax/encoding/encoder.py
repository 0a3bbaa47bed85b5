"""Samples -> token ids with scored spans: the sequences a model is given.

Two sequences per sample give all four likelihoods (spec 1):

    forward = [system][user: Q][assistant: A]              terms q, a_given_q
    reverse = [system][user: reverse(A)][assistant: Q]     terms a, q_given_a

Q and A are encoded once each and their ids put into both sequences, so both
terms of Q are over identical ids, and both of A. A sequence ends with its last
scored token: what a template puts behind it is never seen by a causal model's
scored positions.

Source: QAQ, arXiv 2603.12165; the sharing of sequences is ours.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from collections.abc import Sequence as AbstractSequence

import numpy as np

from qaq_jax.data.types import REVERSE_INSTRUCTION, Sample
from qaq_jax.encoding import author, chat, published_ifd, tokenization
from qaq_jax.encoding.frames import Frame, Layout
from qaq_jax.encoding.options import EncoderOptions
from qaq_jax.encoding.sequences import Encoded, Sequence

__all__ = ['Encoded', 'Encoder', 'Sequence', 'REVERSE_INSTRUCTION']

_DEFAULTS = EncoderOptions()


class Encoder:
  """Encodes samples for one model; see the module's docstring."""

  def __init__(
    self,
    tokenizer_dir,
    options: EncoderOptions = _DEFAULTS,
    **changes,
  ):
    """Loads the tokenizer and renders the template.

    Args:
      tokenizer_dir: folder with the checkpoint's tokenizer files.
      options: the sequences; see EncoderOptions.
      **changes: fields of the options with other values.

    Raises:
      TokenizerError: no usable tokenizer in the folder.
      TemplateError: no usable chat template; the message lists the choices.
      ValueError: an option has a value it cannot have.
    """
    options = self.options = dataclasses.replace(options, **changes)
    template, reverse = options.template, options.reverse_instruction
    self.tokenizer = tokenization.load(tokenizer_dir)
    self.system_prompt = options.system_prompt or None
    hf = self.tokenizer.hf
    if template != chat.PLAIN:
      self._chat = chat.chat_of_template(
        hf,
        template,
        reverse_instruction=reverse,
        date_string=options.date_string,
      )
    elif options.author_compatible:
      raise chat.TemplateError(
        'score.author_compatible needs a chat template, not plain'
      )
    else:
      self._chat = chat.plain_chat(reverse)
    # The released scorer renders samples through the template itself, so its
    # pieces alone do not tell what the ids will be.
    self._author_template = (
      chat.find_template(hf, template)[0] if options.author_compatible else None
    )
    self._layout = Layout(self.tokenizer, self._chat)
    for frame in self.frames(self.system_prompt):
      if not len(frame.head):
        raise chat.TemplateError(
          f'the chat template ({self._chat.origin}) puts no token before '
          'the query, so its first token cannot be scored; use plain'
        )
      if frame.size >= options.max_length:
        raise ValueError(
          f'max_length={options.max_length} has no room: the template alone '
          f'takes {frame.size} tokens'
        )

  def encode(self, samples: AbstractSequence[Sample]) -> list[Encoded]:
    """Encodes samples, in their order; one result for each.

    Args:
      samples: any number; a few thousand at a time keep memory small.

    Returns:
      Per sample its status and, where that is 'ok' or 'truncated', its
      sequences: forward, reverse, then cherry_alone, cherry_cond,
      superfilter_alone, superfilter_cond as asked for.
    """
    good = [s for s in samples if s.status == 'ok']
    texts = [s.query for s in good] + [s.answer for s in good]
    ids = self.tokenizer.plain.encode_batch(texts)
    pairs = zip(good, ids[: len(good)], ids[len(good) :], strict=True)
    extra = self._encode_extra(good)
    encoded = iter(
      [self._encode_one(sample, q, a, extra) for sample, q, a in pairs]
    )
    return [
      next(encoded) if s.status == 'ok' else Encoded(s.row, s.status, s.reason)
      for s in samples
    ]

  def _encode_one(self, sample, q, a, extra) -> Encoded:
    """Fits the two sequences into the window and lays them out."""
    if not len(q) or not len(a):
      which = 'answer' if len(q) else 'query'
      return Encoded(sample.row, 'empty', f'no_tokens_in_{which}')
    system = sample.system or self.system_prompt
    forward, reverse = self.frames(system)
    more, nulls = extra.get(sample.row, ((), {}))
    if self.options.author_compatible:
      return self._author_row(sample, system, forward, q, a, more, nulls)
    limit, check_every = self.options.max_length, self.options.merge_check_every
    longest = len(q) + len(a) + max(forward.size, reverse.size)
    status, reason, in_forward, in_reverse = 'ok', '', len(a), len(a)
    if longest > limit:
      in_forward = min(len(a), limit - forward.size - len(q))
      in_reverse = min(len(a), limit - reverse.size - len(q))
      if self.options.on_long == 'skip' or min(in_forward, in_reverse) < 1:
        return Encoded(sample.row, 'too_long', f'{longest} tokens of {limit}')
      kept = min(in_forward, in_reverse)
      status = 'truncated'
      reason = f'answer cut to {kept} of {len(a)} tokens'
    kept = min(in_forward, in_reverse)
    sequences = (
      _lay_out('forward', forward, q, a[:kept], 'q', 'a_given_q'),
      _lay_out(
        'reverse',
        reverse,
        a[:in_reverse],
        q,
        'a',
        'q_given_a',
        scored_first=kept,
      ),
      *more,
    )
    merged = None
    if check_every and not sample.row % check_every:
      merged = self._layout.has_merges(
        (sample.query, q), (sample.answer, a), system
      )
    return Encoded(sample.row, status, reason, sequences, nulls, merged)

  def _author_row(self, sample, system, forward, q, a, more, nulls):
    messages = author.messages_of(
      sample,
      system,
      self.options.reverse_instruction,
      folded=self._chat.system == 'folded',
    )
    template = self._author_template
    assert template is not None, 'what is author-compatible has one'
    sequences, missing, cut = author.encode(
      self.tokenizer,
      messages,
      template=template,
      date_string=self.options.date_string,
      max_length=self.options.max_length,
    )
    if self.options.embeddings:
      ids = np.concatenate([forward.head, q, forward.between, a])
      sequences.append(Sequence('forward', ids[: self.options.max_length], ()))
    return Encoded(
      sample.row,
      'truncated' if cut else 'ok',
      cut,
      (*sequences, *more),
      {**nulls, **missing},
    )

  def _encode_extra(self, samples) -> Mapping[int, tuple]:
    """Sequences of the published IFD forms: row -> (sequences, nulls)."""
    found: dict[int, tuple] = {}
    for form in published_ifd.FORMS.values():
      if not getattr(self.options, form.option):
        continue
      limit = getattr(self.options, form.limit)
      results = form.encode(self.tokenizer, samples, limit)
      for sample, (sequences, nulls) in zip(samples, results, strict=True):
        before = found.get(sample.row, ((), {}))
        found[sample.row] = (before[0] + sequences, {**before[1], **nulls})
    return found

  def frames(self, system: str | None) -> tuple[Frame, Frame]:
    """Ids around the slots of the forward and the reverse sequence."""
    return self._layout.frames(system)

  def turn(self, sample: Sample) -> tuple[Frame, np.ndarray]:
    """Frame of the forward sequence, and the ids that end its answer."""
    system = sample.system or self.system_prompt
    return self.frames(system)[0], self._layout.ending(system)

  def own_ids(self, *, ending: bool = False) -> set[int]:
    """Ids that sequences can have besides those of the texts in them.

    Args:
      ending: also those that end an answer.

    Raises:
      TemplateError: no id ends an answer, see `Layout.ending`.
    """
    tokens, options = self.tokenizer, self.options
    # That one renders texts into the template: all that is spelled.
    if options.author_compatible:
      return {*tokens.hf.get_vocab().values(), *tokens.added_prefix}
    found: set[int] = set()
    # A row may bring a system prompt, and the template has words for it.
    for system in {self.system_prompt, self.system_prompt or 'a'}:
      for frame in self.frames(system):
        found.update(frame.head.tolist(), frame.between.tolist())
      if ending:
        found.update(self._layout.ending(system).tolist())
    if any(getattr(options, form) for form in published_ifd.FORMS):
      found.update(tokens.added_prefix)
    return found

  @property
  def stop_id(self) -> int:
    """The last of the ids that end an answer: a model that wrote it is done."""
    return int(self._layout.ending(self.system_prompt)[-1])

  def rendered(self, sample: Sample) -> tuple[str, str]:
    """Text of the forward and the reverse sequence, up to the scored end."""
    return self._layout.rendered(
      sample.query, sample.answer, sample.system or self.system_prompt
    )

  def fingerprint(self) -> dict:
    """All that can change an id: files, rendered pieces, options."""
    with_system = self.system_prompt is not None
    text = self._author_template
    return {
      **(
        {}
        if text is None
        else {'template_sha256': hashlib.sha256(text.encode()).hexdigest()}
      ),
      'tokenizer_files': dict(self.tokenizer.files),
      'pieces': {
        name: dataclasses.asdict(p)
        for kind in ('forward', 'reverse')
        for has_system, p in getattr(self._chat, kind).items()
        for name in [f'{kind}{"_with_system" if has_system else ""}']
      },
      'system_prompt_used': with_system,
      'prefix_ids': list(self._layout.prefix),
      'options': {
        name: value
        for name, value in dataclasses.asdict(self.options).items()
        if name != 'merge_check_every'  # changes no id
      }
      | {'system_prompt': self.system_prompt},
    }

  def info(self) -> dict:
    """What a user should see: template, system prompt, BOS, notes."""
    forward, _ = self.frames(self.system_prompt)
    bos = self.tokenizer.hf.bos_token_id
    head = forward.head.tolist()
    if self._chat.system == 'ignored':
      system = 'none (plain ignores system prompts)'
    elif self.system_prompt is None:
      system = "the row's own, else the template's default"
    else:
      system = "the row's own, else the config's" + (
        ', put before the user text' if self._chat.system == 'folded' else ''
      )
    return {
      'template': self._chat.origin,
      'system_prompt': system,
      'bos': 'none'
      if bos is None or bos not in head
      else f'{self.tokenizer.hf.bos_token} (once, by the template)',
      'head': self.tokenizer.decode(head),
      'notes': list(self._chat.notes),
    }


def _lay_out(
  kind, frame, first, second, first_term, second_term, scored_first=None
) -> Sequence:
  """Joins the ids of one sequence and marks its spans."""
  start = len(frame.head)
  scored = len(first) if scored_first is None else scored_first
  second_start = start + len(first) + len(frame.between)
  return Sequence(
    kind,
    np.concatenate([frame.head, first, frame.between, second]),
    (
      (first_term, start, start + scored),
      (second_term, second_start, second_start + len(second)),
    ),
  )
