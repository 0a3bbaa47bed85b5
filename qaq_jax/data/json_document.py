"""One JSON document -> its records, parsed piece by piece."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterator

from qaq_jax.data import raw as raw_lib
from qaq_jax.data.types import DataError, Record

_CHUNK = 1 << 20  # bytes read at a time
_MAX_VALUE = 1 << 28  # characters of one value
_DECODER = json.JSONDecoder()
_BLANK = re.compile(r'[ \t\r\n]*')


def read_json(path: str) -> Iterator[Record]:
  """Records of one JSON document, parsed piece by piece.

  The document is an array of objects, or an object with exactly one array of
  objects among its values. Elements that are not objects are invalid records.

  Raises:
    DataError: it is another document, is broken, or is not all of the file.
  """
  with raw_lib.open_bytes(path) as f:
    document = _Document(f, path)
    first = document.peek()
    if first == '[':
      yield from document.elements()
    elif first == '{':
      yield from _object_records(document, path)
    elif first:
      document.fail('expected an array or an object')
    if document.peek():
      document.fail(
        'expected the end of the file (one document is read; write each to a '
        'file of its own)'
      )


def _object_records(document: _Document, path: str) -> Iterator[Record]:
  """Records of the one array of objects inside a JSON object."""
  document.expect('{')
  keys: list[str] = []
  found = None
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
      f'{path}: an object without a list of records; its keys are {keys[:20]}'
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
      data = raw_lib.strip_bom(data, self._path)
      self._first = False
    self._end = not data
    data = self._pending + data
    cut = len(data) if self._end else _utf8_cut(data)
    self._pending = data[cut:]
    self._dropped += self._at
    self._text = self._text[self._at :] + data[:cut].decode(
      'utf-8', 'surrogateescape'
    )
    self._at = 0
    return True

  def peek(self) -> str:
    """Next character that is not white space; '' at the end."""
    while True:
      blank = _BLANK.match(self._text, self._at)
      assert blank is not None, 'it matches no characters, too'
      self._at = blank.end()
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
    near = self._text[at : at + 40]
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
          text = self._text[self._at : end]
          self._at = end
          return value, text
      except RecursionError as e:
        raise DataError(
          f'{self._path}: {raw_lib.TOO_DEEP} at character '
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
      yield raw_lib.to_record(raw, value)
    self.expect(']')


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
