"""Hostile programs, each run for real inside of the sandbox.

They are harmless even where the sandbox fails: loops are bounded, and nothing
is forked, filled or deleted in earnest before a first try was refused.
"""

import ctypes
import dataclasses
import functools
import json
import os
import pathlib
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from qaq_jax.sandbox import child
from qaq_jax.sandbox import process as process_lib
from qaq_jax.sandbox import sandbox as sandbox_lib
from qaq_jax.sandbox.child import values
from qaq_jax.sandbox.process import Limits, ProgramError, Refused

_LIMITS = Limits(memory_mb=512, tmp_mb=4, cpu_seconds=20, answer_bytes=1 << 20)


@functools.cache
def _containment(layer):
  try:
    found = sandbox_lib.measure(layer, True)
  except Refused as e:
    return str(e)
  return f'open: {found.missing()}' if found.missing() else found


@pytest.fixture(params=['namespaces', 'landlock'])
def sandbox(request):
  found = _containment(request.param)
  if isinstance(found, str):
    pytest.skip(f'this machine has no {request.param}: {found}')
  return sandbox_lib.Sandbox(_LIMITS, containment=found)


def _call(process, name, *arguments, limit=20.0):
  process.send({'function': name, 'calls': [values.encode(list(arguments))]})
  answer = process.receive(limit)
  if 'error' in answer:
    return answer['error']
  return values.decode(answer['value'])


def _load(process, program, limit=20.0):
  process.send({'load': program})
  return process.receive(limit)


def _run(sandbox, program, *arguments, limit=20.0):
  """Runs function f of a program; returns its value, or its error's text."""
  with sandbox.start() as process:
    answer = _load(process, program, limit)
    if 'error' in answer:
      return answer['error']
    return _call(process, 'f', *arguments, limit=limit)


def test_a_program_gets_its_arguments_and_its_value_comes_back(sandbox):
  value = {'a': [1, 2.5, None], (1, 'x'): {3}, 'b': b'\0', 'n': 1 << 80}
  assert _run(sandbox, 'def f(x):\n  return x', value) == value


def test_the_order_of_a_set_repeats(sandbox):
  program = 'def f():\n  return list({str(i) for i in range(50)})'
  assert _run(sandbox, program) == _run(sandbox, program)


def test_numpy_works_inside(sandbox):
  program = 'import numpy\ndef f():\n  return float(numpy.ones(9).sum())'
  assert _run(sandbox, program) == 9.0


def test_fork_bomb(sandbox):
  first = 'import os\ndef f():\n  if os.fork() == 0: os._exit(0)'
  assert _run(sandbox, first).startswith('PermissionError')
  # Now that one fork is known to be refused, many of them.
  bomb = (
    'import os\ndef f():\n  made = 0\n  for _ in range(1000):\n'
    '    try:\n      if os.fork() == 0: os._exit(0)\n      made += 1\n'
    '    except OSError: pass\n  return made'
  )
  assert _run(sandbox, bomb) == 0


@pytest.mark.parametrize(
  'start',
  [
    'import subprocess; subprocess.run(["/bin/true"])',
    'import os; os.posix_spawn("/bin/true", ["true"], {})',
    'import os; os.execv("/bin/true", ["true"])',
    'import threading; threading.Thread(target=int).start()',
    'import multiprocessing as m; m.Process(target=int).start()',
  ],
)
def test_no_other_way_to_start_a_process(sandbox, start):
  assert 'Error' in _run(sandbox, f'def f():\n  {start}')


def test_memory_bomb(sandbox):
  program = (
    'def f():\n  kept = []\n  for _ in range(64):\n'
    '    kept.append(bytearray(16 << 20))\n  return len(kept)'
  )  # one GiB at most
  assert _run(sandbox, program).startswith('MemoryError')


def test_infinite_loop(sandbox):
  for program in ('while True: pass', 'def f():\n  while True: pass'):
    with sandbox.start() as process, pytest.raises(ProgramError) as e:
      if 'loaded' in _load(process, program, 0.5):
        _call(process, 'f', limit=0.5)
    assert e.value.kind == 'timeout'


def test_sleep_counts_as_time(sandbox):
  with pytest.raises(ProgramError) as e:
    _run(sandbox, 'import time\ndef f():\n  time.sleep(60)', limit=0.5)
  assert e.value.kind == 'timeout'


@pytest.mark.parametrize(
  'end',
  [
    'import os; os._exit(0)',
    'import os; os.abort()',
    'import os; os.closerange(0, 64)',
    'import ctypes; ctypes.string_at(0)',
  ],
)
def test_a_program_that_ends_or_closes_everything(sandbox, end):
  for program in (end, f'def f():\n  {end}'):
    with pytest.raises(ProgramError) as e:
      _run(sandbox, program, limit=5.0)
    assert e.value.kind in ('crash', 'timeout')


