"""Readers: a data source -> its records, one at a time, in constant memory.

Every record of the input gives exactly one `Record`. What a record cannot
give (a malformed line, bytes that are not UTF-8) is said in it; what makes the
whole file unreadable is a `DataError` that names the file.
"""

from __future__ import annotations

import glob
import gzip
import json
import os
import pathlib
import re
import zlib
from collections.abc import Iterator

from qaq_jax.data import arrow, hub
from qaq_jax.data.types import DataError, DataSource, Record

SUFFIXES = {
    '.jsonl': 'jsonl',
    '.ndjson': 'jsonl',
    '.json': 'json',
    '.parquet': 'parquet',
    '.pq': 'parquet',
}
_CHUNK = 1 << 20  # characters read at a time from a JSON document
_MAX_VALUE = 1 << 28  # characters of one value of a JSON document
_PROBE = 100  # lines looked at before a file is refused as not JSONL
_MAX_DEPTH_NOTE = 'nested too deeply'
_DECODER = json.JSONDecoder()
_BLANK = re.compile(r'[ \t\r\n]*')
_ESCAPED_BYTES = re.compile('[\udc80-\udcff]')


def list_files(path: str) -> list[str]:
  """The files of a path, folder or glob, sorted; [] if there are none."""
  if os.path.isfile(path):
    return [path]
  if os.path.isdir(path):
    found = [
        str(p)
        for p in pathlib.Path(path).rglob('*')
        if p.is_file()
        and _suffix(p.name) in SUFFIXES
        and not any(part[0] in '._' for part in p.relative_to(path).parts)
    ]
    return sorted(found)
  if glob.has_magic(path):
    return sorted(p for p in glob.glob(path, recursive=True)
                  if os.path.isfile(p))
  return []


def resolve(source: DataSource) -> dict:
  """Finds what the source is, without reading its rows.

  Returns:
    For files: `{'format', 'files': [{'path', 'size', 'mtime_ns'}]}`. For a
    saved or hub data set: `{'format': 'hf', ...}` with what was resolved (the
    commit of a hub data set among it).

  Raises:
    DataError: nothing is there, or it is of several formats.
  """
  if source.format == 'hf' or hub.is_saved_dataset(source.path):
    return {'format': 'hf', **hub.resolve(source)}
  files = list_files(source.path)
  if not files:
    if os.path.isdir(source.path):
      raise DataError(
          f'{source.path}: no file ending in {", ".join(SUFFIXES)} (or .gz) '
          'in this folder'
      )
    if source.format == 'auto' and hub.looks_like_hub_id(source.path):
      return {'format': 'hf', **hub.resolve(source)}
    raise DataError(
        f'{source.path}: no such file, folder or glob. A hub data set is '
        'written owner/name'
    )
  formats = {
      source.format if source.format != 'auto' else sniff(f): f for f in files
  }
  if len(formats) > 1:
    listed = ', '.join(f'{f} ({k})' for k, f in sorted(formats.items()))
    raise DataError(
        f'{source.path}: files of several formats: {listed}. Use a glob that '
        'matches one of them'
    )
  stats = [(f, os.stat(f)) for f in files]
  return {
      'format': next(iter(formats)),
      'files': [
          {'path': f, 'size': s.st_size, 'mtime_ns': s.st_mtime_ns}
          for f, s in stats
      ],
  }


def read_records(source: DataSource, resolved: dict) -> Iterator[Record]:
  """Yields the source's records in order; see the module's docstring."""
  if resolved['format'] == 'hf':
    yield from hub.read(source, resolved)
    return
  reader = {
      'jsonl': read_jsonl, 'json': read_json, 'parquet': arrow.read_parquet
  }[resolved['format']]
  files = [f['path'] for f in resolved['files']]
  if resolved['format'] == 'parquet':
    arrow.check_same_columns(files)
  for path in files:
    yield from reader(path)


