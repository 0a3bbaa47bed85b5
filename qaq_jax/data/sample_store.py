"""Prepared samples on disk: Parquet parts with random access by row range."""

from __future__ import annotations

import bisect
import collections
import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Iterable, Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from qaq_jax.data.types import DataError, Sample
from qaq_jax.data.unscorable import ReasonCounter
from qaq_jax.workdir import files

MANIFEST = 'samples.json'
VERSION = 2  # of the layout; a change makes older folders unreadable
_GROUP_ROWS = 1024  # rows of a row group, the unit of reading,
_GROUP_BYTES = 16 << 20  # or this many bytes of text, whichever is first

_SCHEMA = pa.schema(
  [
    ('row', pa.int64()),
    ('id', pa.string()),  # as JSON, so that 7 and "7" stay apart
    ('query', pa.string()),
    ('input', pa.string()),
    ('answer', pa.string()),
    ('system', pa.string()),
    ('status', pa.string()),
    ('reason', pa.string()),
    ('raw', pa.binary()),  # may hold bytes that are not UTF-8
  ]
)


def write_parts(
  samples: Iterable[Sample], out_dir, rows_per_part: int, info: dict
) -> dict:
  """Writes samples to `out_dir` in one step; returns the manifest.

  Args:
    samples: the samples in order of their rows, which count from 0.
    out_dir: replaced by the new folder once that is complete.
    rows_per_part: rows per file.
    info: goes into the manifest.
  """
  if rows_per_part < 1:
    raise ValueError(f'rows_per_part={rows_per_part}: at least 1')
  with files.atomic_folder(out_dir) as partial:
    return _write_parts(samples, partial, rows_per_part, info)


def _write_parts(samples, folder, rows_per_part, info):
  writer = _PartWriter(folder, rows_per_part)
  digest, has_id = hashlib.sha256(), False
  statuses: collections.Counter[str] = collections.Counter()
  reasons = ReasonCounter()
  for sample in samples:
    group = _to_row(sample)
    for value in group.values():
      digest.update(_hashable(value))
    statuses[sample.status] += 1
    reasons.add(sample)
    has_id |= sample.id is not None
    writer.add(group)
  writer.close()
  manifest = {
    'version': VERSION,
    'rows': writer.rows,
    'content_hash': digest.hexdigest(),
    'statuses': dict(sorted(statuses.items())),
    'reasons': reasons.result(),
    'has_id': has_id,
    'parts': writer.parts,
    **info,
  }
  manifest = files.seal(manifest)
  (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + '\n')
  return manifest


@dataclasses.dataclass(frozen=True)
class SampleStore:
  """Prepared samples, read by row range in constant memory."""

  directory: pathlib.Path
  info: dict  # the manifest, see `prepare`
  stamp: tuple = ()  # identity of the manifest's file when it was read
  checked: set[str] = dataclasses.field(default_factory=set, compare=False)

  @classmethod
  def open(cls, directory) -> SampleStore:
    """Opens a folder written by `prepare`.

    Raises:
      DataError: there is none, or it is incomplete.
      StoreError: the manifest cannot be read.
    """
    directory = pathlib.Path(directory)
    try:
      with open(directory / MANIFEST, encoding='utf-8') as file:
        stamp = _identity(os.fstat(file.fileno()))
        info = json.load(file)
    except FileNotFoundError as e:
      raise DataError(
        f'{directory}: no prepared samples; run the prepare stage first'
      ) from e
    except OSError as e:
      files.check_readable(directory / MANIFEST, e)
      raise
    except ValueError as e:
      raise _damaged(directory / MANIFEST, e) from e
    if not isinstance(info, dict):
      raise _damaged(directory / MANIFEST, 'no JSON object')
    if files.SEAL in info and info != files.seal(info):
      raise _damaged(directory / MANIFEST, 'not what was written')
    if info.get('version') != VERSION:
      raise DataError(
        f'{directory}: samples of layout version {info.get("version")}, this '
        f'program reads {VERSION}; run the prepare stage again'
      )
    if files.SEAL not in info:
      raise _damaged(directory / MANIFEST, 'not what was written')
    for part in info['parts']:
      if not (directory / part['file']).is_file():
        raise DataError(
          f'{directory}: {part["file"]} is missing; run the prepare stage again'
        )
    return cls(directory, info, stamp)

  def check(self) -> None:
    """Reads every part and compares its bytes with those once written.

    Raises:
      DataError: a part is damaged; the message names it.
    """
    for part in self.info['parts']:
      self._check_part(part)

  def _check_part(self, part):
    """Reads a part once and compares its bytes with those once written."""
    path = self.directory / part['file']
    if part['file'] in self.checked:
      return
    try:
      found = _sha256(path)
    except OSError as e:
      self._check_unchanged()
      files.check_readable(path, e)
      raise _damaged(path, e) from e
    if found != part['sha256']:
      self._check_unchanged()
      raise _damaged(path, 'other bytes than were written')
    self.checked.add(part['file'])

  @property
  def num_rows(self) -> int:
    """Number of rows, scorable or not."""
    return self.info['rows']

  @property
  def content_hash(self) -> str:
    """SHA-256 over the content of every row."""
    return self.info['content_hash']

  @property
  def has_id(self) -> bool:
    """Whether any row has an id of its own."""
    return self.info['has_id']

  def iter_rows(
    self, start: int = 0, stop: int | None = None
  ) -> Iterator[Sample]:
    """Yields samples `start <= row < stop` in order.

    Raises:
      IndexError: the range is not inside the store.
      DataError: a part is damaged, or the folder holds other samples than
        when the store was opened.
    """
    stop = self.num_rows if stop is None else stop
    for table in self._tables(start, stop, None):
      for row in table.to_pylist():
        yield _from_row(row)

  def iter_raw(
    self, start: int = 0, stop: int | None = None
  ) -> Iterator[bytes]:
    """Yields the raw lines of a row range, without line feeds."""
    stop = self.num_rows if stop is None else stop
    for table in self._tables(start, stop, ['raw']):
      yield from table.column('raw').to_pylist()

  def _tables(self, start, stop, columns) -> Iterator[pa.Table]:
    if not 0 <= start <= stop <= self.num_rows:
      raise IndexError(
        f'rows {start}:{stop} of a store with {self.num_rows} rows'
      )
    parts = self.info['parts']
    first = bisect.bisect_right([p['start'] for p in parts], start) - 1
    for part in parts[max(first, 0) :]:
      at = part['start']
      if at >= stop:
        return
      path = self.directory / part['file']
      try:
        self._check_part(part)
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
          self._check_unchanged()
          groups = [
            file.metadata.row_group(i).num_rows
            for i in range(file.num_row_groups)
          ]
          if (sum(groups), file.schema_arrow) != (part['rows'], _SCHEMA):
            # The footer has no checksum of its own.
            raise pa.ArrowInvalid('other rows or columns than were written')
          for group, rows in enumerate(groups):
            if at < stop and at + rows > start:
              table = file.read_row_group(group, columns=columns)
              if table.num_rows != rows:
                raise pa.ArrowInvalid(f'{table.num_rows} of {rows} rows')
              low, high = max(start - at, 0), min(stop - at, rows)
              yield table.slice(low, high - low)
            at += rows
      except (pa.ArrowException, OSError, UnicodeError) as e:
        self._check_unchanged()
        files.check_readable(path, e)
        raise _damaged(path, e) from e

  def _check_unchanged(self):
    """Raises if the folder has been replaced by one of other samples."""
    try:
      if _identity(os.stat(self.directory / MANIFEST)) == self.stamp:
        return
      now = SampleStore.open(self.directory).info
    except (OSError, DataError):
      now = {}
    if now.get('parts') != self.info['parts']:
      raise DataError(
        f'{self.directory}: was replaced by other samples while it was being '
        'read; start this run again, and prepare one folder from one run only'
      )