def test_exit_before_the_function_is_defined(sandbox):
  program = 'import sys; sys.exit(0)\ndef f():\n  return 1'
  assert _run(sandbox, program).startswith('SystemExit')


def test_closed_stdout_does_not_matter(sandbox):
  program = (
    'import os, sys\nsys.stdout.close()\nos.close(1)\nos.close(2)\n'
    'def f():\n  return 7'
  )
  assert _run(sandbox, program) == 7


def test_deleted_builtins(sandbox):
  program = (
    'import builtins\ndef f():\n  for name in list(vars(builtins)):\n'
    '    delattr(builtins, name)\n  return 1'
  )
  try:
    assert _run(sandbox, program) != 1
  except ProgramError as e:
    assert e.kind in ('crash', 'output')


def test_deep_recursion(sandbox):
  shallow = 'def f():\n  return f()'
  assert _run(sandbox, shallow).startswith('RecursionError')
  deep = (
    'import sys\nsys.setrecursionlimit(10**9)\n'
    'class C:\n  def __repr__(self): return repr(self)\n'
    'def f():\n  return repr(C())'
  )
  try:
    assert 'Error' in _run(sandbox, deep)
  except ProgramError as e:
    assert e.kind == 'crash'


def test_deeply_nested_value(sandbox):
  program = 'def f():\n  x = []\n  for _ in range(10**5): x = [x]\n  return x'
  assert _run(sandbox, program) != []


def test_a_gigabyte_to_stdout(sandbox):
  program = (
    'import sys\ndef f():\n  block = "x" * (1 << 20)\n'
    '  for _ in range(1024): sys.stdout.write(block)\n  return 1'
  )
  assert _run(sandbox, program) == 1


def test_a_gigabyte_to_the_trusted_process(sandbox):
  program = (
    'import os\ndef f():\n  block = b"\\x7f" * (1 << 20)\n'
    '  for fd in range(3, 64):\n    for _ in range(1024):\n'
    '      try: os.write(fd, block)\n      except OSError: break'
  )
  with pytest.raises(ProgramError) as e:
    _run(sandbox, program)
  assert e.value.kind == 'output'


def test_too_long_a_value(sandbox):
  with pytest.raises(ProgramError) as e:
    _run(sandbox, 'def f():\n  return "x" * (2 << 20)')
  assert e.value.kind == 'output'


def test_a_gigabyte_to_a_file(sandbox):
  program = (
    'def f():\n  with open("big", "wb") as file:\n'
    '    for _ in range(1024): file.write(bytes(1 << 20))'
  )
  assert _run(sandbox, program).startswith('OSError')


def test_forged_answers_are_only_values(sandbox):
  program = (
    'import sys\nfrom child import runner, values\n'
    'runner.values.encode = lambda v, d=0: ["iter", [1]]\n'
    'def f():\n  return 1'
  )
  assert _run(sandbox, program) != 1
  evil = 'from child import runner\nrunner.values.encode = lambda v: {e!r}\n'
  for forged in (
    ['evil', 1],
    {'a': 1},
    ['sub', ['sub', 1]],
    [1, 2, 3],
    ['set', [['list', []]]],
    ['numpy', ['M8[s]', None, [1]]],
  ):
    with pytest.raises(ValueError, match='not an encoded value'):
      _run(sandbox, evil.format(e=forged) + 'def f():\n  return 1')


def test_unreadable_answers(sandbox):
  for body in ('b"{"', 'b"[" * 60000', 'b"7"', 'b"\\xff"', 'b"1" * 9999'):
    program = (
      'import os, struct\ndef f():\n'
      f'  body = {body}\n  body = struct.pack(">I", len(body)) + body\n'
      '  for fd in range(3, 64):\n    try: os.write(fd, body)\n'
      '    except OSError: pass'
    )
    with pytest.raises(ProgramError) as e:
      _run(sandbox, program)
    assert e.value.kind == 'output'


@pytest.mark.parametrize(
  'send',
  [
    'os.write(answers, b" ")',  # byte by byte, for ever
    'os.write(answers, b" "); os.read(taken, 1)',  # and taken back
  ],
)
def test_answers_that_begin_and_do_not_end(sandbox, send):
  program = (
    'import os\ndef f():\n'
    '  for answers in range(3, 64):\n'
    '    try:\n      os.write(answers, b"\\x0f\\xff\\xff\\xff")\n      break\n'
    '    except OSError: pass\n'
    '  try:\n    taken = os.open(f"/proc/self/fd/{answers}", os.O_RDONLY)\n'
    '  except OSError: taken = 0\n'
    f'  while True: {send}'
  )
  with sandbox.start() as process:
    assert 'loaded' in _load(process, program)
    process.send({'function': 'f', 'calls': [['list', []]]})
    with pytest.raises(ProgramError) as e:
      process.receive(0.5, 1 << 28)
    assert process.seconds < 6  # the limit twice, and two seconds
  assert e.value.kind in ('timeout', 'output')


