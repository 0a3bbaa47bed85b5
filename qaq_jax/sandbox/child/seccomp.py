"""A filter of system calls: no processes, sockets, queues, signals or mounts.

The numbers are those of Linux on x86_64 and on aarch64. A program that tries
one of these calls is told that it has no permission; nothing else changes.
"""

import ctypes
import os
import platform
import struct

from child import kernel

_EPERM, _ENOSYS = 1, 38
_MODE_FILTER = 2
_LOAD, _AND, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x54, 0x15, 0x35, 0x06
_ALLOW, _ERROR, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
# Offsets: call, machine, lower half of the first two arguments.
_NUMBER, _ARCH, _FIRST, _SECOND = 0, 4, 16, 24
# The calls of the x32 interface have this bit; before Linux 5.4 some of them
# were also there under plain numbers, which are no one's since.
_X32 = 0x40000000
_X32_PLAIN = (512, 548)
_AUDIT = {'x86_64': 0xC000003E, 'aarch64': 0xC00000B7}

# Name -> number on x86_64, on aarch64 (None: there is no such call).
# Memory, semaphores and queues of other processes, which Landlock does not
# govern: their numbers can be guessed, so what opens nothing is denied too.
_IPC = {
  'shmget': (29, 194),
  'shmat': (30, 196),
  'shmctl': (31, 195),
  'shmdt': (67, 197),
  'semget': (64, 190),
  'semop': (65, 193),
  'semctl': (66, 191),
  'semtimedop': (220, 192),
  'msgget': (68, 186),
  'msgsnd': (69, 189),
  'msgrcv': (70, 188),
  'msgctl': (71, 187),
  'mq_open': (240, 180),
  'mq_unlink': (241, 181),
  'mq_timedsend': (242, 182),
  'mq_timedreceive': (243, 183),
  'mq_notify': (244, 184),
  'mq_getsetattr': (245, 185),
}
_DENIED = {
  # New processes and threads, other programs.
  'clone': (56, 220),
  'fork': (57, None),
  'vfork': (58, None),
  'execve': (59, 221),
  'execveat': (322, 281),
  # Network, and what outlives a process or is shared with others.
  'socket': (41, 198),
  'memfd_create': (319, 279),
  'memfd_secret': (447, 447),
  'io_uring_setup': (425, 425),
  'io_uring_enter': (426, 426),
  'io_uring_register': (427, 427),
  # Other processes.
  'ptrace': (101, 117),
  'process_vm_readv': (310, 270),
  'process_vm_writev': (311, 271),
  'process_madvise': (440, 440),
  'pidfd_open': (434, 434),
  'pidfd_getfd': (438, 438),
  'pidfd_send_signal': (424, 424),
  'rt_sigqueueinfo': (129, 138),
  'rt_tgsigqueueinfo': (297, 240),
  'kcmp': (312, 272),
  'sched_setparam': (142, 118),
  'sched_setscheduler': (144, 119),
  'sched_setaffinity': (203, 122),
  'sched_setattr': (314, 274),
  'setpriority': (141, 140),
  'ioprio_set': (251, 30),
  'migrate_pages': (256, 238),
  'move_pages': (279, 239),
  # Owner, mode, times and attributes, which Landlock does not govern.
  'chmod': (90, None),
  'fchmod': (91, 52),
  'fchmodat': (268, 53),
  'fchmodat2': (452, 452),
  'chown': (92, None),
  'fchown': (93, 55),
  'lchown': (94, None),
  'fchownat': (260, 54),
  'utime': (132, None),
  'utimes': (235, None),
  'futimesat': (261, None),
  'utimensat': (280, 88),
  'setxattr': (188, 5),
  'lsetxattr': (189, 6),
  'fsetxattr': (190, 7),
  'removexattr': (197, 14),
  'lremovexattr': (198, 15),
  'fremovexattr': (199, 16),
  'setxattrat': (463, 463),
  'removexattrat': (466, 466),
  'file_setattr': (469, 469),
  # What others do to files.
  'inotify_init': (253, None),
  'inotify_init1': (294, 26),
  'inotify_add_watch': (254, 27),
  # Mounts, namespaces, and the machine itself.
  'mount': (165, 40),
  'umount2': (166, 39),
  'pivot_root': (155, 41),
  'chroot': (161, 51),
  'unshare': (272, 97),
  'setns': (308, 268),
  'open_tree': (428, 428),
  'open_tree_attr': (467, 467),
  'move_mount': (429, 429),
  'fsopen': (430, 430),
  'fsconfig': (431, 431),
  'fsmount': (432, 432),
  'fspick': (433, 433),
  'mount_setattr': (442, 442),
  'name_to_handle_at': (303, 264),
  'open_by_handle_at': (304, 265),
  'quotactl': (179, 60),
  'quotactl_fd': (443, 443),
  'acct': (163, 89),
  'swapon': (167, 224),
  'swapoff': (168, 225),
  'reboot': (169, 142),
  'sethostname': (170, 161),
  'setdomainname': (171, 162),
  'iopl': (172, None),
  'ioperm': (173, None),
  'init_module': (175, 105),
  'finit_module': (313, 273),
  'delete_module': (176, 106),
  'kexec_load': (246, 104),
  'kexec_file_load': (320, 294),
  'bpf': (321, 280),
  'perf_event_open': (298, 241),
  'userfaultfd': (323, 282),
  'add_key': (248, 217),
  'request_key': (249, 218),
  'keyctl': (250, 219),
  # Would undo the signal at the death of the trusted process: prctl itself,
  # and every change of user, group or capabilities.
  'prctl': (157, 167),
  'setuid': (105, 146),
  'setgid': (106, 144),
  'setreuid': (113, 145),
  'setregid': (114, 143),
  'setresuid': (117, 147),
  'setresgid': (119, 149),
  'setfsuid': (122, 151),
  'setfsgid': (123, 152),
  'setgroups': (116, 159),
  'capset': (126, 91),
  'personality': (135, 92),
  'syslog': (103, 116),
  'vhangup': (153, 58),
  'settimeofday': (164, 170),
  'clock_settime': (227, 112),
  'adjtimex': (159, 171),
  'clock_adjtime': (305, 266),
  'fanotify_init': (300, 262),
}
# Allowed on this process only, by its first argument.
_OWN = {
  'kill': (62, 129),
  'tkill': (200, 130),
  'tgkill': (234, 131),
  'prlimit64': (302, 261),
}
# Denied with these second arguments: a file's owner gets signals from the
# kernel, and may be any process; attributes need no file open for writing.
_DENIED_OPTIONS = {
  # F_SETOWN, F_SETSIG, F_SETOWN_EX; F_NOTIFY.
  'fcntl': ((72, 25), (8, 10, 15, 1026)),
  # FIOSETOWN, SIOCSPGRP; FS_IOC_SETFLAGS, FS_IOC_FSSETXATTR,
  # FS_IOC_SETVERSION and ext4's, FS_IOC_ENABLE_VERITY.
  'ioctl': (
    (16, 29),
    (
      0x8901,
      0x8902,
      0x40086602,
      0x401C5820,
      0x40087602,
      0x40086604,
      0x40806685,
    ),
  ),
}
# A pair of datagram sockets reaches every socket that has a path. A pair of
# streams reaches nothing, and asyncio needs one.
_SOCKETPAIR = (53, 199)
_UNIX, _STREAM, _DATAGRAM, _RAW, _SEQUENCED = 1, 1, 2, 3, 5
_SOCKET_FLAGS = 0x80800  # SOCK_CLOEXEC, SOCK_NONBLOCK
# libc then tries `clone`, which is denied in a way that Python reports.
_MISSING = {'clone3': (435, 435)}


