"""SIGTERM and SIGINT: finish the update, save, leave."""

import signal
import threading

import jax
import numpy as np
from jax.experimental import multihost_utils

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupted(SystemExit):
  """A run that was asked to stop and has saved; exit status 128 + signal."""

  def __init__(self, number: int, message: str):
    super().__init__(128 + number)
    self.message = message

  def __str__(self):
    return self.message


class Signals:
  """Notes the first SIGTERM or SIGINT in a `with` block.

  A second one acts as if nothing had been installed. Handlers can be set in
  the main thread only; in another thread nothing is noted.
  """

  def __init__(self):
    self._received = 0
    self._before = {}

  def __enter__(self) -> 'Signals':
    if threading.current_thread() is threading.main_thread():
      self._before = {s: signal.signal(s, self._note) for s in _SIGNALS}
    return self

  def __exit__(self, *unused):
    self._restore()

  def _note(self, number, frame):
    del frame
    self._received = number
    self._restore()

  def _restore(self):
    for number, handler in self._before.items():
      signal.signal(number, handler)
    self._before = {}

  def received(self) -> int:
    """The signal, 0 for none; with several processes, the same in all.

    All processes must ask equally often.
    """
    if jax.process_count() == 1:
      return self._received
    return int(
      multihost_utils.process_allgather(np.int32(self._received)).max()
    )
