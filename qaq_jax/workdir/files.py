"""Files that are whole or absent, and a lock that dies with its process.

Paths are `etils.epath` paths, so that work directories on gs:// and s3:// work.
Object stores write whole objects at once; the care below is for disks.
"""

import contextlib
import errno
import json
import logging
import os
import socket
from collections.abc import Mapping

from etils import epath

TEMPORARY = '.tmp-'  # in the name of every file that isn't whole yet


class StoreError(ValueError):
  """Files of a work directory that can't be used; says which and what to do."""


def write_atomic(path, data: bytes) -> None:
  """Writes a file so that a kill or a power cut leaves it whole or absent."""
  path = epath.Path(path)
  with atomic_file(path) as file:
    file.write(data)


@contextlib.contextmanager
def atomic_file(path):
  """Yields a binary file that takes `path`'s place when the block ends well."""
  path = epath.Path(path)
  temporary = path.parent / f'.{path.name}{TEMPORARY}{os.getpid()}'
  try:
    with temporary.open('wb') as file:
      yield file
      file.flush()
      with contextlib.suppress(AttributeError, OSError, ValueError):
        os.fsync(file.fileno())  # remote files have no descriptor
    temporary.replace(path)
  except BaseException:
    temporary.unlink(missing_ok=True)
    raise
  _sync_directory(path.parent)


def _sync_directory(path):
  """Makes a rename survive a power cut; only local directories can."""
  with contextlib.suppress(OSError):
    descriptor = os.open(os.fspath(path), os.O_RDONLY)
    try:
      os.fsync(descriptor)
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


def write_json(path, value) -> None:
  """Writes JSON atomically, keys sorted."""
  text = json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False)
  write_atomic(path, (text + '\n').encode())


def read_json(path):
  """Reads JSON, or None where there is no such file.

  Raises:
    StoreError: the file is not JSON.
  """
  path = epath.Path(path)
  if not path.exists():
    return None
  try:
    return json.loads(path.read_text())
  except ValueError as e:
    raise StoreError(
      f'{path} is damaged ({e}); delete the folder {path.parent} to score again'
    ) from e


def differences(old, new, name: str = '') -> list[str]:
  """Lists what differs between two JSON values, as 'field: old -> new'."""
  if isinstance(old, Mapping) and isinstance(new, Mapping):
    found = []
    for key in sorted(set(old) | set(new), key=str):
      path = f'{name}.{key}' if name else str(key)
      if key not in old:
        found.append(f'{path}: (absent) -> {_short(new[key])}')
      elif key not in new:
        found.append(f'{path}: {_short(old[key])} -> (absent)')
      else:
        found += differences(old[key], new[key], path)
    return found
  if old != new:
    return [f'{name}: {_short(old)} -> {_short(new)}']
  return []


def _short(value, limit=100):
  text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
  return text if len(text) <= limit else f'{text[:limit]}...'


class Lock:
  """An exclusive lock on a folder, gone when its process is gone.

  It is an advisory lock of the operating system on `.lock`, so kill -9
  releases it and a left-over file means nothing. Remote folders can't be
  locked.
  """

  def __init__(self, directory):
    """Takes the lock.

    Args:
      directory: an existing folder.

    Raises:
      StoreError: another process holds it.
    """
    self._file = None
    path = os.fspath(epath.Path(directory) / '.lock')
    if '://' in path:
      return
    import fcntl  # not on Windows, where WSL is asked for

    file = open(path, 'a+')  # noqa: SIM115  (open as long as the lock)
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as e:
      if e.errno in (errno.EAGAIN, errno.EACCES):
        file.seek(0)
        holder = file.read().strip() or 'unknown'
        file.close()
        raise StoreError(
          f'another process writes to {directory} ({holder}); wait for it, '
          'stop it, or use another --workdir'
        ) from e
      logging.warning('%s: this file system has no locks (%s)', path, e)
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
