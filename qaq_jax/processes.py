"""Several processes of one run: their start, their life signs, their order.

A pod runs the same command once per host. `start` joins the processes, found
from what TPU pods, SLURM and Open MPI put into the environment, or from
JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID.

Every process shows that it lives and watches the others. When one is killed or
hangs, the rest would wait in a collective for good; instead they end with an
error that names it. What is on disk stays, and the same command goes on.
"""

import contextlib
import glob
import importlib.util
import itertools
import os
import socket
import sys
import threading
import time
from collections.abc import Callable

import jax
from jax._src import distributed  # client and barrier have no public name

BEAT_SECONDS = 2.0
LOST_SECONDS = 30.0  # without a life sign
# Longer than LOST_SECONDS, so that the error that names the process comes
# first; jax's own ends the process without saying which.
_JAX_HEARTBEAT_SECONDS = 100
_DAY_MS = 24 * 3600 * 1000
_LOST_CODE = 3  # exit status after another process was lost

_barriers = itertools.count()


def client():
  """The client of the processes' common store; None if there is but one."""
  return distributed.global_state.client


def environment() -> str | None:
  """What says that there are several processes, or None."""
  if os.environ.get('JAX_COORDINATOR_ADDRESS'):
    return 'JAX_COORDINATOR_ADDRESS'
  # Of the step, not of the job: a shell inside a job is one process.
  if int(os.environ.get('SLURM_STEP_NUM_TASKS') or 1) > 1:
    return 'SLURM'
  if int(os.environ.get('OMPI_COMM_WORLD_SIZE') or 1) > 1:
    return 'Open MPI'
  chips = glob.glob('/dev/accel[0-9]*') + glob.glob('/dev/vfio/[0-9]*')
  platforms = os.environ.get('JAX_PLATFORMS', 'tpu')
  if chips and 'tpu' in platforms and importlib.util.find_spec('libtpu'):
    return 'TPU'
  return None


def start() -> 'Watch | None':
  """Joins the run's processes, where the environment tells of several.

  Returns:
    The watch over them, already running; None for a single process.

  Raises:
    RuntimeError: the others could not be reached; says what was tried.
  """
  found = environment()
  if found is None:
    return None
  given = {}
  if found == 'JAX_COORDINATOR_ADDRESS':
    given = {
        'num_processes': _number('JAX_NUM_PROCESSES'),
        'process_id': _number('JAX_PROCESS_ID'),
    }
  try:
    jax.distributed.initialize(
        heartbeat_timeout_seconds=_JAX_HEARTBEAT_SECONDS, **given
    )
  except (ValueError, RuntimeError) as e:
    raise RuntimeError(
        f'{found} says that this is one of several processes, but they could '
        f'not be joined: {e}. Set JAX_COORDINATOR_ADDRESS=HOST:PORT, '
        'JAX_NUM_PROCESSES and JAX_PROCESS_ID in every process'
    ) from e
  if jax.process_count() == 1:
    return None
  watch = Watch(client(), jax.process_index(), jax.process_count())
  watch.start()
  return watch


def _number(variable: str) -> int | None:
  """A whole number of the environment; None where it is not set."""
  text = os.environ.get(variable, '')
  if text and not text.isdigit():
    raise RuntimeError(f'{variable} is {text!r}: it is a whole number')
  return int(text) if text else None


def barrier(name: str) -> None:
  """Waits until every process is here; however long the slowest takes.

  Not by a collective of the devices: those give up after minutes, and one
  process may read a data set for hours. A process that is gone is noticed by
  the watch.
  """
  if jax.process_count() > 1:
    client().wait_at_barrier(
        f'{name}, {next(_barriers)}', timeout_in_ms=_DAY_MS
    )


def by_the_first(work: Callable, name: str):
  """Returns what `work` does in process 0; the others wait and get None."""
  if jax.process_count() == 1:
    return work()
  result = None if jax.process_index() else work()
  barrier(name)
  return result


class Watch(threading.Thread):
  """Shows that this process lives and ends it when another one doesn't.

  Attributes:
    on_loss: called with the message before the process ends.
  """

  def __init__(self, store, index: int, number: int):
    super().__init__(name='watch', daemon=True)
    self.on_loss = None
    self._store, self._index, self._number = store, index, number
    self._me = f'{socket.gethostname()}, pid {os.getpid()}'
    self._stop = threading.Event()
    now = time.monotonic()
    self._seen = {i: ('', now) for i in range(number)}
    self._names = {}

  def run(self):
    """The thread: a life sign and a look around, until `close`."""
    for beat in itertools.count():
      lost = self._look(beat)
      if lost:
        self._end(lost)
      if self._stop.wait(BEAT_SECONDS):
        return

  def _look(self, beat) -> str | None:
    """One life sign, and one look at those of the others."""
    now = time.monotonic()
    try:
      self._store.key_value_set(
          f'qaq/alive/{self._index}', f'{beat}|{self._me}',
          allow_overwrite=True,
      )
      alive = dict(self._store.key_value_dir_get('qaq/alive/'))
      ended = dict(self._store.key_value_dir_get('qaq/ended/'))
    except jax.errors.JaxRuntimeError as e:
      silent = now - self._seen[0][1]
      if silent < LOST_SECONDS / 2:
        return None
      return (
          f'process 0 ({self._names.get(0, "host unknown")}), which the others '
          f'report to, could not be reached for {silent:.0f} s: {e}'
      )
    for key, value in alive.items():
      index = int(key.rsplit('/', 1)[1])
      self._names[index] = value.split('|', 1)[1]
      if value != self._seen[index][0]:
        self._seen[index] = value, now
    self._seen[0] = self._seen[0][0], now  # it has just answered
    failed = {int(k.rsplit('/', 1)[1]): v for k, v in ended.items()}
    for index, why in failed.items():
      if index != self._index and why:
        return f'process {index} ({self._names.get(index)}) failed: {why}'
    for index, (_, when) in self._seen.items():
      if now - when > LOST_SECONDS and index not in failed:
        return (
            f'process {index} ({self._names.get(index, "never seen")}) has '
            f'given no sign of life for {now - when:.0f} s: it was killed, '
            'hangs, or its host is gone'
        )
    return None

  def _end(self, lost):
    """Ends this process from the watch's thread; the main one is stuck."""
    text = (
        f'{lost}. This is process {self._index} of {self._number}; what was '
        'written is kept, and the same command goes on from there.'
    )
    with contextlib.suppress(Exception):
      if self.on_loss is not None:
        self.on_loss(text)
    print(f'qaq: error: {text}', file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(_LOST_CODE)

  def close(self, error: str = '') -> None:
    """Says goodbye: done, or with an error that the others will show.

    After an error this waits until they had time to read it, since process 0
    takes the common store with it.
    """
    self._stop.set()
    with contextlib.suppress(jax.errors.JaxRuntimeError):
      self._store.key_value_set(
          f'qaq/ended/{self._index}', error, allow_overwrite=True
      )
      if error:
        time.sleep(2 * BEAT_SECONDS)
