"""Bytes of an input file, zipped or not, and records of parsed values."""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Iterator

from qaq_jax.data.types import DataError, Record

TOO_DEEP = 'nested too deeply'
_ESCAPED_BYTES = re.compile('[\udc80-\udcff]')  # of 'surrogateescape'


def to_record(raw: str, value, where: str = '') -> Record:
  """A record, or why the parsed value is none."""
  if not isinstance(value, dict):
    kind = type(value).__name__
    return Record(raw, None, f'not a JSON object but a {kind}{where}')
  if not raw.isascii() and _ESCAPED_BYTES.search(raw):
    return Record(raw, None, f'not UTF-8: bytes that are no text{where}')
  return Record(raw, value)


def open_bytes(path: str):
  """Opens a file for reading, through gzip if its first bytes say so."""
  with open(path, 'rb') as f:
    zipped = f.read(2) == b'\x1f\x8b'
  return gzip.open(path, 'rb') if zipped else open(path, 'rb')


def lines(file, path) -> Iterator[bytes]:
  """Lines with their ends; a damaged gzip file is a `DataError`."""
  try:
    yield from file
  except (EOFError, gzip.BadGzipFile, zlib.error) as e:
    raise DataError(f'{path}: damaged gzip file ({e})') from e


def read_head(path: str, size: int) -> str:
  """The file's first bytes as text, without white space around."""
  with open_bytes(path) as f:
    try:
      data = f.read(size)
    except (EOFError, OSError, zlib.error) as e:
      raise DataError(f'{path}: damaged gzip file ({e})') from e
  return strip_bom(data, path).decode('utf-8', 'surrogateescape').strip()


def strip_bom(data: bytes, path: str) -> bytes:
  """The first bytes of a file without a UTF-8 byte order mark."""
  if data[:2] in (b'\xff\xfe', b'\xfe\xff'):
    raise DataError(
      f'{path}: UTF-16 text; convert it with iconv -f UTF-16 -t UTF-8'
    )
  return data.removeprefix(b'\xef\xbb\xbf')