def test_orders_that_are_not_read(sandbox, monkeypatch):
  monkeypatch.setattr(process_lib, 'START_SECONDS', 0.5)
  program = (
    'import signal, time\n'
    'def stall(*_):\n  while True: time.sleep(1)\n'
    'signal.signal(signal.SIGALRM, stall)\n'
    'signal.setitimer(signal.ITIMER_REAL, 0.05)\n'
    'def f(x):\n  return 1'
  )
  with sandbox.start() as process:
    assert 'loaded' in _load(process, program)
    time.sleep(0.2)
    with pytest.raises(ProgramError) as e:
      _call(process, 'f', 'x' * (1 << 20))
  assert e.value.kind == 'timeout'


def test_no_network(sandbox):
  program = (
    'import socket\ndef f(port):\n'
    '  with socket.socket() as s: s.connect(("127.0.0.1", port))'
  )
  with socket.create_server(('127.0.0.1', 0)) as server:
    port = server.getsockname()[1]
    assert _run(sandbox, program, port).startswith('PermissionError')
    for kind in ('AF_INET6', 'AF_UNIX', 'AF_NETLINK'):
      other = f'import socket\ndef f():\n  socket.socket(socket.{kind})'
      assert _run(sandbox, other).startswith('PermissionError')


@pytest.mark.parametrize(
  'change',
  [
    'open(path, "a")',
    'open(path, "w")',
    'os.truncate(path, 0)',
    'os.unlink(path)',
    'os.rename(path, path + "2")',
    'os.chmod(path, 0)',
    'os.utime(path, (0, 0))',
    'os.link(path, "here")',
    'os.symlink("x", path + "3")',
    'os.mkdir(path + "4")',
    'os.chown(path, 1, 1)',
    'os.setxattr(path, "user.a", b"b")',
  ],
)
def test_no_change_outside(sandbox, tmp_path, change):
  outside = tmp_path / 'outside'
  outside.write_text('as before')
  before = outside.stat()
  program = f'import os\ndef f(path):\n  {change}'
  assert 'Error' in _run(sandbox, program, str(outside))
  assert os.listdir(tmp_path) == ['outside']
  assert outside.read_text() == 'as before'
  after = outside.stat()
  assert (after.st_mode, after.st_uid, after.st_mtime) == (
    before.st_mode,
    before.st_uid,
    before.st_mtime,
  )


def test_no_change_of_the_harness(sandbox):
  program = 'def f(path):\n  open(path, "a").close()'
  for module in (sandbox_lib, values, json, pytest):
    assert 'Error' in _run(sandbox, program, module.__file__)


def test_no_reading_of_answers(sandbox, tmp_path, monkeypatch):
  secret = tmp_path / 'answers.json'
  secret.write_text('SECRET')
  monkeypatch.setenv('ANSWERS', 'SECRET')
  program = (
    'import os\ndef f(path, pid):\n  seen = str(dict(os.environ))\n'
    '  for p in (path, f"/proc/{pid}/environ", f"/proc/{pid}/cmdline",\n'
    '            f"/proc/{pid}/mem", f"/proc/{pid}/root{path}",\n'
    '            f"/proc/self/root{path}", "/etc/passwd"):\n'
    '    try:\n      with open(p, "rb") as file: seen += str(file.read(99))\n'
    '    except OSError: pass\n  return seen'
  )
  seen = _run(sandbox, program, str(secret), os.getpid())
  assert 'SECRET' not in seen
  assert 'root:' not in seen


def test_of_library_folders_the_libraries_alone_are_read(
  sandbox, tmp_path, monkeypatch
):
  folder = tmp_path / 'a [b]'
  folder.mkdir()
  for name in ('a.source', 'libx.so', 'liby.so.1'):
    (folder / name).write_text(name)
  program = (
    'def f(folder):\n  seen = []\n'
    '  for name in ("a.source", "libx.so", "liby.so.1"):\n'
    '    try:\n      with open(f"{folder}/{name}") as g:\n'
    '        seen.append(g.read())\n    except OSError: pass\n  return seen'
  )
  monkeypatch.chdir(folder)
  for value, seen in (
    (f'{folder}::/nowhere', ['libx.so', 'liby.so.1']),
    ('.', []),
    (f'../{folder.name}', []),
    (str(tmp_path), []),
  ):
    monkeypatch.setenv('LD_LIBRARY_PATH', value)
    process_lib._readable.cache_clear()
    try:
      assert _run(sandbox, program, str(folder)) == seen
    finally:
      process_lib._readable.cache_clear()


