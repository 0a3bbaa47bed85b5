"""Which fields of a record are query and answer; record -> `Sample`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from qaq_jax.data.arrow import dump_line
from qaq_jax.data.types import (
  COLUMN_ROLES,
  DataError,
  DataSource,
  Record,
  Sample,
)

# Names whose meaning is unambiguous when they stand alone in their role.
QUERY_NAMES = ('instruction', 'query', 'prompt', 'question', 'problem')
ANSWER_NAMES = ('output', 'response', 'answer', 'completion', 'solution')
MESSAGES_NAMES = ('messages', 'conversations', 'conversation')
SYSTEM_NAMES = ('system', 'system_prompt')
USER_ROLES = ('user', 'human')
ASSISTANT_ROLES = ('assistant', 'gpt', 'model', 'chatgpt', 'bing', 'bard')

_SURROGATE = re.compile('[\ud800-\udfff]')


class RowProblem(Exception):  # noqa: N818 not an error of the program
  """Why a record is not a scorable sample: (status, reason)."""


def recognise(
  records: Iterable[Record], mapped: Mapping[str, str], where: str
) -> dict[str, str]:
  """Chooses the column of each role.

  Args:
    records: the first records.
    mapped: role -> column, what the user said.
    where: the input's name, for messages.

  Returns:
    role -> column: `messages`, or `query` and `answer` (and `input`); `system`
    and `id` where there are such columns.

  Raises:
    DataError: a mapped column is in no record, or the roles cannot be told
      without doubt; the message lists the columns and the line to add.
  """
  found: dict[str, None] = {}
  for record in records:
    found.update(dict.fromkeys(record.value or ()))
  chosen = dict(mapped)
  for role, column in chosen.items():
    if column not in found:
      raise DataError(
        f'{where}: data.columns.{role}={column!r} is in none of the first '
        f'records; their columns: {list(found)}'
      )
  pair_mapped = 'query' in chosen or 'answer' in chosen
  if 'messages' in chosen and pair_mapped:
    raise DataError(
      f'{where}: data.columns maps messages and also query or answer; map '
      'one kind'
    )
  if 'messages' not in chosen:
    queries = [c for c in QUERY_NAMES if c in found]
    answers = [c for c in ANSWER_NAMES if c in found]
    chats = [] if pair_mapped else [c for c in MESSAGES_NAMES if c in found]
    for role, names in (('query', queries), ('answer', answers)):
      if role in chosen:
        names[:] = [chosen[role]]
    # `problem, solution, answer`: a name in both roles is in doubt too.
    if chats and not queries + answers and len(chats) == 1:
      chosen['messages'] = chats[0]
    elif not chats and len(queries) == len(answers) == 1:
      chosen['query'], chosen['answer'] = queries[0], answers[0]
      if queries[0] == 'instruction' and 'input' in found:
        chosen.setdefault('input', 'input')
    else:
      raise DataError(_cannot_tell(where, found, queries, answers, chats))
  for role, known in (('system', SYSTEM_NAMES), ('id', ('id',))):
    present = [c for c in known if c in found]
    if role not in chosen and len(present) == 1:
      chosen[role] = present[0]
  return {r: chosen[r] for r in COLUMN_ROLES if r in chosen}


def _cannot_tell(where, found, queries, answers, chats):
  candidates = [
    f'{role}: {names}'
    for role, names in (
      ('query', queries),
      ('answer', answers),
      ('messages', chats),
    )
    if names
  ]
  example = (
    f'--config.data.columns.messages={chats[0]}'
    if chats
    else f'--config.data.columns.query={(queries or ["QUERY_COLUMN"])[0]} '
    f'--config.data.columns.answer={(answers or ["ANSWER_COLUMN"])[0]}'
  )
  return (
    f'{where}: cannot tell query and answer among the columns {list(found)}'
    + (f' (candidates: {"; ".join(candidates)})' if candidates else '')
    + f'. Say which, for example: {example}'
  )


def to_sample(
  row: int, record: Record, columns: Mapping[str, str], source: DataSource
) -> Sample:
  """Makes the sample of one record; never raises for what is in it."""
  made: dict = dict(id=None, query='', answer='', system=None, input='')
  status, reason = 'ok', ''
  try:
    if record.value is None:
      raise RowProblem('invalid', record.problem)
    made['id'] = _read_id(record.value.get(columns.get('id')))
    if 'messages' in columns:
      system, pairs = _from_messages(record.value, columns['messages'])
      own = _text(record.value, columns.get('system'), optional=True)
      system = system or own
      query, answer = _choose(pairs, source.turns)
    else:
      query, answer, system, made['input'] = _from_columns(
        record.value, columns, source.turns
      )
    if source.strip:
      query, answer = query.strip(), answer.strip()
      made['input'] = made['input'].rstrip()
      system = system and system.strip()
    for name, text in (
      ('query', query),
      ('answer', answer),
      ('system prompt', system or ''),
    ):
      if not text.isascii() and (hit := _SURROGATE.search(text)):
        raise RowProblem(
          'invalid',
          f'lone surrogate in the {name} at character {hit.start()}: not '
          'valid Unicode text',
        )
    made.update(query=query, answer=answer, system=system or None)
    if not query.strip():
      raise RowProblem('empty', 'empty_query')
    if not answer.strip():
      raise RowProblem('empty', 'empty_answer')
  except RowProblem as problem:
    status, reason = problem.args
    if status == 'invalid':
      made.update(query='', answer='', system=None, input='')
  return Sample(row=row, status=status, reason=reason, raw=record.raw, **made)


def _from_columns(value, columns, turns):
  """(query, answer, system, input) of a record with a column each."""
  query = _text(value, columns['query'])
  answer = _text(value, columns['answer'])
  extra = _text(value, columns.get('input'), optional=True)
  if extra.strip():
    query = f'{query}\n{extra}'
  else:
    extra = ''
  history = value.get('history')
  if isinstance(history, list) and history:  # LLaMA-Factory: earlier turns
    pairs = [tuple(p) for p in history if isinstance(p, list)]
    if len(pairs) != len(history) or any(
      len(p) != 2 or not all(isinstance(t, str) for t in p) for p in pairs
    ):
      raise RowProblem('invalid', 'wrong type: history is no list of pairs')
    if turns == 'first':
      (query, answer), extra = pairs[0], ''
    elif turns == 'single':
      raise RowProblem('invalid', 'multi_turn')
  system = _text(value, columns.get('system'), optional=True)
  return query, answer, system, extra


def _from_messages(value, column):
  """(system prompt, [(query, answer), ...]) of a record with messages."""
  turns = value.get(column)
  if column not in value:
    raise RowProblem('invalid', f'missing field: {column}')
  if not isinstance(turns, list):
    raise RowProblem('invalid', f'wrong type: {column} is no list')
  system, pairs, waiting = '', [], None
  for i, turn in enumerate(turns):
    role, text = _turn(turn, f'{column}[{i}]')
    if role == 'system':
      if i:
        raise RowProblem('invalid', 'turn_order: system turn is not first')
      system = text
    elif role == 'user':
      if waiting is not None:
        raise RowProblem('invalid', 'turn_order: two user turns in a row')
      waiting = text
    else:
      if waiting is None:
        raise RowProblem(
          'invalid', 'turn_order: assistant turn without a user turn'
        )
      pairs.append((waiting, text))
      waiting = None
  if waiting is not None:
    pairs.append((waiting, None))
  return system, pairs


def _turn(turn, where):
  if not isinstance(turn, dict):
    raise RowProblem('invalid', f'wrong type: {where} is no object')
  role = turn.get('role', turn.get('from'))
  text = turn.get('content', turn.get('value'))
  if isinstance(text, list):  # content parts
    if not all(
      isinstance(p, dict)
      and p.get('type') == 'text'
      and isinstance(p.get('text'), str)
      for p in text
    ):
      raise RowProblem('invalid', f'{where}: content that is not text')
    text = ''.join(p['text'] for p in text)
  if role in USER_ROLES:
    role = 'user'
  elif role in ASSISTANT_ROLES:
    role = 'assistant'
  elif role != 'system':
    raise RowProblem('invalid', f'{where}: unsupported role {str(role)[:40]!r}')
  if text is None:
    text = ''
  if not isinstance(text, str):
    raise RowProblem(
      'invalid', f'wrong type: {where} content is {type(text).__name__}'
    )
  return role, text


def _choose(pairs, turns):
  complete = [p for p in pairs if p[1] is not None]
  if not pairs:
    raise RowProblem('empty', 'empty_query')
  if len(pairs) > 1 and turns == 'single':
    raise RowProblem('invalid', 'multi_turn')
  if not complete:
    raise RowProblem('empty', 'empty_answer')
  return complete[-1 if turns == 'last' else 0]


def _text(value, column, optional=False):
  if column is None:
    return ''
  if column not in value:
    if optional:
      return ''
    raise RowProblem('invalid', f'missing field: {column}')
  text = value[column]
  if text is None:
    return ''
  if not isinstance(text, str):
    raise RowProblem(
      'invalid',
      f'wrong type: {column} is {type(text).__name__}, not text',
    )
  return text


def _read_id(value):
  if value is None or isinstance(value, str):
    text = value
  elif isinstance(value, int) and not isinstance(value, bool):
    return value
  else:
    text = dump_line(value)
  if text and not text.isascii() and _SURROGATE.search(text):
    text = text.encode('utf-8', 'backslashreplace').decode()
  return text