class _Program(ctypes.Structure):
  _fields_ = (('length', ctypes.c_ushort), ('code', ctypes.c_void_p))


def install() -> None:
  """Filters the system calls of this process from now on.

  Raises:
    OSError: there is no filter for this machine, or it is not allowed.
  """
  if platform.machine() not in _AUDIT or platform.system() != 'Linux':
    raise OSError(f'no filter for {platform.system()} {platform.machine()}')
  code = _assemble(platform.machine(), os.getpid())
  buffer = ctypes.create_string_buffer(code, len(code))
  program = _Program(len(code) // 8, ctypes.addressof(buffer))
  kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
  kernel.prctl(kernel.PR_SET_SECCOMP, _MODE_FILTER, ctypes.byref(program))


def open_ways() -> list[str]:
  """Returns which ways to memory, queues and sockets of others are not denied.

  Each is tried, with arguments that do nothing where it is allowed.
  """
  if platform.machine() not in _AUDIT or platform.system() != 'Linux':
    return ['all']
  column = 0 if platform.machine() == 'x86_64' else 1
  pair = (ctypes.c_int * 2)()
  tried: dict[str, tuple] = {
    n: ('syscall', c[column], -1, 0, 0, 0, 0) for n, c in _IPC.items()
  }
  for kind in (_DATAGRAM, _RAW, _SEQUENCED):
    tried[f'socketpair {kind}'] = ('socketpair', _UNIX, kind, 0, pair)
  found = []
  for name, call in tried.items():
    try:
      kernel.call(*call)
    except OSError as e:
      if e.errno in (_EPERM, _ENOSYS):
        continue
    found.append(name)
  return found


def _assemble(machine, own):
  column = 0 if machine == 'x86_64' else 1
  code = [
    (_LOAD, 0, 0, _ARCH),
    (_EQUAL, 1, 0, _AUDIT[machine]),
    (_RETURN, 0, 0, _KILL),
    (_LOAD, 0, 0, _NUMBER),
  ]
  if machine == 'x86_64':  # the 32-bit calls have other numbers
    code += [(_AT_LEAST, 0, 1, _X32), (_RETURN, 0, 0, _ERROR | _EPERM)]
    first, end = _X32_PLAIN
    code += [(_AT_LEAST, 0, 2, first), (_AT_LEAST, 1, 0, end)]
    code.append((_RETURN, 0, 0, _ERROR | _EPERM))
  tables = (_DENIED, _EPERM), (_IPC, _EPERM), (_MISSING, _ENOSYS)
  for table, error in tables:
    for numbers in table.values():
      if (number := numbers[column]) is not None:
        code += [
          (_EQUAL, 0, 1, number),
          (_RETURN, 0, 0, _ERROR | error),
        ]
  for name, numbers in _OWN.items():
    # Process 0 is the caller to prlimit64, the whole group to kill.
    allowed = (own, 0) if name == 'prlimit64' else (own, own)
    code += [
      (_EQUAL, 0, 5, numbers[column]),
      (_LOAD, 0, 0, _FIRST),
      (_EQUAL, 1, 0, allowed[0]),
      (_EQUAL, 0, 1, allowed[1]),
      (_RETURN, 0, 0, _ALLOW),
      (_RETURN, 0, 0, _ERROR | _EPERM),
    ]
  for numbers, options in _DENIED_OPTIONS.values():
    code += [
      (_EQUAL, 0, 2 * len(options) + 2, numbers[column]),
      (_LOAD, 0, 0, _SECOND),
    ]
    for option in options:
      code += [(_EQUAL, 0, 1, option), (_RETURN, 0, 0, _ERROR | _EPERM)]
    code.append((_RETURN, 0, 0, _ALLOW))
  code += [
    (_EQUAL, 0, 7, _SOCKETPAIR[column]),
    (_LOAD, 0, 0, _FIRST),
    (_EQUAL, 0, 4, _UNIX),
    (_LOAD, 0, 0, _SECOND),
    (_AND, 0, 0, 0xFFFFFFFF ^ _SOCKET_FLAGS),
    (_EQUAL, 0, 1, _STREAM),
    (_RETURN, 0, 0, _ALLOW),
    (_RETURN, 0, 0, _ERROR | _EPERM),
    (_RETURN, 0, 0, _ALLOW),
  ]
  return b''.join(struct.pack('HBBI', *line) for line in code)