def test_the_probe_leaves_no_folder_where_a_layer_is_refused(
  tmp_path, monkeypatch
):
  monkeypatch.setattr('tempfile.tempdir', str(tmp_path))
  monkeypatch.setattr(sandbox_lib, '_PROBE', 'import nowhere')
  with pytest.raises(Refused, match='does not work'):
    sandbox_lib.measure('none', False)
  assert os.listdir(tmp_path) == []


def test_no_signal_to_others(sandbox):
  with subprocess.Popen(
    [sys.executable, '-c', 'input()'], stdin=subprocess.PIPE
  ) as other:
    program = (
      'import os\ndef f(pids):\n  sent = []\n  for pid in pids:\n'
      '    try:\n      os.kill(pid, 0)\n      sent.append(pid)\n'
      '    except OSError: pass\n  return sent'
    )
    assert _run(sandbox, program, [other.pid, os.getpid(), os.getppid()]) == []
    # Refused without a signal; so these cannot hurt.
    program = f'import os\ndef f():\n  os.kill({other.pid}, 15)'
    assert 'Error' in _run(sandbox, program)
    assert 'Error' in _run(
      sandbox, f'import os\ndef f():\n  os.killpg({other.pid}, 15)'
    )
    assert other.poll() is None
    other.communicate(b'\n')


@pytest.mark.parametrize(
  'change',
  [
    'fcntl.fcntl(0, fcntl.F_SETOWN, pid)',
    'fcntl.fcntl(0, fcntl.F_SETSIG, 9)',
    'fcntl.fcntl(0, 15, struct.pack("ii", 1, pid))',
    'fcntl.ioctl(0, 0x8901, struct.pack("i", pid))',
    'fcntl.ioctl(0, 0x8902, struct.pack("i", pid))',
  ],
)
def test_no_signal_through_the_owner_of_a_file(sandbox, change):
  program = f'import fcntl, struct\ndef f(pid):\n  {change}'
  assert _run(sandbox, program, os.getpid()).startswith('PermissionError')


def test_files_can_still_be_locked(sandbox):
  program = (
    'import fcntl\ndef f():\n  with open("x", "w") as file:\n'
    '    fcntl.flock(file, fcntl.LOCK_EX)\n'
    '    return file.isatty() or fcntl.fcntl(file, fcntl.F_GETFD)'
  )
  assert _run(sandbox, program) == 1


def test_the_probe_finds_signals_through_the_owner_of_a_file(monkeypatch):
  if isinstance(_containment('landlock'), str):
    pytest.skip('this machine has no landlock')
  # As if `kill` alone were filtered, and files had any owner.
  monkeypatch.setattr(
    sandbox_lib,
    '_PROBE',
    sandbox_lib._PROBE.replace('os.kill(pid, 0)', 'raise OSError'),
  )
  assert sandbox_lib.measure('landlock', True).signals
  assert not sandbox_lib.measure('none', False).signals


@pytest.fixture
def canaries():
  """Memory, a semaphore and queues of a process that is not the program's."""
  libc = ctypes.CDLL(None, use_errno=True)
  name = f'/qaq_canary_{os.getpid()}'.encode()
  made = {
    'memory': libc.shmget(0, 4096, 0o1600),
    'semaphore': libc.semget(0, 1, 0o1600),
    'queue': libc.msgget(0, 0o1600),
    'posix': libc.mq_open(name, os.O_CREAT | os.O_RDWR, 0o600, None),
  }
  assert min(made.values()) >= 0
  message = struct.pack('l', 1) + b'CANARY'
  assert libc.msgsnd(made['queue'], message, 6, 0) == 0
  yield made | {'name': name}
  # Unharmed: the message is there, and each is there to be removed.
  taken = ctypes.create_string_buffer(20)
  found = [
    libc.msgrcv(made['queue'], taken, 6, 0, 0o4000),
    libc.shmctl(made['memory'], 0, None),
    libc.semctl(made['semaphore'], 0, 0),
    libc.msgctl(made['queue'], 0, None),
    libc.mq_unlink(name),
  ]
  os.close(made['posix'])
  assert found == [6, 0, 0, 0, 0]
  assert taken.raw[8:14] == b'CANARY'


