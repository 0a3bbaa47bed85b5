"""Chat templates: the text around query and answer.

A template is rendered with sentinels in the places of system prompt, user text
and assistant text, and split there. Sample text never goes through it:
templates trim, split at `</think>` and inspect content (spec 1, template
mechanics).
"""

from __future__ import annotations

import dataclasses
import datetime
import importlib.resources
import json
import pathlib

PLAIN = 'plain'
AUTO = 'auto'
ANSWER_SLOT = '{answer}'
_FOLD = '\n\n'  # between a system prompt and the user text it is put before
# Letters only: nothing a template would trim, split at or escape.
_SYSTEM, _USER, _ASSISTANT = (
  f'Qaq{name}Sentinel{code}Qaq'
  for name, code in (('Sys', 'ZKVJW'), ('Usr', 'XQJZH'), ('Asst', 'WVKQX'))
)


class TemplateError(ValueError):
  """The chat template cannot be used; the message says why."""


@dataclasses.dataclass(frozen=True)
class Pieces:
  """The text around the two slots of one rendered sequence.

  `before` + first slot + `between` + second slot + `after`. With a system
  prompt, `before` is `before[0]` + system prompt + `before[1]`.
  """

  before: tuple[str, ...]  # one text, or two around the system prompt
  between: str
  after: str

  def head(self, system: str | None) -> str:
    """`before` with the system prompt in its place."""
    if len(self.before) == 1:
      return self.before[0]
    return f'{self.before[0]}{system}{self.before[1]}'


@dataclasses.dataclass(frozen=True)
class Chat:
  """Both sequences of one template, with and without a system prompt."""

  origin: str  # 'plain', or where the template came from
  forward: dict[bool, Pieces]  # key: is there a system prompt
  reverse: dict[bool, Pieces]
  system: str  # what becomes of a system prompt: 'role', 'folded', 'ignored'
  notes: tuple[str, ...] = ()


def shipped() -> list[str]:
  """Names of the templates that come with this package."""
  folder = importlib.resources.files('qaq_jax.encoding') / 'chat_templates'
  return sorted(
    f.name.removesuffix('.jinja')
    for f in folder.iterdir()
    if f.name.endswith('.jinja')
  )


def find_template(hf, name: str) -> tuple[str, str]:
  """The Jinja text of a template and a word on where it is from.

  Args:
    hf: the model's tokenizer.
    name: 'auto' (the tokenizer's own), a shipped name, or a path: a template
      file, a tokenizer_config.json, or a checkpoint folder to borrow from.

  Raises:
    TemplateError: there is none.
  """
  choices = f'plain, {", ".join(shipped())}, or a path'
  if name == AUTO:
    if not hf.chat_template:
      raise TemplateError(
        f'{hf.name_or_path}: its tokenizer has no chat template (a base '
        'model?). Set chat_template to that of its instruct sibling: ' + choices
      )
    return hf.get_chat_template(), "the tokenizer's own"
  if name in shipped():
    folder = importlib.resources.files('qaq_jax.encoding') / 'chat_templates'
    return (folder / f'{name}.jinja').read_text('utf-8'), f'shipped {name}'
  path = pathlib.Path(name)
  if path.is_dir():
    files = [
      path / f
      for f in (
        'chat_template.jinja',
        'chat_template.json',
        'tokenizer_config.json',
      )
      if (path / f).is_file()
    ]
  else:
    files = [path] if path.is_file() else []
  for file in files:
    if text := _template_in(file):
      return text, f'borrowed from {file}'
  raise TemplateError(
    f'chat_template={name!r}: no such template or none in it; choose '
    f'{AUTO}, {choices}'
  )


def _template_in(file: pathlib.Path) -> str | None:
  """The template that a file holds, if any."""
  text = file.read_text('utf-8')
  if file.suffix != '.json':
    return text
  found = json.loads(text).get('chat_template')
  if isinstance(found, list):  # several, by name
    return {t['name']: t['template'] for t in found}.get('default')
  return found


def check_reverse_instruction(text: str) -> tuple[str, str]:
  """The reverse instruction's text before and after its slot."""
  parts = text.split(ANSWER_SLOT)
  if len(parts) != 2:
    raise TemplateError(
      f'score.reverse_instruction must hold {ANSWER_SLOT} exactly once: '
      f'{text!r}'
    )
  return parts[0], parts[1]


def plain_chat(reverse_instruction: str) -> Chat:
  """No template: query, newline, answer. The prefix token is the Encoder's."""
  before, after = check_reverse_instruction(reverse_instruction)
  forward = Pieces(('',), '\n', '')
  reverse = Pieces((before,), after + '\n', '')
  return Chat(
    PLAIN,
    {False: forward, True: forward},
    {False: reverse, True: reverse},
    'ignored',
  )


