"""Work directories in an object store, through a copy on the local disk.

Stages read and write files: they append to logs, map tables into memory, rename
folders. Objects can do none of that, so `gs://bucket/run` or `s3://bucket/run`
is worked on in a folder of the cache. What the store holds is fetched when a
command begins; what a stage wrote is stored when it ends, and each part of a
score table as soon as it is written.

The store is what counts: files that only the local copy has are removed.
"""

import contextlib
import errno
import functools
import hashlib
import os
import pathlib
from collections.abc import Iterator

import fsspec

from qaq_jax.workdir import checksums, files, lease

_STATE = '.mirror.json'
# What tells two versions of an object apart, by store.
_VERSION = ('ETag', 'etag', 'generation', 'mtime', 'created')
_EXTRAS = {'gs': 'gcs', 'gcs': 'gcs', 's3': 's3'}
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
_OURS = (TypeError, AttributeError, NameError, AssertionError)


def is_remote(path) -> bool:
  """Whether a path is of an object store."""
  return '://' in str(path)


def local_folder(url: str, index: int) -> pathlib.Path:
  """Where process `index` of a host keeps its copy of `url`."""
  home = os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache'
  key = hashlib.sha256(url.encode()).hexdigest()[:16]
  return pathlib.Path(home, 'qaq_jax', 'workdirs', key, str(index))


def _named(method):
  """Errors of the store's client become errors that name the store."""

  @functools.wraps(method)
  def called(self, *args, **kwargs):
    try:
      return method(self, *args, **kwargs)
    except (files.StoreError, *_OURS):
      raise
    except Exception as e:  # each client has errors of its own
      if isinstance(e, OSError) and e.errno in _DISK:
        raise files.StoreError(
          f'{self.path}, the copy of {self.url} on this disk: {e.strerror}. '
          'Make room, or set XDG_CACHE_HOME to a folder of another disk'
        ) from e
      raise files.StoreError(
        f'{self.url}: {e or type(e).__name__} ({type(e).__name__}). Look at '
        'the name of the bucket, the credentials and the network'
      ) from e

  return called


