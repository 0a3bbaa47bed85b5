"""The records that pass between the files of `qaq_jax.data`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

COLUMN_ROLES = ('query', 'input', 'answer', 'messages', 'system', 'id')
TURNS = ('single', 'first', 'last')
FORMATS = ('auto', 'jsonl', 'json', 'parquet', 'hf')

# Ours: the paper publishes a wording for mathematics only (spec 1, rule 7).
REVERSE_INSTRUCTION = (
  'Below is a piece of code. Write the instruction that a user would have '
  'given to receive exactly this code as the answer. Reply with the '
  'instruction only.\n\n{answer}'
)

# Defaults of earlier versions: a folder of scores that was begun with one goes
# on with it.
EARLIER_REVERSE_INSTRUCTIONS: tuple[str, ...] = ()


class DataError(ValueError):
  """The input cannot be used; the message says where and what to do."""


@dataclasses.dataclass(frozen=True)
class DataSource:
  """Where samples come from. '' and 0, never None, mean "not given".

  Attributes:
    path: a file, folder or glob of JSONL, JSON (either may be gzipped) or
      Parquet; a folder written by `datasets.save_to_disk`; or a hub id. In a
      config '{workdir}' in it is the work directory.
    format: 'jsonl', 'json', 'parquet' or 'hf'; 'auto' looks at the path and
      the first bytes.
    split: the split of a hub or saved data set with several splits.
    name: configuration of a hub data set; '' = its default.
    revision: branch, tag or commit of a hub data set.
    columns: role (`COLUMN_ROLES`) -> name in the input; '' = recognised from
      the first records where that is unambiguous, and printed.
    turns: what to do with more than one exchange: 'single' (the row is
      invalid), 'first' or 'last' (that exchange alone is the sample).
    strip: strip white space around query, answer and the row's own system
      prompt.
    limit: first rows only; 0 = all.
  """

  path: str = ''
  format: str = 'auto'
  split: str = 'train'
  name: str = ''
  revision: str = ''
  columns: Mapping[str, str] = dataclasses.field(
    default_factory=lambda: dict.fromkeys(COLUMN_ROLES, '')
  )
  turns: str = 'single'
  strip: bool = True
  limit: int = 0

  def __post_init__(self):
    if not self.path:
      raise DataError('data.path is empty: name a file, folder or hub id')
    if self.format not in FORMATS:
      raise DataError(
        f'data.format={self.format!r}: choose one of {", ".join(FORMATS)}'
      )
    if self.turns not in TURNS:
      raise DataError(
        f'data.turns={self.turns!r}: choose one of {", ".join(TURNS)}'
      )
    unknown = sorted(set(self.columns) - set(COLUMN_ROLES))
    if unknown:
      raise DataError(
        f'data.columns has unknown keys {unknown}; there are: '
        + ', '.join(COLUMN_ROLES)
      )
    for field in ('split', 'name', 'revision'):
      if not isinstance(getattr(self, field), str):
        raise DataError(
          f"data.{field}={getattr(self, field)!r}: a text, '' = not given"
        )
    if not isinstance(self.limit, int) or self.limit < 0:
      raise DataError(f'data.limit={self.limit!r}: a number of rows, 0 = all')
    set_ = object.__setattr__
    set_(self, 'path', str(self.path))
    set_(self, 'columns', {k: v for k, v in self.columns.items() if v})


@dataclasses.dataclass(frozen=True)
class Sample:
  """One row of the input.

  Attributes:
    row: 0-based position in the input; the key everywhere.
    id: the user's own id, carried along; may repeat; None if there is none.
    query: Q; '' for an invalid row.
    answer: A; '' for an invalid row.
    system: the row's own system prompt, or None.
    status: 'ok', 'empty' or 'invalid'.
    reason: why not 'ok'; '' for 'ok'.
    raw: the record as one line of JSON in the input's own schema, for JSONL
      the line itself (bytes that are not UTF-8 as surrogate escapes).
    input: the part of the query that came from an Alpaca `input` field.
  """

  row: int
  id: str | int | None
  query: str
  answer: str
  system: str | None
  status: str
  reason: str
  raw: str
  input: str = ''

  @property
  def instruction(self) -> str:
    """The query without its `input` part; '' if there is nothing else."""
    if self.input and self.query.strip() == self.input.strip():
      return ''  # a blank instruction: the query is the input alone
    if self.input and self.query.endswith('\n' + self.input):
      return self.query[: -len(self.input) - 1]
    return self.query


@dataclasses.dataclass(frozen=True)
class Record:
  """One record of the input before its columns are known.

  Attributes:
    raw: the record as in `Sample`.
    value: the parsed record (a dict), or None.
    problem: why `value` is None.
  """

  raw: str
  value: dict | None
  problem: str = ''