def chat_of_template(
  hf, name: str, *, reverse_instruction: str, date_string: str
) -> Chat:
  """Renders a template once and splits it at the slots.

  Args:
    hf: the model's tokenizer.
    name: see `find_template`.
    reverse_instruction: text with an `{answer}` slot.
    date_string: 'DD Mon YYYY', for templates that print the date.

  Raises:
    TemplateError: the template does not keep what spec 1 needs: each text
      once and unchanged, and [system, user] a prefix of [system, user,
      assistant].
  """
  template, origin = find_template(hf, name)
  before, after = check_reverse_instruction(reverse_instruction)
  renderer = _Renderer(hf, template, origin, date_string)
  asked = f'{before}{_USER}{after}'
  forward = {False: renderer.pieces(_USER, 'none')}
  reverse = {False: renderer.pieces(asked, 'none')}
  system = 'role'
  try:
    forward[True] = renderer.pieces(_USER, 'role')
    reverse[True] = renderer.pieces(asked, 'role')
  except TemplateError:
    # No system role (Gemma 2), or one that is dropped or moves (Mistral).
    system = 'folded'
    forward[True] = renderer.pieces(_USER, 'folded')
    reverse[True] = renderer.pieces(asked, 'folded')
  return Chat(origin, forward, reverse, system, tuple(renderer.notes))


class _Renderer:
  """Renders one template with sentinels."""

  def __init__(self, hf, template, origin, date_string):
    self._hf = hf
    self._template = template
    self._origin = origin
    self._date_string = date_string
    self.notes: list[str] = []

  def pieces(self, user: str, system: str) -> Pieces:
    messages = [{'role': 'user', 'content': user}]
    if system == 'role':
      messages.insert(0, {'role': 'system', 'content': _SYSTEM})
    elif system == 'folded':
      messages[0]['content'] = f'{_SYSTEM}{_FOLD}{user}'
    asked = self._render(messages)
    prompt = self._render(messages, add_generation_prompt=True)
    messages.append({'role': 'assistant', 'content': _ASSISTANT})
    full = self._render(messages)
    slots = [_USER, _ASSISTANT] + ([_SYSTEM] if system != 'none' else [])
    for slot in slots:
      if full.count(slot) != 1:
        raise TemplateError(
          f'the chat template ({self._origin}) does not print the '
          f'{self._name(slot)} exactly once'
        )
    if not full.startswith(asked):
      raise TemplateError(
        f'the chat template ({self._origin}) renders [system, user] '
        'otherwise when an assistant turn follows, so one sequence cannot '
        'give both likelihoods; set chat_template to one of: plain, '
        + ', '.join(shipped())
      )
    before, rest = full.split(_USER)
    if _ASSISTANT in before:
      raise TemplateError(
        f'the chat template ({self._origin}) puts the assistant first'
      )
    between, after = rest.split(_ASSISTANT)
    note = (
      'the prompt for generation differs from the turn that is scored: '
      f'{prompt[len(asked) :]!r}'
    )
    if not full.startswith(prompt) and note not in self.notes:
      self.notes.append(note)
    head = tuple(before.split(_SYSTEM))
    if system != 'none' and len(head) != 2:
      raise TemplateError(
        f'the chat template ({self._origin}) puts the system prompt behind '
        'the query'
      )
    return Pieces(head, between, after)

  def _render(self, messages, add_generation_prompt=False) -> str:
    try:
      return render(
        self._hf,
        messages,
        template=self._template,
        date_string=self._date_string,
        enable_thinking=False,
        add_generation_prompt=add_generation_prompt,
      )
    except Exception as e:  # noqa: BLE001 templates raise what they like
      raise TemplateError(
        f'the chat template ({self._origin}) refuses '
        f'{[m["role"] for m in messages]}: {e}'
      ) from e

  def _name(self, slot):
    return {
      _USER: 'user text',
      _ASSISTANT: 'assistant text',
      _SYSTEM: 'system prompt',
    }[slot]


def render(hf, messages, *, template, date_string, **options) -> str:
  """Renders messages with a fixed date, through transformers.

  Templates may call `strftime_now`, which transformers binds to the clock and
  which cannot be handed in (it passes plain data only): a macro of that name
  in front of the template takes its place.
  """
  if 'strftime_now' in template:
    template = _FIXED_STRFTIME + template
    date = datetime.datetime.strptime(date_string, '%d %b %Y')
    options['fixed_date'] = {c: date.strftime(c) for c in _DATE_CODES}
  return hf.apply_chat_template(
    messages,
    chat_template=template,
    tokenize=False,
    date_string=date_string,
    **options,
  )


_DATE_CODES = [f'%{c}' for c in 'aAbBcdeFHIjmMpSuwyYxX'] + ['%-d', '%-m']
_FIXED_STRFTIME = (
  '{%- macro strftime_now(form) -%}'
  '{%- set date = namespace(text=form) -%}'
  '{%- for code, value in fixed_date.items() -%}'
  '{%- set date.text = date.text | replace(code, value) -%}'
  '{%- endfor -%}{{- date.text -}}{%- endmacro %}\n'
)
