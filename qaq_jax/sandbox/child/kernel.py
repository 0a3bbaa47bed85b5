"""The few system calls of Linux that Python 3.11 has no function for."""

import ctypes
import os
import platform

_LIBC = ctypes.CDLL(None, use_errno=True)

CLONE_NEWNS = 0x00020000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_REMOUNT = 32
MS_BIND = 4096
MS_REC = 16384
MS_PRIVATE = 1 << 18
PR_SET_PDEATHSIG = 1
PR_SET_SECCOMP = 22
PR_CAPBSET_DROP = 24
PR_SET_NO_NEW_PRIVS = 38
_CAPABILITY_VERSION = 0x20080522
_MNT_DETACH = 2
_PIVOT_ROOT = {'x86_64': 155, 'aarch64': 41}


def call(name: str, *args) -> int:
  """Calls libc's function `name`; bytes and integers as arguments.

  Raises:
    OSError: with the function's name, if it returned -1.
  """
  converted = [ctypes.c_ulong(a) if isinstance(a, int) else a for a in args]
  result = getattr(_LIBC, name)(*converted)
  if result == -1:
    number = ctypes.get_errno()
    raise OSError(number, f'{name}: {os.strerror(number)}')
  return result


def prctl(option: int, value: int = 0, pointer: object = 0) -> None:
  """prctl(2) with one value, or with a value and a pointer."""
  call('prctl', option, value, pointer, 0, 0)


def mount(
  source: str, target: str, kind: str = '', flags: int = 0, data: str = ''
) -> None:
  """mount(2)."""
  call(
    'mount',
    source.encode(),
    target.encode(),
    kind.encode(),
    flags,
    data.encode(),
  )


def enter_root(root: str) -> None:
  """Makes `root`, a mount point, the root folder; the old one is let go."""
  os.chdir(root)
  call('syscall', _PIVOT_ROOT[platform.machine()], b'.', b'.')
  call('umount2', b'.', _MNT_DETACH)
  os.chdir('/')


def drop_capabilities() -> None:
  """Gives up every capability, for good."""
  for capability in range(64):
    try:
      prctl(PR_CAPBSET_DROP, capability)
    except OSError:
      break  # the kernel knows no more of them
  header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0)
  call('capset', header, (ctypes.c_uint32 * 6)())