@pytest.mark.skipif(sys.platform != 'linux', reason='Linux only')
@pytest.mark.parametrize(
  'call',
  [
    'shmget(0, 4096, 0o1600)',
    'shmat(memory, None, 0)',
    'shmctl(memory, 0, None)',  # IPC_RMID
    'shmctl(0, 13, room)',  # SHM_STAT
    'semget(0, 1, 0o1600)',
    'semop(semaphore, room, 1)',
    'semtimedop(semaphore, room, 1, None)',
    'semctl(semaphore, 0, 0)',
    'msgget(0, 0o1600)',
    'msgsnd(queue, room, 8, 0o4000)',
    'msgrcv(queue, room, 8, 0, 0o4000)',
    'msgctl(queue, 0, None)',
    'mq_open(name, 0)',
    'mq_unlink(name)',
    'mq_send(posix, room, 1, 0)',
    'mq_receive(posix, room, 8192, None)',
    'mq_getattr(posix, room)',
    'socketpair(1, 2, 0, room)',  # datagrams
    'socketpair(1, 3, 0, room)',  # raw, which are datagrams
    'socketpair(1, 5, 0, room)',
    'socketpair(1, 0x80802, 0, room)',
    'socketpair(30, 1, 0, room)',  # AF_TIPC
    'inotify_init1(0)',
    'fcntl(0, 1026, 4)',  # F_NOTIFY
    'ioctl(0, 0x40086602, room)',  # FS_IOC_SETFLAGS
  ],
)
def test_what_others_share_is_out_of_reach(sandbox, canaries, call):
  program = (
    'import ctypes\ndef f(memory, semaphore, queue, posix, name):\n'
    '  room = ctypes.create_string_buffer(b"\\1", 8192)\n'
    '  libc = ctypes.CDLL(None, use_errno=True)\n'
    f'  return libc.{call}, ctypes.get_errno()'
  )
  denied = 13 if 'mq_unlink' in call else 1  # of EPERM libc makes EACCES
  assert _run(sandbox, program, *canaries.values()) == (-1, denied)


@pytest.mark.parametrize('kind', ['SOCK_DGRAM', 'SOCK_RAW', 'SOCK_SEQPACKET'])
def test_no_socket_that_reaches_a_path(sandbox, tmp_path, kind):
  path = str(tmp_path / 'server')
  program = (
    'import socket\ndef f(path):\n'
    f'  a, _ = socket.socketpair(type=socket.{kind})\n'
    '  a.sendto(b"FROM INSIDE", path)'
  )
  with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
    server.bind(path)
    server.setblocking(False)
    assert _run(sandbox, program, path).startswith('PermissionError')
    with pytest.raises(BlockingIOError):
      server.recv(99)


def test_a_pair_of_streams_reaches_nothing_but_itself(sandbox, tmp_path):
  """asyncio needs one; another address is not for it."""
  path = str(tmp_path / 'server')
  program = (
    'import asyncio, socket\nasync def g():\n  return 7\n'
    'def f(path):\n  a, b = socket.socketpair()\n'
    '  for use in (a.connect, lambda p: a.sendto(b"x", p)):\n'
    '    try: use(path)\n    except OSError: pass\n    else: return 0\n'
    '  return asyncio.run(g())'
  )
  with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
    server.bind(path)
    assert _run(sandbox, program, path) == 7


def test_the_probe_tries_what_others_share(monkeypatch):
  found = sandbox_lib.measure('none', False)
  assert not found.ipc
  assert 'ipc' in found.missing()
  if isinstance(_containment('landlock'), str):
    pytest.skip('this machine has no landlock')
  assert sandbox_lib.measure('landlock', True).ipc
  # As if one call were not filtered.
  monkeypatch.setattr(
    sandbox_lib,
    '_PROBE',
    f'{sandbox_lib._PROBE}\nseccomp._IPC["getpid"] = (39, 172)\n',
  )
  assert not sandbox_lib.measure('landlock', True).ipc


@pytest.mark.skipif(sys.platform != 'linux', reason='Linux only')
def test_the_probe_tries_each_of_them():
  limits = Limits(memory_mb=512)
  program = 'from child import seccomp\ndef f():\n  return seccomp.open_ways()'
  with process_lib.Process(limits, 'none', seccomp=False) as process:
    assert 'loaded' in _load(process, program)
    tried = _call(process, 'f')
  for call in ('shmat', 'semctl', 'msgrcv', 'mq_unlink', 'socketpair 2'):
    assert call in tried
  assert len(tried) == 21


def _filter(code, machine, number, *arguments):
  """What a filter of system calls says of one call."""
  data = struct.pack('iI', number, machine) + bytes(8)
  data += struct.pack('6Q', *arguments, *[0] * (6 - len(arguments)))
  at, value = 0, 0
  while True:
    operation, yes, no, k = struct.unpack_from('HBBI', code, 8 * at)
    at += 1
    if operation == 0x06:
      return k
    if operation == 0x20:
      (value,) = struct.unpack_from('I', data, k)
    elif operation == 0x54:
      value &= k
    else:
      at += yes if (value == k if operation == 0x15 else value >= k) else no


