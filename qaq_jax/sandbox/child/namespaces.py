"""Linux namespaces: another root folder, no network, no other processes.

Needs no root where the kernel lets users make user namespaces. The new root is
a small read-only tmpfs in which only Python's own folders appear, read-only,
and an empty /tmp of limited size, which is gone with the process.
"""

import os
import re

from child import kernel

_DEVICES = ('/dev/null', '/dev/zero', '/dev/urandom')
_KEPT = {'nosuid': 2, 'nodev': 4, 'noexec': 8}


def enter(readable: list[str], tmp_bytes: int) -> None:
  """Moves this process into namespaces of its own.

  The process id namespace holds the children of this process, not itself.

  Args:
    readable: files and folders that appear in the new root.
    tmp_bytes: size of /tmp.

  Raises:
    OSError: the kernel, or a container around this one, does not allow it.
  """
  user, group = os.geteuid(), os.getegid()
  kernel.call(
    'unshare',
    kernel.CLONE_NEWUSER
    | kernel.CLONE_NEWNS
    | kernel.CLONE_NEWPID
    | kernel.CLONE_NEWNET
    | kernel.CLONE_NEWIPC
    | kernel.CLONE_NEWUTS,
  )
  _write('/proc/self/setgroups', 'deny')
  _write('/proc/self/uid_map', f'{user} {user} 1')
  _write('/proc/self/gid_map', f'{group} {group} 1')
  kernel.mount('none', '/', flags=kernel.MS_REC | kernel.MS_PRIVATE)
  root = '/tmp'  # any folder that exists; hidden by the mount in here only
  opened = {path: os.open(path, os.O_PATH) for path in _present(readable)}
  kernel.mount(
    'tmpfs',
    root,
    'tmpfs',
    kernel.MS_NOSUID | kernel.MS_NODEV,
    'size=1m,mode=755',
  )
  os.mkdir(f'{root}/tmp')  # first: Python itself may be installed in /tmp
  kernel.mount(
    'tmpfs',
    f'{root}/tmp',
    'tmpfs',
    kernel.MS_NOSUID | kernel.MS_NODEV,
    f'size={tmp_bytes},nr_inodes=4096,mode=700',
  )
  for path, handle in opened.items():
    _show(f'/proc/self/fd/{handle}', path, root)
    os.close(handle)
  _protect(root)
  kernel.enter_root(root)
  kernel.mount(
    'none',
    '/',
    flags=kernel.MS_REMOUNT
    | kernel.MS_BIND
    | kernel.MS_RDONLY
    | kernel.MS_NOSUID
    | kernel.MS_NODEV,
  )
  os.chdir('/tmp')


def _write(path, text):
  with open(path, 'w') as f:
    f.write(text)


def _present(readable):
  """Outermost paths first; a path inside of another one is not repeated."""
  kept: list[str] = []
  for path in sorted({*readable, *_DEVICES}):
    inside = any(path.startswith(f'{folder}/') for folder in kept)
    if os.path.exists(path) and not inside:
      kept.append(path)
  return kept


def _show(source, path, root):
  target = root + path
  os.makedirs(os.path.dirname(target), exist_ok=True)
  if os.path.isdir(source):
    os.makedirs(target, exist_ok=True)
  else:
    os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o600))
  kernel.mount(source, target, flags=kernel.MS_BIND | kernel.MS_REC)


def _protect(root):
  """Makes every mount below `root` read-only, those inside of others too."""
  with open('/proc/self/mountinfo') as f:
    mounts = [line.split() for line in f]
  # Parents stand before children. Mounts that were in the folder before are
  # hidden by the new root and cannot be reached.
  below = {[fields[0] for fields in mounts if fields[4] == root][-1]}
  for number, parent, _, _, target, options, *_ in mounts:
    if parent not in below:
      continue
    below.add(number)
    target = re.sub(r'\\([0-7]{3})', lambda m: chr(int(m[1], 8)), target)
    if target == f'{root}/tmp':
      continue
    # A user namespace may not take away what the mount forbids already.
    kept = sum(_KEPT.get(option, 0) for option in options.split(','))
    nodev = 0 if target.startswith(f'{root}/dev/') else kernel.MS_NODEV
    kernel.mount(
      'none',
      target,
      flags=kernel.MS_REMOUNT
      | kernel.MS_BIND
      | kernel.MS_RDONLY
      | kernel.MS_NOSUID
      | nodev
      | kept,
    )