def sniff(path: str) -> str:
  """Format of a file, by its first bytes; the suffix breaks ties."""
  by_name = SUFFIXES.get(_suffix(os.path.basename(path)))
  with open(path, 'rb') as f:
    if f.read(4) == b'PAR1':
      return 'parquet'
  if by_name == 'parquet':
    raise DataError(f'{path}: not a Parquet file (its first bytes say so)')
  if by_name == 'jsonl':
    return 'jsonl'  # what is wrong inside is said by read_jsonl
  text = _read_head(path)
  if text.startswith('['):
    return 'json'
  if not text:
    return by_name or 'jsonl'
  if not text.startswith('{'):
    raise DataError(
        f'{path}: neither JSON, JSON Lines nor Parquet; it begins with '
        f'{text[:40]!r}'
    )
  # An object: several on lines of their own (JSON Lines), or one document.
  try:
    value, end = _DECODER.raw_decode(text)
  except (ValueError, RecursionError):
    first_line = text.split('\n', 1)[0]
    return 'json' if len(first_line) < len(text) else by_name or 'jsonl'
  one_document = not text[end:].strip() and any(
      isinstance(v, list) and v and isinstance(v[0], dict)
      and k not in ('messages', 'conversations', 'conversation')
      for k, v in value.items()
  )
  return 'json' if one_document else 'jsonl'


def read_jsonl(path: str) -> Iterator[Record]:
  """Records of a JSON Lines file; blank lines are not records.

  `raw` is the line without its line feed (a carriage return stays, so that
  chosen lines leave as they came). A byte order mark at the beginning belongs
  to the file, not to the line.
  """
  parsed_any = False
  bad: list[Record] = []  # held back until the file is known to be JSONL
  with _open(path) as f:
    for number, line in enumerate(_lines(f, path), 1):
      if number == 1:
        line = _strip_bom(line, path)
      if not line.strip():
        continue
      record = _parse_line(line.removesuffix(b'\n'), number)
      if not parsed_any and not bad and line.strip() == b'[':
        bad.append(record)
        break
      if parsed_any:
        yield record
        continue
      bad.append(record)
      parsed_any = record.value is not None
      if parsed_any:
        yield from bad
        bad = []
      elif len(bad) >= _PROBE:
        break
  if bad:
    raise DataError(
        f'{path}: not JSON Lines: none of its first {len(bad)} non-blank lines '
        f'is a JSON object ({bad[0].problem}). For one JSON array or document '
        'set data.format=json'
    )


def read_json(path: str) -> Iterator[Record]:
  """Records of one JSON document, parsed piece by piece.

  The document is an array of objects, or an object with exactly one array of
  objects among its values. Elements that are not objects are invalid records.
  """
  with _open(path) as f:
    document = _Document(f, path)
    first = document.peek()
    if first == '[':
      yield from document.elements()
    elif first == '{':
      yield from _object_records(document, path)
    elif first:
      document.fail('expected an array or an object')


def _object_records(document: _Document, path: str) -> Iterator[Record]:
  """Records of the one array of objects inside a JSON object."""
  document.expect('{')
  keys, found = [], None
  while document.peek() != '}':
    if keys:
      document.expect(',')
    key, _ = document.value()
    if not isinstance(key, str):
      document.fail('expected a key')
    document.expect(':')
    keys.append(key)
    if document.peek() != '[':
      document.value()
      continue
    records = document.elements()
    head = next(records, None)
    if head is None or head.value is None:  # a list, but not of records
      for _ in records:
        pass
      continue
    if found:
      raise DataError(
          f'{path}: both {found!r} and {key!r} hold lists of records; write '
          'the wanted one to a file of its own'
      )
    found = key
    yield head
    yield from records
  document.expect('}')
  if not found:
    raise DataError(
        f'{path}: an object without a list of records; its keys are '
        f'{keys[:20]}'
    )