@pytest.mark.parametrize('machine', ['x86_64', 'aarch64'])
def test_the_filter_of_each_machine(machine, monkeypatch):
  monkeypatch.setitem(sys.modules, 'child', child)
  from qaq_jax.sandbox.child import seccomp

  arch, denied, allowed = seccomp._AUDIT[machine], 0x50001, 0x7FFF0000
  code = seccomp._assemble(machine, 77)

  def says(*call):
    return _filter(code, arch, *call)

  x86 = machine == 'x86_64'
  # Of the kernel's tables: shm*, sem*, msg* and mq_*.
  shared = [29, 30, 31, *range(64, 72), 220, *range(240, 246)]
  for number in shared if x86 else range(180, 198):
    assert says(number) == denied
  pair = 53 if x86 else 199
  assert says(pair, 1, 1) == says(pair, 1, 0x80801) == allowed
  # The kernel takes the lower half of an argument.
  assert says(pair, 1 | 1 << 32, 1 | 1 << 40) == allowed
  for call in ((1, 2), (1, 3), (1, 5), (1, 0x80802), (30, 1), (2, 1), (1, 17)):
    assert says(pair, *call) == denied
  assert says(pair, 1 << 32, 1) == says(pair, 1, 2 | 1 << 32) == denied
  assert says(0) == says(1) == allowed  # read, write; io_setup, io_destroy
  kill, fcntl = (62, 72) if x86 else (129, 25)
  assert says(kill, 77) == allowed
  assert says(kill, 78) == denied
  assert says(fcntl, 0, 8) == denied
  assert says(fcntl, 0, 3) == allowed
  assert _filter(code, 0x40000003, 0) == 0x80000000  # 32-bit calls
  if x86:  # the x32 interface, with its bit and, in old kernels, without
    assert says(0x40000000 | 30) == says(520) == says(547) == denied
    assert says(511) == says(548) == allowed


def test_limits_cannot_be_raised_again(sandbox):
  program = (
    'import resource\ndef f():\n'
    '  resource.setrlimit(resource.RLIMIT_AS, (1 << 40, 1 << 40))'
  )
  assert 'Error' in _run(sandbox, program)


def _wait_until_gone(group):
  """A killed process is there until its new parent, init, has reaped it."""
  for _ in range(200):
    try:
      os.killpg(group, 0)
    except ProcessLookupError:
      return
    time.sleep(0.05)
  pytest.fail(f'process group {group} is still there')


def test_nothing_is_left_behind(sandbox, tmp_path, monkeypatch):
  outside = tmp_path / 'outside'
  outside.mkdir()
  (outside / 'file').write_text('as before')
  monkeypatch.setattr('tempfile.tempdir', str(tmp_path))
  program = (
    'import os\ndef f(path):\n'
    '  os.symlink(path, "link")\n  os.mkdir("closed")\n'
    '  os.symlink(path, "closed/link")\n  os.mkdir("sealed", 0)\n'
    '  for i in range(50):\n    os.mkdir("d")\n    os.chdir("d")\n'
    '  os.mkfifo("fifo")\n  return os.getpid()'
  )
  with sandbox.start() as process:
    assert 'loaded' in _load(process, program)
    assert isinstance(_call(process, 'f', str(outside)), int)
    group = process.pid
  _wait_until_gone(group)
  assert os.listdir(tmp_path) == ['outside']
  assert (outside / 'file').read_text() == 'as before'


@pytest.mark.parametrize(('depth', 'length'), [(60, 120), (3000, 50)])
def test_folders_too_deep_for_a_path(
  sandbox, tmp_path, monkeypatch, depth, length
):
  monkeypatch.setattr('tempfile.tempdir', str(tmp_path))
  program = (
    f'import os\ndef f():\n  made = 0\n  for _ in range({depth}):\n'
    f'    os.mkdir("d" * {length})\n    os.chdir("d" * {length})\n'
    '    made += 1\n  os.mkdir("sealed", 0)\n  return made'
  )
  assert _run(sandbox, program) == depth
  assert os.listdir(tmp_path) == []


def test_a_folder_that_stays_is_told(tmp_path, monkeypatch, capsys):
  (tmp_path / 'file').touch()
  monkeypatch.setenv('PATH', '')
  process_lib._remove(str(tmp_path))
  assert f'{tmp_path} could not be removed' in capsys.readouterr().err


def test_no_signal_to_a_number_that_may_be_of_another(sandbox, monkeypatch):
  sent = []
  with sandbox.start() as process:
    kill = [process.program_pid, process.pid]
    for pid in kill:
      os.kill(pid, signal.SIGKILL)
    process._process.wait()
    for name in ('kill', 'killpg'):
      monkeypatch.setattr(os, name, lambda pid, _: sent.append(pid))
  assert sent == []


def test_how_a_process_ended_is_told(sandbox):
  with pytest.raises(ProgramError, match='ended with status 3'):
    _run(sandbox, 'import os; os._exit(3)')