class _PartWriter:
  """Collects rows into row groups and parts."""

  def __init__(self, directory, rows_per_part):
    self._directory = directory
    self._rows_per_part = rows_per_part
    self._writer = None
    self._group, self._bytes = [], 0
    self.rows = 0
    self.parts: list[dict] = []

  def add(self, row: dict):
    if self._writer is None:
      name = f'part-{len(self.parts):06d}.parquet'
      self.parts.append({'file': name, 'start': self.rows, 'rows': 0})
      self._writer = pq.ParquetWriter(
        self._directory / name,
        _SCHEMA,
        compression='zstd',
        write_statistics=False,
        write_page_checksum=True,
      )
    self._group.append(row)
    self._bytes += len(row['raw']) + len(row['query']) + len(row['answer'])
    self.rows += 1
    self.parts[-1]['rows'] += 1
    full = self.parts[-1]['rows'] >= self._rows_per_part
    if full or len(self._group) >= _GROUP_ROWS or self._bytes >= _GROUP_BYTES:
      self._flush()
    if full:
      self.close()

  def _flush(self):
    if self._group:
      assert self._writer is not None, 'rows come after their part is open'
      self._writer.write_table(pa.Table.from_pylist(self._group, _SCHEMA))
    self._group, self._bytes = [], 0

  def close(self):
    if self._writer is not None:
      self._flush()
      self._writer.close()
      last = self.parts[-1]
      last['sha256'] = _sha256(self._directory / last['file'])
    self._writer = None


def _damaged(path, why) -> DataError:
  return DataError(
    f'{path}: damaged on the disk ({why}); run the prepare stage again, it '
    'writes damaged samples anew. If that fails too, look at the disk'
  )


def _identity(stat: os.stat_result) -> tuple:
  return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns


def _sha256(path) -> str:
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def _to_row(sample: Sample) -> dict:
  return {
    'row': sample.row,
    'id': None if sample.id is None else json.dumps(sample.id),
    'query': sample.query,
    'input': sample.input,
    'answer': sample.answer,
    'system': sample.system,
    'status': sample.status,
    'reason': sample.reason,
    'raw': _raw_bytes(sample.raw),
  }


def _from_row(row: dict) -> Sample:
  row['id'] = None if row['id'] is None else json.loads(row['id'])
  row['raw'] = row['raw'].decode('utf-8', 'surrogateescape')
  return Sample(**row)


def _hashable(value) -> bytes:
  """The value's type, length and bytes: no two rows hash alike by chance."""
  if value is None:
    return b'n'
  kind, data = (
    (b'b', value) if isinstance(value, bytes) else (b's', str(value).encode())
  )
  return kind + len(data).to_bytes(8, 'little') + data


def _raw_bytes(raw: str) -> bytes:
  return raw.encode('utf-8', 'surrogateescape')
