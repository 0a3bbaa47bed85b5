"""The sandboxed process: contains itself, loads one program, answers calls.

Started by `sandbox.Process`. Messages are JSON with their length before them,
orders on standard input and answers on standard output; the program under
test has neither. Nothing that is said here is believed: the trusted process
compares the values that come back with those it expects, which this process is
never given. So a program may do to this code what it likes.

Orders: {contain}, then {load}, then any number of {calls} or {check}.
"""

import json
import os
import resource
import signal
import struct
import sys
import time

from child import values

_HEADER = struct.Struct('>I')
_MAX_TEXT = 300  # characters of an error message


class Channel:
  """Messages to and from the trusted process."""

  def __init__(self, orders: int, answers: int):
    self._orders, self._answers = orders, answers

  def receive(self) -> dict:
    """Returns the next order; the process ends where there is none."""
    (length,) = _HEADER.unpack(self._read(_HEADER.size))
    return json.loads(self._read(length))

  def send(self, message: dict) -> None:
    """Sends one answer."""
    body = json.dumps(message).encode()
    view = memoryview(_HEADER.pack(len(body)) + body)
    while view:
      view = view[os.write(self._answers, view) :]

  def _read(self, size):
    parts = []
    while size:
      part = os.read(self._orders, min(size, 1 << 20))
      if not part:
        os._exit(0)
      parts.append(part)
      size -= len(part)
    return b''.join(parts)


def main() -> None:
  """Runs until the orders end or the process is killed."""
  channel = Channel(os.dup(0), os.dup(1))
  null = os.open('/dev/null', os.O_RDWR)
  for standard in (0, 1, 2):
    os.dup2(null, standard)
  os.close(null)
  order = channel.receive()
  try:
    pid = _contain(**order)
  except OSError as e:
    channel.send({'refused': str(e)})
    return
  channel.send({'contained': order['layer'], 'pid': pid})
  namespace: dict = {}
  while True:
    order = channel.receive()
    if 'load' in order:
      channel.send(_load(order['load'], namespace))
    elif 'check' in order:
      channel.send(_check(order, namespace, channel))
    else:
      _answer_calls(order, namespace, channel)


def _contain(layer, seccomp, readable, tmp, tmp_bytes, limits, path):
  """Contains this process; returns its id as the trusted process sees it."""
  pid = os.getpid()
  if layer != 'none' or seccomp:
    # All imports of ours before their folder is out of sight.
    from child import kernel, landlock, namespaces
    from child import seccomp as system_calls

    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
  sys.path[:] = path
  if layer == 'namespaces':
    namespaces.enter(readable, tmp_bytes)
    pid = _fork()
    kernel.drop_capabilities()
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
  elif layer == 'landlock':
    landlock.restrict(readable, tmp)
    kernel.drop_capabilities()
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
  else:
    os.chdir(tmp)
  for name, value in limits.items():
    number = getattr(resource, name, None)
    if number is not None:
      _limit(number, value)
  if seccomp:
    system_calls.install()
  return pid


def _limit(number, value):
  """Sets a limit, or a lower one where that is the most there is."""
  hard = resource.getrlimit(number)[1]
  if hard != resource.RLIM_INFINITY:
    value = min(value, hard)
  try:
    resource.setrlimit(number, (value, value))
  except (OSError, ValueError):
    # macOS refuses limits of address space; what holds is found by trying.
    if sys.platform != 'darwin':
      raise


def _fork():
  """Goes on in a child, the first process of the new namespace.

  Returns:
    The child's id outside of that namespace.
  """
  reading, writing = os.pipe()
  pid = os.fork()
  if pid:
    os.write(writing, str(pid).encode())
    _, status = os.waitpid(pid, 0)
    os._exit(os.waitstatus_to_exitcode(status) & 0xFF)
  text = os.read(reading, 20)
  os.close(reading)
  os.close(writing)
  return int(text)


def _load(program, namespace):
  try:
    exec(compile(program, 'program.py', 'exec'), namespace)
  except BaseException as e:  # a program may raise anything, SystemExit too
    return {'error': _describe(e)}
  return {'loaded': True}


def _answer_calls(order, namespace, channel):
  name = order['function']
  for arguments in order['calls']:
    arguments = values.decode(arguments)
    started = time.process_time()
    try:
      value = values.encode(namespace[name](*arguments))
      answer = {'value': value, 'seconds': time.process_time() - started}
    except BaseException as e:
      answer = {'error': _describe(e)}
    channel.send(answer)


def _check(order, namespace, channel):
  """Runs test code whose candidate is a function in another process.

  Only trusted code is ever loaded here.
  """

  def candidate(*arguments):
    channel.send({'call': values.encode(list(arguments))})
    answer = channel.receive()
    if 'error' in answer:
      raise RuntimeError(answer['error'])
    return values.decode(answer['value'])

  if order['function']:
    namespace[order['function']] = candidate
  try:
    exec(compile(order['check'], 'check.py', 'exec'), namespace)
    if not order['function']:
      namespace['check'](candidate)
  except BaseException as e:
    return {'error': _describe(e)}
  return {'passed': True}


def _describe(e):
  try:
    return f'{type(e).__name__}: {e}'[:_MAX_TEXT]
  except BaseException:  # its own text can fail as well
    return type(e).__name__


if __name__ == '__main__':
  main()
