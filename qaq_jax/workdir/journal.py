"""Files of JSON lines that can be killed at any time and gone on with."""

import json
import os
import pathlib
import threading
import zlib
from collections.abc import Callable, Mapping
from typing import BinaryIO

from qaq_jax.workdir import files
from qaq_jax.workdir import fingerprint as fingerprint_lib

_SUM = 'crc32'  # key of a line's own checksum
_HEADER = 'fingerprint'


class Journal:
  """One JSON object per line, each on disk as soon as it is added.

  A journal with a fingerprint begins with a line that holds it, and its lines
  carry checksums, so that one that was changed later is found. A journal
  without has the user's own lines alone.

  Attributes:
    records: the lines that were there, without header and checksums.
  """

  def __init__(
    self,
    path: str | os.PathLike,
    fingerprint: Mapping | None = None,
    *,
    fields: Mapping,
    write: bool = True,
    keep: Callable[[dict], bool] = lambda record: True,
    back: str = 'delete the line, and what it holds is made again',
  ):
    """Opens the file, or makes it.

    A line that a kill cut off at the end is removed.

    Args:
      path: the file.
      fingerprint: what the lines depend on, as `fingerprint.written` gives it;
        those of another one are not mixed with.
      fields: name -> type of what every line holds; for an object a mapping of
        the same kind.
      write: whether lines will be added; if not, the file stays as it is.
      keep: which lines of before stay.
      back: what to do about a damaged line.

    Raises:
      StoreError: another process writes there, the fingerprint is another (says
        what differs), or a line is damaged (says which).
      OSError: the file cannot be read or written.
    """
    self._path = pathlib.Path(path)
    self._fingerprint, self._fields, self._back = fingerprint, fields, back
    self._thread = threading.Lock()
    self._file: BinaryIO | None = None  # while lines can be added
    self._lock: files.Lock | None = None
    if not write:
      self.records = [record for record, _ in self._read()]
      return
    self._path.parent.mkdir(parents=True, exist_ok=True)
    self._lock = files.Lock(self._path, 'write to another file')
    try:
      found = self._read()
      kept = [(record, line) for record, line in found if keep(record)]
      self.records = [record for record, _ in kept]
      changed = self._mended or len(kept) < len(found)
      self._open([line for _, line in kept], changed)
    except BaseException:
      self.close()
      raise

  def _read(self) -> list[tuple[dict, bytes]]:
    """Lines that are whole, without the header, which is checked."""
    try:
      content = self._path.read_bytes()
    except FileNotFoundError:
      content = b''
    # A kill can leave half a line at the end, and a flipped bit a whole one.
    self._header, self._whole = b'', content[: content.rfind(b'\n') + 1]
    end = content[len(self._whole) :]
    for line in (end, end[:-1]):
      if self._fingerprint is not None and _is_whole(line):
        self._whole += line + b'\n'
        break
    self._mended = not content.startswith(self._whole)
    found, summed = [], False
    for number, line in enumerate(self._whole.splitlines(keepends=True), 1):
      where = f'{self._path}: line {number}'
      if self._fingerprint is not None and not self._header:
        record, summed = _parse(line, where, 'delete the file to begin again')
        self._check(record, where, self._fingerprint)
        self._header = line
      elif line.strip():
        record, has_sum = _parse(line, where, self._back)
        if summed and not has_sum:
          raise files.damaged(where, 'its checksum is gone', self._back)
        if lacks := _lacks(record, self._fields):
          raise files.damaged(where, lacks, self._back)
        found.append((record, line))
    return found

  def _check(self, record, where, fingerprint):
    old = record.get(_HEADER)
    if list(record) != [_HEADER] or not isinstance(old, dict):
      raise files.damaged(
        where,
        'it does not say what the others are of',
        'delete the file to begin again',
      )
    fingerprint_lib.check(
      old,
      fingerprint,
      what=f'{self._path}: made with other settings',
      back='Set these back, delete the file, or write to another place',
    )

  def _open(self, kept, changed):
    if changed:
      files.write_atomic(self._path, self._header + b''.join(kept))
    self._file = self._path.open('ab')
    if not changed:
      self._file.truncate(len(self._whole))
    if self._fingerprint is not None and not self._header:
      self.add({_HEADER: self._fingerprint})

  def add(self, record: Mapping) -> None:
    """Appends a line; safe from several threads."""
    summed = self._fingerprint is not None
    text = json.dumps(record, ensure_ascii=summed)
    if summed:
      text = f'{text[:-1]}, "{_SUM}": "{_sum(text)}"}}'
    assert self._file is not None, 'opened to be read, or closed'
    with self._thread, files.naming(self._path):
      self._file.write(text.encode() + b'\n')
      self._file.flush()

  def sync(self) -> None:
    """Makes the lines survive a power cut."""
    assert self._file is not None, 'opened to be read, or closed'
    with files.naming(self._path):
      os.fsync(self._file.fileno())

  def close(self) -> None:
    """Closes the file and gives its lock back."""
    if self._file is not None:
      self._file.close()
      self._file = None
    if self._lock is not None:
      self._lock.release()
      self._lock = None


def _sum(text: str) -> str:
  return f'{zlib.crc32(text.encode()):08x}'


def _parse(line, where, back) -> tuple[dict, bool]:
  """The object of a line without its checksum, and whether it has one."""
  try:
    record = json.loads(line)
  except (ValueError, RecursionError) as e:
    raise files.damaged(where, e, back) from e
  if not isinstance(record, dict):
    raise files.damaged(where, 'no JSON object', back)
  if _SUM not in record:
    return record, False
  if record.pop(_SUM) != _sum(json.dumps(record)):
    raise files.damaged(where, 'other than was written', back)
  return record, True


def _is_whole(line) -> bool:
  """Whether a line without its end has a checksum, and fits it."""
  try:
    return _parse(line, '', '')[1]
  except files.StoreError:
    return False


def _lacks(record, fields) -> str:
  """What an object lacks of its fields; '' if nothing."""
  for name, kind in fields.items():
    value = record.get(name)
    nested = isinstance(kind, Mapping)
    if not isinstance(value, dict if nested else kind):
      return f'no good {name!r}'
    if nested and (lacks := _lacks(value, kind)):
      return f'{lacks} of {name!r}'
  return ''
