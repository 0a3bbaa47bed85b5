"""Files that are whole or absent, and a lock that dies with its process.

Paths are `etils.epath` paths, so that work directories on gs:// and s3:// work.
Object stores write whole objects at once; the care below is for disks.
"""

import contextlib
import errno
import hashlib
import json
import os
import pathlib
import shutil
import socket
from collections.abc import Callable, Iterator, Mapping

from etils import epath

from qaq_jax.runtime import console

TEMPORARY = '.tmp-'  # in the name of every file that isn't whole yet
SEAL = 'sha256'  # key of a JSON object's own checksum
_SUM_LENGTH = 64
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class StoreError(ValueError):
  """Files of a work directory that can't be used; says which and what to do."""


def damaged(path, why, back: str) -> StoreError:
  """The error for a file that holds something else than was written.

  Args:
    path: the file.
    why: what was found.
    back: what to do, after 'FILE is damaged (WHY): '.
  """
  why = str(why).splitlines()[0] if str(why) else repr(why)
  return StoreError(f'{path} is damaged ({why}): {back}')


def check_readable(path, error: Exception) -> None:
  """Raises if an error of reading says nothing of what the file holds.

  Without permission, or when a disk or network fails, a file may be whole:
  nobody should be told to delete it.

  Args:
    path: the file.
    error: the error of reading it. The system's own have a number, those of
      decoders (pyarrow raises OSError too) have none.

  Raises:
    StoreError: names the file and what the system says.
  """
  if isinstance(error, IsADirectoryError):
    raise StoreError(
      f'{path} is a folder where a file is expected: move it away'
    ) from error
  if isinstance(error, OSError) and error.errno not in (None, errno.ENOENT):
    raise StoreError(
      f'{path} cannot be read ({os.strerror(error.errno)}). It may be whole: '
      'look at its permissions and at the disk, and keep it'
    ) from error


@contextlib.contextmanager
def naming(path) -> Iterator[None]:
  """An error of a full disk inside names `path` and what to do."""
  try:
    yield
  except OSError as e:
    if e.errno not in _FULL or e.filename is not None:
      raise
    raise OSError(
      e.errno,
      f'{os.strerror(e.errno)}; make room, and the same command goes on',
      os.fspath(path),
    ) from e


def write_atomic(path, data: bytes) -> None:
  """Writes a file so that a kill or a power cut leaves it whole or absent."""
  with atomic_file(path) as file:
    file.write(data)


@contextlib.contextmanager
def atomic_file(path, before: Callable | None = None):
  """Yields a binary file that takes `path`'s place when the block ends well.

  Args:
    path: the file.
    before: called with the whole file's temporary path before that.

  Raises:
    StoreError: there is a folder in its place.
  """
  path = epath.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  if path.is_dir():
    check_readable(path, IsADirectoryError(errno.EISDIR, 'is a folder'))
  temporary = path.parent / f'.{path.name}{TEMPORARY}{os.getpid()}'
  try:
    with naming(path), temporary.open('wb') as file:
      yield file
      file.flush()
      with contextlib.suppress(AttributeError, ValueError):
        _fsync(file.fileno())  # remote files have no descriptor
    if before is not None:
      before(temporary)
    temporary.replace(path)
  except BaseException:
    temporary.unlink(missing_ok=True)
    raise
  _sync(path.parent)


@contextlib.contextmanager
def atomic_folder(path) -> Iterator[pathlib.Path]:
  """Yields a new folder that takes `path`'s place when the block ends well.

  A kill leaves the old one, or for a moment none; what it leaves besides,
  NAME.partial and NAME.old, the next writer removes.
  """
  path = pathlib.Path(path)
  partial = path.with_name(f'{path.name}.partial')
  old = path.with_name(f'{path.name}.old')
  shutil.rmtree(partial, ignore_errors=True)
  partial.mkdir(parents=True)
  with naming(path):
    yield partial
    for inside in partial.rglob('*'):
      _sync(inside)
    _sync(partial)
  shutil.rmtree(old, ignore_errors=True)
  if path.exists():
    path.rename(old)
  partial.rename(path)
  shutil.rmtree(old, ignore_errors=True)
  _sync(path.parent)


