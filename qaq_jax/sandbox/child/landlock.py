"""Landlock: what remains where a container forbids namespaces (Linux 6.2+).

A process can give up, without root, every access to files outside of given
folders. There is no process or network namespace with it: `seccomp` closes
signals and sockets.
"""

import ctypes
import os

from child import kernel

_CREATE, _ADD, _RESTRICT = 444, 445, 446  # the same number on every machine
_EXECUTE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 2, 1 << 3
_ALL = (1 << 15) - 1  # third version: reads, writes, links and truncation
_IOCTL = 1 << 15  # fifth version: on devices
_NETWORK = 0b11  # fourth version: TCP
_SCOPES = 0b11  # sixth version: abstract sockets and signals
_OLDEST = 3  # before it, a file outside could be truncated


class _Rules(ctypes.Structure):
  _fields_ = (
    ('files', ctypes.c_uint64),
    ('network', ctypes.c_uint64),
    ('scoped', ctypes.c_uint64),
  )


class _Beneath(ctypes.Structure):
  _pack_ = 1
  _fields_ = (('allowed', ctypes.c_uint64), ('folder', ctypes.c_int32))


def restrict(readable: list[str], writable: str) -> None:
  """Leaves this process `readable` to read and one folder to write in.

  Args:
    readable: files and folders.
    writable: a folder.

  Raises:
    OSError: the kernel has no Landlock, or one too old to prevent writes.
  """
  version = kernel.call('syscall', _CREATE, None, 0, 1)
  if version < _OLDEST:
    raise OSError(f'Landlock version {version}, {_OLDEST} is needed')
  files = _ALL | (_IOCTL if version >= 5 else 0)
  rules = _Rules(
    files, _NETWORK if version >= 4 else 0, _SCOPES if version >= 6 else 0
  )
  size = 8 if version < 4 else 16 if version < 6 else 24
  ruleset = kernel.call('syscall', _CREATE, ctypes.byref(rules), size, 0)
  for path in readable:
    _allow(ruleset, path, _READ_FILE | _READ_DIR)
  for path in ('/dev/null', '/dev/zero', '/dev/urandom'):
    _allow(ruleset, path, _READ_FILE | (2 if path == '/dev/null' else 0))
  _allow(ruleset, writable, files & ~_EXECUTE & ~_IOCTL)
  kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
  kernel.call('syscall', _RESTRICT, ruleset, 0)
  os.close(ruleset)
  os.chdir(writable)


def _allow(ruleset, path, access):
  if not os.path.exists(path):
    return
  if not os.path.isdir(path):
    access &= ~_READ_DIR
  handle = os.open(path, os.O_PATH)
  rule = _Beneath(access, handle)
  kernel.call('syscall', _ADD, ruleset, 1, ctypes.byref(rule), 0)
  os.close(handle)
