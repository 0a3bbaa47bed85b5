"""Untrusted programs: a fresh, contained process for each.

`docs/evaluation.md` says what is contained and what is not. In short: a
process contains itself before it sees the program (`child/runner.py`), with
the strongest layer that this machine has: namespaces, else Landlock, else
nothing but limits; a filter of system calls where there is Linux, and limits
everywhere. `probe` finds out by trying, and `Sandbox` refuses to run anything
where something would be open to a program, unless it is told to.
"""

import dataclasses
import functools
import os
import pathlib
import platform
import socket
import tempfile

from qaq_jax.sandbox.process import START_SECONDS, Limits, Process, Refused

_MB = 1 << 20


@dataclasses.dataclass(frozen=True)
class Containment:
  """What holds on this machine, found by trying.

  Attributes:
    layer: 'namespaces', 'landlock' or 'none'.
    seccomp: whether system calls are filtered.
    network: whether the network is out of reach.
    writes: whether files outside of the temporary folder cannot be changed.
    reads: whether files outside of Python's own folders cannot be read.
    processes: whether no process can be started.
    signals: whether no other process can be signalled.
    ipc: whether memory, queues and sockets of others are out of reach.
    memory: whether the limit of memory holds.
    reasons: why stronger layers were not had, by layer.
  """

  layer: str
  seccomp: bool
  network: bool
  writes: bool
  reads: bool
  processes: bool
  signals: bool
  ipc: bool
  memory: bool
  reasons: dict[str, str]

  def missing(self) -> list[str]:
    """Names of what does not hold."""
    names = (
      'network',
      'writes',
      'reads',
      'processes',
      'signals',
      'ipc',
      'memory',
    )
    return [name for name in names if not getattr(self, name)]

  def describe(self) -> str:
    """One line for a log."""
    layers = [self.layer] if self.layer != 'none' else []
    layers += ['seccomp'] if self.seccomp else []
    text = f'sandbox: {", ".join([*layers, "limits"])}'
    if self.missing():
      text += '; not contained: ' + ', '.join(self.missing())
    return text


_PROBE = """
import fcntl, os, socket
from child import seccomp

def network(port):
  with socket.socket() as s:
    s.settimeout(5)
    s.connect(('127.0.0.1', port))

def writes(path):
  with open(path, 'a') as f:
    f.write('x')

def reads(path):
  with open(path) as f:
    f.read()

def processes(_):
  if os.fork() == 0:
    os._exit(0)

def signals(pid):
  try:
    os.kill(pid, 0)
  except OSError:  # as the owner of a file, it would be signalled by that
    fcntl.fcntl(0, fcntl.F_SETOWN, pid)

def ipc(_):
  if not seccomp.open_ways():
    raise PermissionError

def memory(size):
  bytearray(size)
"""


def measure(layer: str, seccomp: bool) -> Containment:
  """Tries, from inside of a layer, what should not be possible there.

  Raises:
    Refused: this machine does not have that layer.
  """
  limits = Limits(memory_mb=512, tmp_mb=1, cpu_seconds=30)
  with (
    tempfile.TemporaryDirectory(prefix='qaq_probe_') as folder,
    socket.create_server(('127.0.0.1', 0)) as server,
    Process(limits, layer, seccomp=seccomp) as process,
  ):
    outside = os.path.join(folder, 'outside')
    pathlib.Path(outside).write_text('')
    process.send({'load': _PROBE})
    if 'loaded' not in process.receive(START_SECONDS):
      raise Refused('Python does not work inside of the sandbox')
    held = {}
    for name, argument in (
      ('network', server.getsockname()[1]),
      ('writes', outside),
      ('reads', outside),
      ('processes', 0),
      ('signals', os.getpid()),
      ('ipc', 0),
      ('memory', 2 * limits.memory_mb * _MB),
    ):
      process.send({'function': name, 'calls': [['list', [argument]]]})
      held[name] = 'error' in process.receive(START_SECONDS)
  return Containment(layer=layer, seccomp=seccomp, reasons={}, **held)


@functools.cache
def probe() -> Containment:
  """Returns the strongest containment that this machine has."""
  reasons = {}
  for layer, seccomp in (
    ('namespaces', True),
    ('landlock', True),
    ('none', True),
    ('none', False),
  ):
    if platform.system() != 'Linux' and (seccomp or layer != 'none'):
      continue
    try:
      found = measure(layer, seccomp)
    except Refused as e:
      reasons[layer] = str(e)
      continue
    if not found.missing() or layer == 'none':
      return dataclasses.replace(found, reasons=reasons)
    reasons[layer] = 'does not hold: ' + ', '.join(found.missing())
  raise Refused(f'no program can be run here: {reasons}')


class Sandbox:
  """Starts contained processes, all with the containment found at first."""

  def __init__(
    self,
    limits: Limits | None = None,
    *,
    allow_uncontained: bool = False,
    containment: Containment | None = None,
  ):
    """Finds out what this machine can contain.

    Args:
      limits: what each program may use.
      allow_uncontained: run programs although something is not contained.
      containment: use this one, from `measure`, not the strongest there is.

    Raises:
      Refused: something is not contained, and that was not allowed.
    """
    self.limits = limits or Limits()
    self.containment = containment or probe()
    missing = self.containment.missing()
    if missing and not allow_uncontained:
      raise Refused(
        'programs cannot be contained on this machine: '
        f'{", ".join(missing)} would be open to them '
        f'({self.containment.reasons}). docs/evaluation.md says what is '
        'needed. On a machine that holds nothing of value, '
        '--allow-uncontained (config.evaluate.allow_uncontained) runs them '
        'all the same'
      )

  def start(self) -> Process:
    """Starts a process; use it in a `with` statement."""
    return Process(
      self.limits, self.containment.layer, seccomp=self.containment.seccomp
    )