@pytest.mark.parametrize(
  'first',
  [
    'pass',
    'ctypes.CDLL(None).prctl(1, 0, 0, 0, 0)',  # PR_SET_PDEATHSIG
    'ctypes.CDLL(None).setresuid(65534, 65534, 65534)',  # clears it as well
    'ctypes.CDLL(None).syscall(119, 7, 7, 7)',  # setresgid, x86_64
    'signal.signal(1, signal.SIG_IGN); os.setsid()',
  ],
)
def test_programs_die_with_the_trusted_process(sandbox, first):
  """kill -9 of the harness leaves no program running."""
  layer = sandbox.containment.layer
  program = (
    'import ctypes, os, signal, time\n'
    f'try: {first}\nexcept OSError: pass\nwhile True: time.sleep(1)'
  )
  script = (
    'from qaq_jax.sandbox.process import Limits, Process\n'
    f'p = Process(Limits(), {layer!r}, seccomp=True)\n'
    f'p.send({{"load": {program!r}}})\n'
    'import time; time.sleep(0.5)\n'
    'print(p.pid, p.program_pid, flush=True)\ninput()'
  )
  root = pathlib.Path(__file__).parent.parent
  with subprocess.Popen(
    [sys.executable, '-c', script],
    stdin=subprocess.PIPE,
    cwd=root,
    stdout=subprocess.PIPE,
    text=True,
  ) as trusted:
    pids = [int(text) for text in trusted.stdout.readline().split()]
    assert all(_alive(pid) for pid in pids)
    trusted.send_signal(signal.SIGKILL)
  deadline = time.monotonic() + 20
  while any(_alive(pid) for pid in pids) and time.monotonic() < deadline:
    time.sleep(0.05)
  assert not any(_alive(pid) for pid in pids)


def _alive(pid):
  try:
    stat = pathlib.Path(f'/proc/{pid}/stat').read_text()
  except OSError:
    return False
  return stat.rpartition(')')[2].split()[0] not in 'ZX'


def test_refuses_where_programs_would_not_be_contained():
  found = sandbox_lib.measure('none', False)
  assert not found.network
  assert not found.writes
  with pytest.raises(Refused, match='network, writes, reads'):
    sandbox_lib.Sandbox(containment=found)
  allowed = sandbox_lib.Sandbox(containment=found, allow_uncontained=True)
  assert 'not contained: network' in allowed.containment.describe()
  assert _run(allowed, 'def f():\n  return 1') == 1


@pytest.mark.parametrize(
  'open_',
  ['network', 'writes', 'reads', 'processes', 'signals', 'ipc', 'memory'],
)
def test_refuses_where_one_thing_would_be_open(open_):
  held = dict.fromkeys(
    ('network', 'writes', 'reads', 'processes', 'signals', 'ipc', 'memory'),
    True,
  )
  found = sandbox_lib.Containment('landlock', True, reasons={}, **held)
  assert not found.missing()
  sandbox_lib.Sandbox(containment=found)
  found = dataclasses.replace(found, **{open_: False})
  with pytest.raises(Refused, match=f': {open_} would be open'):
    sandbox_lib.Sandbox(containment=found)


# What a strict container does: system calls refused before Python starts.
_FORBIDDEN = """
import ctypes, platform, struct, sys
from qaq_jax.sandbox import child
sys.modules['child'] = child
from child import kernel, seccomp
unshare = {'x86_64': 272, 'aarch64': 97}[platform.machine()]
code = [(0x20, 0, 0, 0)]
for number in [unshare, 444][:int(sys.argv[1])]:
  code += [(0x15, 0, 1, number), (0x06, 0, 0, 0x50001)]
code.append((0x06, 0, 0, 0x7FFF0000))
code = b''.join(struct.pack('HBBI', *line) for line in code)
code = ctypes.create_string_buffer(code, len(code))
program = seccomp._Program(len(code) // 8, ctypes.addressof(code))
kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
kernel.prctl(kernel.PR_SET_SECCOMP, 2, ctypes.byref(program))
from qaq_jax.sandbox import sandbox
print(sandbox.probe().describe())
sandbox.Sandbox()
"""


@pytest.mark.skipif(sys.platform != 'linux', reason='Linux only')
@pytest.mark.parametrize(
  ('forbidden', 'found', 'refused'),
  [
    (1, 'sandbox: landlock, seccomp, limits', False),
    (2, 'sandbox: seccomp, limits; not contained: writes, reads', True),
  ],
)
def test_containers_that_forbid_layers(forbidden, found, refused):
  if isinstance(_containment('landlock'), str):
    pytest.skip('this machine has no landlock')
  done = subprocess.run(
    [sys.executable, '-c', _FORBIDDEN, str(forbidden)],
    cwd=pathlib.Path(__file__).parent.parent,
    text=True,
    check=False,
    capture_output=True,
  )
  assert done.stdout.strip() == found
  assert ('Refused: programs cannot be contained' in done.stderr) is refused