class _Document:
  """A JSON document read in chunks; holds one value (and a chunk) at a time."""

  def __init__(self, file, path):
    self._file = file
    self._path = path
    self._text = ''
    self._at = 0
    self._dropped = 0  # characters before self._text
    self._pending = b''
    self._end = False
    self._first = True

  def _more(self, size=_CHUNK) -> bool:
    if self._end:
      return False
    try:
      data = self._file.read(size)
    except (EOFError, OSError, zlib.error) as e:
      raise DataError(f'{self._path}: damaged gzip file ({e})') from e
    if self._first:
      data = _strip_bom(data, self._path)
      self._first = False
    self._end = not data
    data = self._pending + data
    cut = len(data) if self._end else _utf8_cut(data)
    self._pending = data[cut:]
    self._dropped += self._at
    self._text = self._text[self._at:] + data[:cut].decode(
        'utf-8', 'surrogateescape'
    )
    self._at = 0
    return True

  def peek(self) -> str:
    """Next character that is not white space; '' at the end."""
    while True:
      self._at = _BLANK.match(self._text, self._at).end()
      if self._at < len(self._text):
        return self._text[self._at]
      if not self._more():
        return ''

  def expect(self, char):
    if self.peek() != char:
      self.fail(f'expected {char!r}')
    self._at += 1

  def fail(self, what, at=None):
    at = self._at if at is None else at
    near = self._text[at: at + 40]
    raise DataError(
        f'{self._path}: not valid JSON at character {self._dropped + at}: '
        f'{what}, found {near!r}'
    )

  def value(self):
    """Next value and its source text."""
    self.peek()
    size = _CHUNK
    while True:
      try:
        value, end = _DECODER.raw_decode(self._text, self._at)
        # A number may go on in the next chunk.
        if end < len(self._text) or not self._more(size):
          text = self._text[self._at: end]
          self._at = end
          return value, text
      except RecursionError as e:
        raise DataError(
            f'{self._path}: {_MAX_DEPTH_NOTE} at character '
            f'{self._dropped + self._at}'
        ) from e
      except ValueError as e:
        if len(self._text) - self._at > _MAX_VALUE or not self._more(size):
          self.fail(getattr(e, 'msg', str(e)), getattr(e, 'pos', None))
      size *= 2  # a value of many chunks is parsed few times

  def elements(self) -> Iterator[Record]:
    self.expect('[')
    first = True
    while self.peek() != ']':
      if not first:
        self.expect(',')
      first = False
      value, text = self.value()
      # A line feed in valid JSON is outside of strings.
      raw = re.sub(r'[ \t]*[\r\n][ \t\r\n]*', ' ', text)
      yield _record(raw, value)
    self.expect(']')


def _parse_line(line: bytes, number: int) -> Record:
  try:
    raw = line.decode('utf-8')
  except UnicodeDecodeError as e:
    return Record(
        line.decode('utf-8', 'surrogateescape'), None,
        f'not UTF-8: byte 0x{line[e.start]:02x} at position {e.start} of line '
        f'{number}',
    )
  try:
    value = json.loads(raw)
  except RecursionError:
    return Record(raw, None, f'malformed JSON: {_MAX_DEPTH_NOTE}, '
                  f'line {number}')
  except ValueError as e:
    what = getattr(e, 'msg', str(e))
    column = getattr(e, 'colno', 1)
    return Record(
        raw, None, f'malformed JSON: {what} at line {number} column {column}'
    )
  return _record(raw, value, f' at line {number}')


def _record(raw: str, value, where: str = '') -> Record:
  if not isinstance(value, dict):
    kind = type(value).__name__
    return Record(raw, None, f'not a JSON object but a {kind}{where}')
  if not raw.isascii() and _ESCAPED_BYTES.search(raw):
    return Record(raw, None, f'not UTF-8: bytes that are no text{where}')
  return Record(raw, value)


def _utf8_cut(data: bytes) -> int:
  """Length of the longest prefix that does not end inside a character."""
  for back in range(1, min(4, len(data)) + 1):
    byte = data[-back]
    if byte < 0x80:
      return len(data)
    if byte >= 0xC0:  # a lead byte: is its character complete?
      need = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
      return len(data) if back >= need else len(data) - back
  return len(data)


def _suffix(name: str) -> str:
  return pathlib.Path(name.removesuffix('.gz')).suffix.lower()


def _open(path: str):
  with open(path, 'rb') as f:
    zipped = f.read(2) == b'\x1f\x8b'
  return gzip.open(path, 'rb') if zipped else open(path, 'rb')


def _lines(file, path) -> Iterator[bytes]:
  try:
    yield from file
  except (EOFError, gzip.BadGzipFile, zlib.error) as e:
    raise DataError(f'{path}: damaged gzip file ({e})') from e


def _read_head(path: str) -> str:
  with _open(path) as f:
    try:
      data = f.read(_CHUNK)
    except (EOFError, OSError, zlib.error) as e:
      raise DataError(f'{path}: damaged gzip file ({e})') from e
  return _strip_bom(data, path).decode('utf-8', 'surrogateescape').strip()


def _strip_bom(data: bytes, path: str) -> bytes:
  if data[:2] in (b'\xff\xfe', b'\xfe\xff'):
    raise DataError(
        f'{path}: UTF-16 text; convert it with iconv -f UTF-16 -t UTF-8'
    )
  return data.removeprefix(b'\xef\xbb\xbf')
