"""A contained process for one untrusted program, and what it may use.

`sandbox.Sandbox` starts them, and decides with which layer.
"""

import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import re
import select
import signal
import struct
import subprocess
import sys
import sysconfig
import tempfile
import time

_HERE = pathlib.Path(__file__).parent
_LIBRARY = re.compile(r'\.so(\.\d+)*$')
_HEADER = struct.Struct('>I')
_MB = 1 << 20
# Until a process says that it is contained, and to send an order.
START_SECONDS = 60.0
_REMOVE_SECONDS = 60.0
_END_SECONDS = 5.0  # for a process to be seen to have ended
_SLICE = 0.05  # seconds between two looks at the clock
_TRANSFER_SECONDS = 2.0  # more for a message that has begun to come
# A program may be kept waiting by others for so many times its limit.
_PATIENCE = 20.0
_WAITING = 20.0  # and seconds more


class Refused(RuntimeError):
  """Programs cannot be contained here, or it was not allowed to run them."""


class ProgramError(RuntimeError):
  """The program under test failed: `kind` says how."""

  def __init__(self, kind: str, message: str = ''):
    super().__init__(message)
    self.kind = kind  # 'timeout', 'crash', 'output'
    self.message = message


@dataclasses.dataclass(frozen=True)
class Limits:
  """What one program may use.

  Attributes:
    memory_mb: address space.
    tmp_mb: its temporary folder; also the largest file.
    cpu_seconds: the CPU time of the whole process, a backstop behind the time
      limits.
    answer_bytes: one message from it.
  """

  memory_mb: int = 4096
  tmp_mb: int = 64
  cpu_seconds: int = 600
  answer_bytes: int = 4 * _MB

  def rlimits(self) -> dict[str, int]:
    """Returns the limits that setrlimit takes, by name."""
    return {
      'RLIMIT_AS': self.memory_mb * _MB,
      'RLIMIT_STACK': min(self.memory_mb * _MB // 4, 512 * _MB),
      'RLIMIT_CPU': self.cpu_seconds,
      'RLIMIT_FSIZE': self.tmp_mb * _MB,
      'RLIMIT_NOFILE': 64,
      'RLIMIT_CORE': 0,
      # No more than there are already: none of its own. Not for root,
      # whom the filter of system calls stops.
      'RLIMIT_NPROC': 0,
    }


class Process:
  """One contained process; a context manager that kills it at the end."""

  def __init__(self, limits: Limits, layer: str, *, seccomp: bool):
    """Starts it.

    Args:
      limits: what it may use.
      layer: 'namespaces', 'landlock' or 'none'.
      seccomp: whether its system calls are filtered.

    Raises:
      Refused: this machine does not have that layer.
    """
    self._limits = limits
    self._folder = tempfile.mkdtemp(prefix='qaq_program_')
    self.seconds = 0.0  # that it had for its answers, as `receive` counts
    # As seen from here: of what was started, and of the one in which the
    # program runs, a child of the first in namespaces. That one is reaped by
    # its parent, so its number may be another's; the handle is its own.
    self.program_pid: int | None = None
    self._program: int | None = None
    self._buffer = bytearray()
    self._process = subprocess.Popen(
      [
        sys.executable,
        '-s',
        '-S',
        '-P',
        '-c',
        f'import sys; sys.path.append({str(_HERE)!r}); '
        'from child import runner; runner.main()',
      ],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=subprocess.DEVNULL,
      env=_environment(),
      cwd=self._folder,
      bufsize=0,
      start_new_session=True,
    )
    self.pid = self._process.pid
    orders, answers = self._process.stdin, self._process.stdout
    assert orders is not None and answers is not None, 'both are pipes'
    self._orders, self._answers = orders, answers
    for pipe in (orders, answers):
      os.set_blocking(pipe.fileno(), False)
    try:
      self._contain(layer, seccomp)
    except BaseException:
      self.close()
      raise

  def _contain(self, layer, seccomp):
    try:
      self.send(
        {
          'layer': layer,
          'seccomp': seccomp,
          'readable': _readable(),
          'tmp': self._folder,
          'tmp_bytes': self._limits.tmp_mb * _MB,
          'limits': self._limits.rlimits(),
          'path': _import_path(),
        }
      )
      answer = self.receive(START_SECONDS)
    except ProgramError as e:
      raise Refused(f'the sandbox did not start: {e}') from e
    if answer.get('contained') != layer:
      raise Refused(answer.get('refused', 'no reason given'))
    self.program_pid = answer['pid']
    if hasattr(os, 'pidfd_open'):
      with contextlib.suppress(OSError):  # an old kernel, or it has ended
        self._program = os.pidfd_open(answer['pid'])

  def send(self, message: dict) -> None:
    """Sends an order."""
    self.send_bytes(json.dumps(message).encode())

  def send_bytes(self, body: bytes) -> None:
    """Sends an order that is JSON already.

    Raises:
      ProgramError: the process has ended, or does not read.
    """
    orders = self._orders.fileno()
    poll = select.poll()
    poll.register(orders, select.POLLOUT)
    clock = _Clock(self.program_pid, START_SECONDS)
    view = memoryview(_HEADER.pack(len(body)) + body)
    while view:
      ready = poll.poll(clock.wait() * 1000)
      if clock.over(moving=ready):
        raise ProgramError('timeout', 'it does not read its orders')
      try:
        view = view[os.write(orders, view) :]
      except BlockingIOError:
        continue
      except OSError as e:
        raise ProgramError('crash', self._end()) from e

  def receive(self, limit: float, max_bytes: int | None = None) -> dict:
    """Returns the next answer.

    Args:
      limit: seconds for it, of this process running or sleeping; the time
        that it waits for a free core is not counted where the kernel tells.
      max_bytes: length of the answer; None is `limits.answer_bytes`.

    Raises:
      ProgramError: too late, too long, not readable, or the process ended.
    """
    clock = _Clock(self.program_pid, limit)
    try:
      body = self._message(clock, max_bytes or self._limits.answer_bytes)
      answer = json.loads(body)
    except (ValueError, RecursionError) as e:
      raise ProgramError('output', 'an unreadable answer') from e
    finally:
      self.seconds += clock.used()
    if not isinstance(answer, dict):
      raise ProgramError('output', 'an unreadable answer')
    return answer

  def _message(self, clock, max_bytes):
    (length,) = _HEADER.unpack(self._read(_HEADER.size, clock))
    if length > max_bytes:
      raise ProgramError('output', f'an answer of {length} bytes')
    return bytes(self._read(length, clock))

  def _read(self, size, clock):
    stream = self._answers.fileno()
    poll = select.poll()
    poll.register(stream, select.POLLIN)
    while len(self._buffer) < size:
      ready = poll.poll(clock.wait() * 1000)
      # What is there counts, however late this thread comes to look.
      with contextlib.suppress(BlockingIOError):  # or the program took it back
        part = os.read(stream, _MB)
        if not part:
          raise ProgramError('crash', self._end())
        self._buffer += part
      if len(self._buffer) < size and clock.over(moving=ready):
        raise ProgramError('timeout', f'more than {clock.limit:.2f} s')
    taken = self._buffer[:size]
    del self._buffer[:size]
    return taken

  def _end(self):
    """Says how it ended; `close` reaps it, after its group is killed."""
    deadline = time.monotonic() + _END_SECONDS
    while time.monotonic() < deadline:
      code = self._status()
      if code is not None:
        return f'the process ended with status {code}'
      time.sleep(0.01)
    return 'the process closed its channel'

  def _status(self):
    if not hasattr(os, 'waitid'):  # macOS
      return self._process.poll()
    look = os.WEXITED | os.WNOHANG | os.WNOWAIT
    found = os.waitid(os.P_PID, self.pid, look)
    if found is None:
      return None
    exited = found.si_code == os.CLD_EXITED
    return found.si_status if exited else -found.si_status

  def close(self) -> None:
    """Kills the process and what it may have started; removes its folder."""
    if self._program is not None:
      with contextlib.suppress(OSError):
        signal.pidfd_send_signal(self._program, signal.SIGKILL)
      os.close(self._program)
      self._program = None
      # Its parent reaps it and ends; killed as well, it would leave that to
      # a first process that may not.
      with contextlib.suppress(subprocess.TimeoutExpired):
        self._process.wait(_END_SECONDS)
    # The number stays its own, and its group's, until it is reaped.
    if self._process.returncode is None:
      with contextlib.suppress(OSError):
        os.killpg(self.pid, signal.SIGKILL)
    self._answers.close()
    with contextlib.suppress(OSError):
      self._orders.close()
    self._process.wait()
    _remove(self._folder)

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.close()


class _Clock:
  """The time that a process has had, but for waiting for a free core."""

  def __init__(self, pid, limit):
    self.limit = limit
    self._schedstat = f'/proc/{pid}/schedstat' if pid else ''
    self._queued = self._queue_seconds()
    self._started = time.monotonic()

  def _queue_seconds(self):
    try:
      with open(self._schedstat) as f:
        return int(f.read().split()[1]) / 1e9
    except (OSError, IndexError, ValueError):
      return 0.0

  def _wall(self):
    return time.monotonic() - self._started

  def used(self):
    """Seconds running or sleeping since the start of this clock."""
    wall = self._wall()
    if wall < _SLICE:
      return wall  # not worth a look at the kernel's count
    return wall - max(0.0, self._queue_seconds() - self._queued)

  def wait(self):
    """Seconds until the next look."""
    return max(_SLICE, self.limit - self._wall())

  def over(self, *, moving):
    """Whether the limit is used up.

    Args:
      moving: bytes go over: what comes in time is not refused for being read
        late, but nobody sends byte by byte for ever.
    """
    limit = self.limit + (self.limit + _TRANSFER_SECONDS if moving else 0)
    return (
      self.used() >= limit or self._wall() > self.limit * _PATIENCE + _WAITING
    )


@functools.cache
def _import_path():
  """Folders that Python imports from: its library and installed packages."""
  base = {'base': sys.base_prefix, 'platbase': sys.base_exec_prefix}
  library = sysconfig.get_path('stdlib', vars=base)
  folders = [library, os.path.join(library, 'lib-dynload')]
  folders += [sysconfig.get_path(n) for n in ('purelib', 'platlib')]
  packages = 'site-packages', 'dist-packages'
  folders += [p for p in sys.path if os.path.basename(p) in packages]
  return list(dict.fromkeys(f for f in folders if os.path.isdir(f)))


@functools.cache
def _readable():
  """Files and folders that a program may read: Python and shared libraries."""
  prefixes = {sys.base_prefix, sys.base_exec_prefix, '/usr', '/'}
  paths = [os.path.join(p, lib) for p in prefixes for lib in ('lib', 'lib64')]
  paths += _import_path()
  # Of these the libraries alone: they may be folders of any other kind.
  for folder in os.environ.get('LD_LIBRARY_PATH', '').split(':'):
    if os.path.isabs(folder) and os.path.isdir(folder):
      paths += [f.path for f in os.scandir(folder) if _is_library(f)]
  paths += ['/etc/ld.so.cache', '/etc/alternatives', '/usr/share/zoneinfo']
  paths += [os.path.realpath(path) for path in paths if path]
  return sorted({p for p in paths if p.startswith('/') and os.path.exists(p)})


def _is_library(entry):
  return bool(_LIBRARY.search(entry.name)) and entry.is_file()


def _environment():
  kept = ('LD_LIBRARY_PATH', 'DYLD_LIBRARY_PATH')
  return {name: os.environ[name] for name in kept if name in os.environ} | {
    'PATH': '/usr/bin:/bin',
    'HOME': '/tmp',
    'LANG': 'C.UTF-8',
    'PYTHONHASHSEED': '0',  # the order of sets repeats
    'PYTHONDONTWRITEBYTECODE': '1',
    'OPENBLAS_NUM_THREADS': '1',
    'OMP_NUM_THREADS': '1',
    'MKL_NUM_THREADS': '1',
  }


def _remove(folder):
  """Removes a program's folder; follows no link that it may have made.

  By commands: a program can nest folders deeper than a path may be long, or
  than Python may recurse. What cannot be removed is told, never raised.
  """
  with contextlib.suppress(OSError):
    os.rmdir(folder)  # what nearly every program leaves is empty
    return
  said = ''
  for command in (['chmod', '-R', 'u+rwx'], ['rm', '-rf']):
    try:
      said = subprocess.run(
        [*command, '--', folder],
        stdin=subprocess.DEVNULL,
        check=False,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        timeout=_REMOVE_SECONDS,
      ).stderr.decode(errors='replace')
    except (OSError, subprocess.SubprocessError) as e:
      said = str(e)
  if os.path.lexists(folder):
    print(f'{folder} could not be removed: {said:.200}', file=sys.stderr)