_MOUNTED = """
import os, sys
from qaq_jax.sandbox import child
sys.modules['child'] = child
from child import kernel
user, group = os.geteuid(), os.getegid()
kernel.call('unshare', kernel.CLONE_NEWUSER | kernel.CLONE_NEWNS)
for name, text in (('setgroups', 'deny'), ('uid_map', f'0 {user} 1'),
                   ('gid_map', f'0 {group} 1')):
  with open(f'/proc/self/{name}', 'w') as file:
    file.write(text)
kernel.mount('tmpfs', sys.argv[1], 'tmpfs')
from qaq_jax.sandbox import sandbox
print(sandbox.probe().layer, sandbox.probe().reasons)
"""


def test_mounts_of_others_do_not_matter():
  if isinstance(_containment('namespaces'), str):
    pytest.skip('this machine has no namespaces')
  with tempfile.TemporaryDirectory(prefix='qaq mount', dir='/tmp') as folder:
    done = subprocess.run(
      [sys.executable, '-c', _MOUNTED, folder],
      text=True,
      check=True,
      cwd=pathlib.Path(__file__).parent.parent,
      capture_output=True,
    )
  assert done.stdout.strip() == 'namespaces {}'


@pytest.mark.parametrize(
  'value',
  [
    None,
    True,
    0,
    -(1 << 90),
    0.1,
    float('inf'),
    'é\ud800',
    b'\0',
    2j,
    [],
    (1, (2,)),
    {1, 'a'},
    frozenset([1]),
    {1: {2: [3]}},
    {(1, 2): None},
  ],
)
def test_values_come_back_as_they_were(value):
  data = json.loads(json.dumps(values.encode(value)))
  found = values.decode(data)
  assert found == value
  assert type(found) is type(value)


def test_values_of_other_types(monkeypatch):
  monkeypatch.setattr(values, '_HUGE', 1000)

  def travel(value):
    return values.decode(json.loads(json.dumps(values.encode(value))))

  class Number(int):
    pass

  assert travel(Number(3)) == 3
  assert type(travel(Number(3))) is not int
  assert travel({1: 2}.keys()) == {1}
  assert list(travel(iter([1, 2]))) == [1, 2]
  assert travel(iter([1, 2])) != [1, 2]
  assert travel(object()) != travel(object())
  for array in (
    np.arange(6).reshape(2, 3),
    np.array(0.5),
    np.array(1 << 99),
    np.array(['a', 'bc']),
    np.array([1j]),
    np.zeros((0, 2)),
    np.array([[1], 'x'], dtype=object),
  ):
    found = travel(array)
    assert found.shape == array.shape
    assert found.dtype.kind == array.dtype.kind
    assert (found == array).all()
  for scalar in (np.float32(0.1), np.int8(3), np.str_('é'), np.bool_(True)):
    assert type(travel(scalar)) is type(scalar)
    assert travel(scalar) == scalar
  assert type(travel(np.datetime64('2020-01-01'))) is values.Opaque
  assert travel([object()]) is not None
  long = list(range(2000))
  assert travel(long) == travel(list(long))
  assert travel(long) != travel([0, *long[:-1]])
  assert travel(values.List(long)) == travel(long)


_TAGS = sorted({*values._SEQUENCES, *values._RARE, 'dict', 'sub', 'x'})
_DATA = st.recursive(
  st.none()
  | st.booleans()
  | st.integers()
  | st.floats()
  | st.text()
  | st.sampled_from(['1e999', '(,)i4', 'i4', '<U9', '|b1', 'O', 'ff', '0x']),
  lambda inner: (
    st.lists(inner, max_size=4)
    | st.tuples(st.sampled_from(_TAGS), inner).map(list)
    | st.dictionaries(st.text(), inner, max_size=2)
  ),
  max_leaves=12,
)

_ARRAYS = st.tuples(
  st.text('(,)<>|=bifcUSO1 ', max_size=5),
  st.none() | st.lists(st.integers(-1, 1 << 62), max_size=3),
  st.lists(_DATA, max_size=3),
)


@pytest.mark.parametrize('tag', _TAGS)
@hypothesis.settings(max_examples=150, deadline=None)
@hypothesis.given(payload=_DATA | _ARRAYS)
def test_malformed_values_are_values_or_errors_of_value(tag, payload):
  try:
    values.decode([tag, payload])
  except ValueError as e:
    assert str(e).startswith('not an encoded value')


@pytest.mark.parametrize(
  'data',
  [
    ['digest', []],
    ['numpy', ['(,)i4', None, [1]]],
    ['numpy', ['2i4', None, [1]]],
    ['numpy', ['i4,i4', None, [1]]],
    ['numpy', ['i4', [1 << 62, 1 << 62], [1]]],
    ['numpy', [7, None, [1]]],
  ],
)
def test_forged_values_that_numpy_or_python_choke_on(data):
  with pytest.raises(ValueError, match='not an encoded value'):
    values.decode(data)
