"""Checksums beside files whose own format has none, in `NAME.qaq.sha256`.

A file without one is read unchecked: another program, or an earlier version,
wrote it. The one beside is written first and names what was there before as
well, so that a kill between the two leaves a pair that fits. `NAME.sha256` is
what people call checksums of their own.
"""

import contextlib
import functools
import hashlib
import os
from collections.abc import Collection, Iterator
from concurrent import futures

from etils import epath

from qaq_jax.workdir import files

SUFFIX = '.qaq.sha256'


@contextlib.contextmanager
def atomic_file(path) -> Iterator:
  """As `files.atomic_file`, with a checksum beside."""
  noting = lambda temporary: note(path, temporary)  # noqa: E731
  with files.atomic_file(path, noting) as file:
    yield file


@contextlib.contextmanager
def noted(path) -> Iterator[None]:
  """Writes the checksums of a folder that the block makes, beside it.

  A kill within leaves it without.
  """
  _beside(path).unlink(missing_ok=True)
  yield
  note(path)


def note(path, of=None, beside=None) -> None:
  """Writes the checksums of a file, or of all files in a folder.

  Args:
    path: the file or folder.
    of: where it is now, if it takes its place later.
    beside: where to; None: beside it.
  """
  path, beside = epath.Path(path), beside or _beside(path)
  versions = [_sums(epath.Path(of or path))]
  if of is not None and path.exists():
    before, known = _sums(path), None
    with contextlib.suppress(files.StoreError):  # damaged, and not needed
      known = _versions(beside, path)
    # What does not fit its checksums is damaged, and stays so.
    if known is None or before in known:
      versions.append(before)
  files.write_json(beside, files.seal({'versions': versions}))


def check(
  path, back: str, beside=None, only: Collection[str] | None = None
) -> bool:
  """Compares a file or folder with its checksums.

  Files in a folder that have none are not looked at.

  Args:
    path: the file or folder.
    back: what to do about a damaged one.
    beside: the file of checksums, as in `note`.
    only: names below the folder to compare; None: all.

  Returns:
    Whether there are any.

  Raises:
    StoreError: it, or the file of checksums, is damaged; names it.
    OSError: it cannot be read.
  """
  path, beside = epath.Path(path), beside or _beside(path)
  versions = _versions(beside, path)
  if versions is None:
    return False
  if only is not None:
    versions = [{n: v[n] for n in only if n in v} for v in versions]
  now = _sums(path, only)
  for sums in versions:
    if all(now.get(name) == one for name, one in sums.items()):
      return True
  which = next(n for n, one in versions[0].items() if now.get(n) != one)
  raise files.damaged(
    path / which if which else path,
    f'not what was written, says {beside.name}',
    f'{back}; or, if you changed it yourself, delete {beside}',
  )


def _versions(beside, path) -> list[dict[str, str]] | None:
  """The checksums in a file of them, the newest first; None without one."""
  back = f'delete it, and {path} is read unchecked'
  found = files.read_json(beside, back)
  if found is None:
    return None
  if files.SEAL not in found or 'versions' not in found:
    raise files.damaged(beside, 'no checksums of a file', back)
  return found['versions']


def sha256(path) -> str:
  """SHA-256 of a file, read again only when it has changed."""
  path = os.path.realpath(path)
  stat = os.stat(path)
  return _hashed(path, stat.st_ino, stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=1024)
def _hashed(path, inode, size, mtime_ns) -> str:
  del inode, size, mtime_ns  # of the cache's key
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def _beside(path):
  path = epath.Path(path)
  return path.parent / f'{path.name}{SUFFIX}'


def _sums(path, only=None) -> dict[str, str]:
  """Name below a folder ('' for a file itself) -> SHA-256."""
  names = {'': path}
  if path.is_dir():
    names = {
      os.path.relpath(os.path.join(folder, name), path): os.path.join(
        folder, name
      )
      for folder, _, found in os.walk(path)
      for name in found
    }
  if only is not None:
    names = {name: file for name, file in names.items() if name in only}
  with futures.ThreadPoolExecutor(4) as pool:
    return dict(zip(names, pool.map(sha256, names.values()), strict=True))
