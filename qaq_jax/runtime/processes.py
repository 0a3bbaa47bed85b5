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
import math
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator

import jax
from jax._src import distributed  # client and barrier have no public name

# Errors that a user can mend; others are faults of ours, with a stack trace.
MENDABLE = (ValueError, OSError, ImportError, RuntimeError, FloatingPointError)
INTERRUPTED = 'interrupted; the same command goes on with what is on disk'

BEAT_SECONDS = 2.0
LOST_SECONDS = 30.0  # without a life sign
# Longer than LOST_SECONDS, so that the error that names the process comes
# first; jax's own ends the process without saying which.
_JAX_HEARTBEAT_SECONDS = 100
_DAY_MS = 24 * 3600 * 1000
_LOST_CODE = 3  # exit status after another process was lost
_LAST_WORDS_SECONDS = 10.0  # for `on_loss`, which may write to a store

_barriers = itertools.count()
_works = itertools.count()


class FirstFailed(RuntimeError):
  """What process 0 did alone, and the others wait for, has failed."""


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
  platforms = os.environ.get('JAX_PLATFORMS') or 'tpu'
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
  number = index = None
  if found == 'JAX_COORDINATOR_ADDRESS':
    number = _number('JAX_NUM_PROCESSES')
    index = _number('JAX_PROCESS_ID')
  try:
    jax.distributed.initialize(
      num_processes=number,
      process_id=index,
      heartbeat_timeout_seconds=_JAX_HEARTBEAT_SECONDS,
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


@contextlib.contextmanager
def joined() -> Iterator['Watch | None']:
  """Joins the run's processes for a block, as `start`; tells how it ends.

  Of several, one whose block fails ends here, once the others know of it.
  """
  watch = start()
  try:
    yield watch
  except BaseException as e:
    if watch is not None:  # the others would wait for this process
      watch.fail(e)
    raise
  if watch is not None:
    watch.close()


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
  """Returns what `work` does in process 0; the others wait and get None.

  Raises:
    FirstFailed: in the others, when `work` has raised an error in process 0.
  """
  if jax.process_count() == 1:
    return work()
  key = f'qaq/first/{name}, {next(_works)}'
  if jax.process_index():
    why = client().blocking_key_value_get(key, _DAY_MS)
    if why:
      raise FirstFailed(f'process 0 failed: {why}')
    return None
  why = ''
  try:
    return work()
  except BaseException as e:
    why = _words(e)
    raise
  finally:
    client().key_value_set(key, why)


def _words(error) -> str:
  return str(error) or type(error).__name__


class Watch:
  """Shows that this process lives and ends it when another one doesn't.

  Attributes:
    on_loss: called with the message before the process ends.
  """

  def __init__(self, store, index: int, number: int):
    self.on_loss = None
    self._store, self._index, self._number = store, index, number
    self._me = f'{socket.gethostname()}, pid {os.getpid()}'
    self._stop = threading.Event()
    self._failing = False  # with an error of its own
    self._ending = threading.Lock()  # taken once, never given back
    now = time.monotonic()
    self._answered = now  # when the common store last did
    self._seen = {i: ('', now) for i in range(number)}
    self._names: dict[int, str] = {}
    # Two: a call to a store that hangs never returns.
    self._threads = [
      threading.Thread(target=work, name='watch', daemon=True)
      for work in (self._beat, self._guard)
    ]

  def start(self) -> None:
    """Starts to watch; the others say who leads them.

    Jax itself ends a process whose leader was killed, and does not know more
    of it than that it led.
    """
    for thread in self._threads:
      thread.start()
    if self._index:
      first = self._store.blocking_key_value_get('qaq/alive/0', _DAY_MS)
      print(
        f'process {self._index} of {self._number}; process 0, the leader, is '
        f'{first.split("|", 1)[1]}'
      )

  def _beat(self):
    """A life sign and a look around, until `close`."""
    for beat in itertools.count():
      with contextlib.suppress(jax.errors.JaxRuntimeError):
        self._look(beat)
        self._answered = time.monotonic()
      if self._stop.wait(BEAT_SECONDS):
        return

  def _look(self, beat):
    self._store.key_value_set(
      f'qaq/alive/{self._index}', f'{beat}|{self._me}', allow_overwrite=True
    )
    for key, value in self._store.key_value_dir_get('qaq/alive/'):
      index = int(key.rsplit('/', 1)[1])
      self._names[index] = value.split('|', 1)[1]
      if value != self._seen[index][0]:
        self._seen[index] = value, time.monotonic()
    for key, why in self._store.key_value_dir_get('qaq/ended/'):
      index = int(key.rsplit('/', 1)[1])
      if why and index != self._index and not self._failing:
        self._end(f'process {index} ({self._name(index)}) failed: {why}')
      self._seen[index] = 'ended', math.inf

  def _guard(self):
    """Ends this process once another one has been silent for too long."""
    while not self._stop.wait(BEAT_SECONDS / 2):
      now = time.monotonic()
      silent = now - self._answered
      if silent > LOST_SECONDS:
        self._end(
          f'process 0 ({self._name(0)}), which the others report to, has '
          f'not answered for {silent:.0f} s: it was killed, hangs, or its '
          'host is gone'
        )
      for index, (_, when) in list(self._seen.items()):
        # While the store is silent nobody is seen.
        if self._answered - when > LOST_SECONDS:
          self._end(
            f'process {index} ({self._name(index)}) has given no sign of '
            f'life for {now - when:.0f} s: it was killed, hangs, or its '
            'host is gone'
          )

  def _name(self, index):
    return self._names.get(index, 'never seen')

  def _end(self, lost):
    """Ends this process from the watch's thread; the main one is stuck."""
    if not self._ending.acquire(blocking=False):
      return  # the other thread does
    text = (
      f'{lost}. This is process {self._index} of {self._number}; what was '
      'written is kept, and the same command goes on from there.'
    )
    print(f'qaq: error: {text}', file=sys.stderr, flush=True)
    last = threading.Thread(target=self._last, args=(text,), daemon=True)
    last.start()
    last.join(_LAST_WORDS_SECONDS)
    self._let_the_others_see()
    sys.stdout.flush()
    os._exit(_LOST_CODE)

  def _let_the_others_see(self):
    """Process 0 takes the common store with it: each may look once more."""
    if not self._index:
      time.sleep(3 * BEAT_SECONDS)

  def _last(self, text):
    with contextlib.suppress(Exception):
      if self.on_loss is not None:
        self.on_loss(text)

  def close(self) -> None:
    """Says that this process has done its work."""
    self._stop.set()
    # A thread that is in the store's client when Python ends aborts it.
    for thread in self._threads:
      thread.join(LOST_SECONDS)
    self._store.key_value_set(
      f'qaq/ended/{self._index}', '', allow_overwrite=True
    )

  def fail(self, error: BaseException) -> None:
    """Tells the others of an error, and ends this process.

    A collective that breaks says nothing of the process that broke it: this
    one waits until the watch has found out, and ended it with the name. Jax's
    own end would wait for the lost process, too.
    """
    if isinstance(error, (jax.errors.JaxRuntimeError, FirstFailed)):
      time.sleep(LOST_SECONDS + 3 * BEAT_SECONDS)
    self._failing = True
    interrupted = isinstance(error, KeyboardInterrupt)
    if not isinstance(error, (*MENDABLE, KeyboardInterrupt)):
      traceback.print_exception(error)
    # Before the others know: process 0 may end, and jax then ends this one.
    said = INTERRUPTED if interrupted else f'error: {_words(error)}'
    print(f'qaq: {said}', file=sys.stderr, flush=True)
    sys.stdout.flush()
    with contextlib.suppress(jax.errors.JaxRuntimeError):
      self._store.key_value_set(
        f'qaq/ended/{self._index}',
        _words(error),
        allow_overwrite=True,
      )
    self._let_the_others_see()
    os._exit(130 if interrupted else 1)
