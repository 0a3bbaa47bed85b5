"""The progress bar, and a thread that works ahead."""

import queue
import sys
import threading
import time
from collections.abc import Generator, Iterable, Iterator

import tqdm

from qaq_jax.runtime import console

_END = object()


def token_bar(text: str, tokens: int, show: bool) -> tqdm.tqdm:
  """Returns a bar on stderr that counts tokens, `tokens` in all."""
  terminal = sys.stderr.isatty()
  return tqdm.tqdm(
    total=tokens,
    desc=text,
    unit='tok',
    unit_scale=True,
    disable=not (show and console.is_first()),
    dynamic_ncols=terminal,
    # A log file wants a line now and then, not ten a second.
    mininterval=0.5 if terminal else 30.0,
    maxinterval=10.0 if terminal else 60.0,
    smoothing=0.05,
  )


class Progress:
  """Rows, tokens per second, padding waste and time left, on stderr.

  Time left goes by tokens, which cost time, not by rows.
  """

  def __init__(
    self,
    name: str,
    *,
    tokens: int,
    rows: int,
    rows_done: int,
    show: bool = True,
  ):
    """Starts the bar.

    Args:
      name: the model's name.
      tokens: real tokens that are left to score.
      rows: rows of the input.
      rows_done: rows scored by earlier runs.
      show: False prints nothing but counts all the same.
    """
    self.tokens = 0  # real ones
    self.computed = 0  # with padding
    self.rows = rows_done
    self.wait_seconds = 0.0  # for windows; the first one's reading included
    self._total_rows = rows
    self._start = time.perf_counter()
    self._cpu_start = time.process_time()
    self._bar = token_bar(f'score {name}', tokens, show)

  def add_batch(self, tokens: int, computed: int) -> None:
    """Counts a scored batch."""
    self.tokens += tokens
    self.computed += computed
    self._bar.set_postfix_str(
      f'rows {self.rows:,}/{self._total_rows:,}, padding {self.waste:.1%}',
      refresh=False,
    )
    self._bar.update(tokens)

  def add_rows(self, rows: int) -> None:
    """Counts rows that are on disk."""
    self.rows += rows

  def waiting(self, items: Iterable) -> Iterator:
    """Yields `items`, counting the time until each is there.

    A batch may be in flight meanwhile, so a device was without work for at
    most that long.
    """
    items = iter(items)
    while True:
      start = time.perf_counter()
      item = next(items, _END)
      self.wait_seconds += time.perf_counter() - start
      if item is _END:
        return
      yield item

  @property
  def waste(self) -> float:
    """Share of the computed tokens that were padding."""
    return 1 - self.tokens / self.computed if self.computed else 0.0

  @property
  def seconds(self) -> float:
    """Since the start."""
    return time.perf_counter() - self._start

  @property
  def cpu_seconds(self) -> float:
    """Of all threads, since the start."""
    return time.process_time() - self._cpu_start

  def close(self) -> None:
    """Ends the bar."""
    self._bar.close()


class _Failure:
  def __init__(self, error):
    self.error = error


def ahead(items: Iterable, depth: int = 1) -> Generator:
  """Yields `items`, made in a thread up to `depth` items ahead.

  An error in the thread is raised here. A consumer that stops early should
  close the generator; the thread then ends after the item it is at.
  """
  ready: queue.Queue = queue.Queue(depth)
  stop = threading.Event()

  def put(item):
    while not stop.is_set():
      try:
        return ready.put(item, timeout=0.1)
      except queue.Full:
        continue
    return None

  def work():
    try:
      for item in items:
        put(item)
        if stop.is_set():
          return
      put(_END)
    except BaseException as e:  # noqa: BLE001  (handed to the consumer)
      put(_Failure(e))

  thread = threading.Thread(target=work, name='tokenize-ahead', daemon=True)
  thread.start()
  try:
    while (item := ready.get()) is not _END:
      if isinstance(item, _Failure):
        raise item.error
      yield item
  finally:
    stop.set()
    thread.join()
