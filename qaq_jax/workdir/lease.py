"""The right to write to an object store, where nothing can be locked.

But an object can be created only where there is none, so the one who creates
`.lease` may write. The object changes every few seconds as long as its holder
lives; one that stays as it is, is taken over. No clocks are compared. A holder
that was silent for so long (suspended, without network) and comes back finds
that the object is another's, and writes no more; unless it was stopped between
looking and writing a life sign, which then takes the object back.
"""

import contextlib
import itertools
import json
import os
import socket
import threading
import time
import uuid

from qaq_jax.runtime import console
from qaq_jax.workdir import files

NAME = '.lease'
BEAT_SECONDS = 10.0  # between two life signs
LOST_SECONDS = 40.0  # unchanged for so long, it has no holder any more


class Lease:
  """An object that one run holds, with its life signs."""

  def __init__(self, fs, path, url):
    self._fs, self._path, self._url = fs, path, url
    self._id = uuid.uuid4().hex
    self._stop = threading.Event()
    self._thread = threading.Thread(target=self._beat, daemon=True)

  def _text(self, beat):
    return json.dumps(
      {
        'holder': f'{socket.gethostname()}, pid {os.getpid()}',
        'id': self._id,
        'beat': beat,
      }
    ).encode()

  def _read(self):
    with contextlib.suppress(FileNotFoundError):
      return self._fs.cat_file(self._path)
    return None

  def _mine(self):
    now = self._read()
    return _told(now, 'id') == self._id

  def _holder(self):
    now = self._read()
    return _told(now, 'holder') if now else 'nobody any more'

  def check(self) -> None:
    """Looks whether this run may still write.

    Raises:
      StoreError: another run has taken the lease over, or removed it.
    """
    if not self._mine():
      raise files.StoreError(
        f'{self._url}: the right to write there is no longer with this run, '
        f'which gave no sign of life for {LOST_SECONDS:.0f} s or more, but '
        f'with {self._holder()}. Nothing more is written; start again once '
        'nobody else writes there'
      )

  def take(self) -> None:
    """Creates the object, or takes it over from a holder that is gone.

    Raises:
      StoreError: another run holds it; names its host and process.
    """
    seen, since = None, time.monotonic()
    while not self._created():
      now = self._read()
      if now is not None and seen is None:
        seen, since = now, time.monotonic()
        console.say(
          f'{self._url}: waiting up to {LOST_SECONDS:.0f} s to see whether '
          f'{_told(now, "holder")} still writes there'
        )
      if now is not None and now != seen:
        raise self._refusal()
      if now is not None and time.monotonic() - since > LOST_SECONDS:
        # Of several that do so at once, the last one has it.
        self._fs.pipe_file(self._path, self._text(0))
        time.sleep(BEAT_SECONDS)
        if not self._mine():
          raise self._refusal()
        break
      time.sleep(BEAT_SECONDS / 10)
    self._thread.start()

  def _created(self):
    try:
      self._fs.pipe_file(self._path, self._text(0), mode='create')
    except FileExistsError:
      return False
    return True

  def _refusal(self):
    return files.StoreError(
      f'another run writes to {self._url} ({self._holder()}); wait for it, '
      'stop it, or use another --workdir'
    )

  def _beat(self):
    for beat in itertools.count(1):
      if self._stop.wait(BEAT_SECONDS):
        return
      with contextlib.suppress(Exception):  # the next one may get through
        if not self._mine():
          return
        self._fs.pipe_file(self._path, self._text(beat))

  def give(self) -> None:
    """Removes the object, unless it is another's by now."""
    self._stop.set()
    self._thread.join()
    with contextlib.suppress(Exception):  # or it is found without a holder
      if self._mine():
        self._fs.rm_file(self._path)


def _told(data: bytes | None, field: str) -> str:
  """What a lease says; a damaged one is somebody's all the same."""
  try:
    return json.loads(data or b'')[field]
  except (ValueError, TypeError, KeyError):
    return 'unknown'
