"""Readers: a data source -> its records, one at a time, in constant memory.

Every record of the input gives exactly one `Record`. What a record cannot
give (a malformed line, bytes that are not UTF-8) is said in it; what makes the
whole file unreadable is a `DataError` that names the file.
"""

from __future__ import annotations

import glob
import json
import os
import pathlib
from collections.abc import Iterator

from qaq_jax.data import arrow, hub, json_document
from qaq_jax.data import raw as raw_lib
from qaq_jax.data.types import DataError, DataSource, Record

SUFFIXES = {
  '.jsonl': 'jsonl',
  '.ndjson': 'jsonl',
  '.json': 'json',
  '.parquet': 'parquet',
  '.pq': 'parquet',
}
_HEAD = 1 << 20  # bytes by which a format is told
_PROBE = 100  # lines looked at before a file is refused as not JSONL
_DECODER = json.JSONDecoder()


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
    return sorted(
      p for p in glob.glob(path, recursive=True) if os.path.isfile(p)
    )
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
  paths = list_files(source.path)
  if not paths:
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
    source.format if source.format != 'auto' else sniff(f): f for f in paths
  }
  if len(formats) > 1:
    listed = ', '.join(f'{f} ({k})' for k, f in sorted(formats.items()))
    raise DataError(
      f'{source.path}: files of several formats: {listed}. Use a glob that '
      'matches one of them'
    )
  stats = [(f, os.stat(f)) for f in paths]
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
    'jsonl': read_jsonl,
    'json': json_document.read_json,
    'parquet': arrow.read_parquet,
  }[resolved['format']]
  paths = [f['path'] for f in resolved['files']]
  if resolved['format'] == 'parquet':
    arrow.check_same_columns(paths)
  for path in paths:
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
  text = raw_lib.read_head(path, _HEAD)
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
    isinstance(v, list)
    and v
    and isinstance(v[0], dict)
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
  with raw_lib.open_bytes(path) as f:
    for number, line in enumerate(raw_lib.lines(f, path), 1):
      if number == 1:
        line = raw_lib.strip_bom(line, path)
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


def _parse_line(line: bytes, number: int) -> Record:
  try:
    raw = line.decode('utf-8')
  except UnicodeDecodeError as e:
    return Record(
      line.decode('utf-8', 'surrogateescape'),
      None,
      f'not UTF-8: byte 0x{line[e.start]:02x} at position {e.start} of line '
      f'{number}',
    )
  try:
    value = json.loads(raw)
  except RecursionError:
    return Record(
      raw, None, f'malformed JSON: {raw_lib.TOO_DEEP}, line {number}'
    )
  except ValueError as e:
    what = getattr(e, 'msg', str(e))
    column = getattr(e, 'colno', 1)
    return Record(
      raw, None, f'malformed JSON: {what} at line {number} column {column}'
    )
  return raw_lib.to_record(raw, value, f' at line {number}')


def _suffix(name: str) -> str:
  return pathlib.Path(name.removesuffix('.gz')).suffix.lower()