def _fsync(descriptor):
  try:
    os.fsync(descriptor)
  except OSError as e:  # that a file system can't is no loss of data
    if e.errno in (*_FULL, errno.EIO):
      raise


def _sync(path):
  """Makes a file or a rename survive a power cut; only local ones can."""
  try:
    descriptor = os.open(os.fspath(path), os.O_RDONLY)
  except OSError:
    return
  try:
    _fsync(descriptor)
  finally:
    os.close(descriptor)


def remove_temporaries(directory) -> list[str]:
  """Deletes what killed writers left in `directory`; returns the names.

  Only the holder of the directory's lock may call it.
  """
  names = []
  for path in epath.Path(directory).iterdir():
    if path.name.startswith('.') and TEMPORARY in path.name:
      path.unlink(missing_ok=True)
      names.append(path.name)
  return names


def seal(value: Mapping) -> dict:
  """A JSON object with its own checksum, which `read_json` checks."""
  content = {k: v for k, v in value.items() if k != SEAL}
  return content | {SEAL: _sum(content)}


def _sum(content) -> str:
  text = json.dumps(content, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()


def check_seal(path, value: Mapping, back: str) -> None:
  """Refuses an object that has a seal, also by another name, and isn't its.

  Raises:
    StoreError: it is damaged.
  """
  for key, one in value.items():
    if key == SEAL or (isinstance(one, str) and len(one) == _SUM_LENGTH):
      fits = one == _sum({k: v for k, v in value.items() if k != key})
      if fits != (key == SEAL):
        raise damaged(path, 'not what was written', back)


def write_json(path, value, opened=atomic_file) -> None:
  """Writes JSON atomically, keys sorted.

  Args:
    path: the file.
    value: JSON-serialisable.
    opened: `atomic_file`, or the one of checksums.py.
  """
  text = json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False)
  with opened(path) as file:
    file.write((text + '\n').encode())


def read_json(
  path, back: str = 'delete it, and run the stage that writes it again'
) -> dict | None:
  """Reads a JSON object, or None where there is no such file.

  Args:
    path: the file.
    back: what to do about a damaged one.

  Raises:
    StoreError: it is no JSON object, or not the one that was sealed, or it
      cannot be read; names it.
  """
  path = epath.Path(path)
  try:
    data = path.read_bytes()
  except FileNotFoundError:
    return None
  except OSError as e:
    check_readable(path, e)
    raise
  try:
    value = json.loads(data)
  except (ValueError, RecursionError) as e:
    raise damaged(path, e, back) from e
  if not isinstance(value, dict):
    raise damaged(path, 'no JSON object', back)
  check_seal(path, value, back)
  return value


class Lock:
  """An exclusive lock on a folder or a file, gone when its process is gone.

  It is an advisory lock of the operating system on `FOLDER/.lock`, or on
  `.NAME.lock` beside a file, so kill -9 releases it and a left-over file means
  nothing. Remote folders can't be locked.
  """

  def __init__(self, path, back: str = 'use another --workdir'):
    """Takes the lock.

    Args:
      path: an existing folder, or a file, there or not.
      back: what to do instead of waiting.

    Raises:
      StoreError: another process holds it; names it.
    """
    self._file = None
    self._path = os.fspath(path)
    if '://' in self._path:
      return
    import fcntl  # not on Windows, where WSL is asked for

    name = os.path.realpath(self._path)  # one file, one lock
    folder, base = os.path.split(name)
    inside = os.path.isdir(name)
    name = f'{name}/.lock' if inside else f'{folder}/.{base}.lock'
    file = open(name, 'a+')  # noqa: SIM115  (open as long as the lock)
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as e:
      if e.errno in (errno.EAGAIN, errno.EACCES):
        file.seek(0)
        holder = file.read().strip() or 'unknown'
        file.close()
        raise StoreError(
          f'another process writes to {path} ({holder}); wait for it, '
          f'stop it, or {back}'
        ) from e
      console.say(f'{name}: this file system has no locks ({e})', aside=True)
    file.seek(0)
    file.truncate()
    file.write(f'pid {os.getpid()} on {socket.gethostname()}\n')
    file.flush()
    self._file = file

  def release(self) -> None:
    """Gives the lock back."""
    if self._file is not None:
      self._file.close()
      self._file = None