class Mirror:
  """A folder and the objects that it stands for.

  Attributes:
    url: the address of the work directory, without a slash at its end.
    path: the local folder.
  """

  def __init__(self, url: str, path):
    """Connects; reads and writes nothing yet.

    Args:
      url: the address as `gs://bucket/run`; any that fsspec has a file system
        for.
      path: the local folder, of this process alone; made where it is missing.

    Raises:
      ImportError: the store's client is not installed; says which extra has it.
      ValueError: no such kind of store.
    """
    self.url, self.path = url.rstrip('/'), pathlib.Path(path)
    kind = url.split('://', 1)[0]
    try:
      # Other hosts write too, so what was listed before is not kept.
      options = {'use_listings_cache': False}
      if kind == 'file':  # has folders
        options['auto_mkdir'] = True
      self._fs, root = fsspec.core.url_to_fs(self.url, **options)
    except ImportError as e:
      extra = _EXTRAS.get(kind)
      raise ImportError(
        f'--workdir={url}: {e}'
        + (f": pip install '.[{extra}]'" if extra else '')
      ) from e
    self._root = root.rstrip('/')
    self.path.mkdir(parents=True, exist_ok=True)
    self._known = self._load()  # name -> version there, size and time here
    self._lease: lease.Lease | None = None

  def _load(self):
    """The state of before; of a damaged one nothing is believed."""
    with contextlib.suppress(OSError, ValueError):
      known = files.read_json(self.path / _STATE) or {}
      if all(isinstance(entry, list) for entry in known.values()):
        return known
    return {}

  def _save(self):
    files.write_json(self.path / _STATE, self._known)

  def _remote(self, name):
    return f'{self._root}/{name}'

  @_named
  def pull(self, under: str = '') -> None:
    """Makes the local folder, or what is `under` it, equal to the store."""
    there = self._listed(under)
    here = dict(self._files(under))
    stale = [
      name
      for name, version in there.items()
      if name not in here
      or self._known.get(name) != [version, *_stamp(here[name])]
    ]
    for name in set(here) - set(there):
      here[name].unlink()
    for name in stale:
      (self.path / name).parent.mkdir(parents=True, exist_ok=True)
    if stale:
      self._fs.get(
        [self._remote(name) for name in stale],
        [str(self.path / name) for name in stale],
      )
    inside = f'{under.rstrip("/")}/' if under else ''
    kept = {n: v for n, v in self._known.items() if not n.startswith(inside)}
    for name, version in there.items():
      kept[name] = [version, *_stamp(self.path / name)]
    self._known = kept
    self._save()

  @_named
  def push(self) -> None:
    """Stores what changed here since the last time, the oldest first.

    Raises StoreError, as `push_file`, where another run took the lease over.
    In that order what refers to a file comes after it, as on the disk: a
    kill in between leaves objects that the next run takes or replaces.
    """
    self._check_lease()
    here = dict(self._files())
    changed = [
      (path.stat().st_mtime_ns, name)
      for name, path in here.items()
      if self._known.get(name, [None])[1:] != _stamp(path)
    ]
    # A file of checksums fits what was there before, too.
    for _, name in sorted(
      changed, key=lambda one: (not one[1].endswith(checksums.SUFFIX), one)
    ):
      self._put(name)
    for name in sorted(set(self._known) - set(here)):
      with contextlib.suppress(FileNotFoundError):
        self._fs.rm_file(self._remote(name))
      del self._known[name]
    self._save()

  @_named
  def push_file(self, path) -> None:
    """Stores one file at once."""
    self._check_lease()
    self._put(self.name(path))
    self._save()

  def name(self, path) -> str:
    """What a file or folder of the local copy is called in the store."""
    return pathlib.Path(path).relative_to(self.path).as_posix()

  def _put(self, name):
    path = self.path / name
    stamp = _stamp(path)
    self._fs.put_file(str(path), self._remote(name))
    info = self._fs.info(self._remote(name))
    self._known[name] = [_version(info), *stamp]

  def _listed(self, under) -> dict[str, str]:
    """Name -> version of each object."""
    top = self._remote(under).rstrip('/')
    self._fs.invalidate_cache()
    start = len(self._root) + 1
    found = {
      path[start:]: _version(info)
      for path, info in self._fs.find(top, detail=True).items()
    }
    return {n: v for n, v in found.items() if not _passing(n)}

  def _files(self, under='') -> Iterator[tuple[str, pathlib.Path]]:
    for path in (self.path / under).rglob('*'):
      name = path.relative_to(self.path).as_posix()
      if not _passing(name) and path.is_file():
        yield name, path

  @_named
  def take_lease(self) -> None:
    """Makes this process's run the only one that writes to the store.

    Raises:
      StoreError: another run does; names its host and process.
    """
    taken = lease.Lease(self._fs, self._remote(lease.NAME), self.url)
    taken.take()
    self._lease = taken

  def _check_lease(self):
    if self._lease is not None:
      self._lease.check()

  def give_lease(self) -> None:
    """Lets other runs write."""
    if self._lease is not None:
      self._lease.give()
      self._lease = None


def _version(info) -> str:
  for field in _VERSION:
    if info.get(field) is not None:
      return f'{info[field]}, {info["size"]}'
  raise files.StoreError(
    f'{info["name"]}: this kind of store does not tell versions of an object '
    f'apart (none of {", ".join(_VERSION)})'
  )


def _stamp(path) -> list[int]:
  stat = path.stat()
  return [stat.st_size, stat.st_mtime_ns]


def _passing(name) -> bool:
  """Whether a name is of a lock, a lease, or what isn't whole yet."""
  return any(
    part.startswith('.')
    or part.endswith('.partial')
    or 'orbax-checkpoint-tmp' in part
    for part in name.split('/')
  )
