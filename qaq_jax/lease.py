"""The right to write to an object store, where nothing can be locked.

But an object can be created only where there is none, so the one who creates
`.lease` may write. The object changes every few seconds as long as its holder
lives; one that stays as it is, is taken over. No clocks are compared.
"""

import contextlib
import json
import os
import socket
import threading
import time
import uuid

from qaq_jax.scoring import files

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
    return json.dumps({
        'holder': f'{socket.gethostname()}, pid {os.getpid()}',
        'id': self._id, 'beat': beat,
    }).encode()

  def _read(self):
    with contextlib.suppress(FileNotFoundError):
      return self._fs.cat_file(self._path)
    return None

  def take(self, say) -> None:
    """Creates the object, or takes it over from a holder that is gone.

    Args:
      say: prints a line.

    Raises:
      StoreError: another run holds it; names its host and process.
    """
    seen, since = None, time.monotonic()
    while True:
      try:
        self._fs.pipe_file(self._path, self._text(0), mode='create')
        break
      except FileExistsError:
        now = self._read()
      if seen is None and now is not None:
        seen, since = now, time.monotonic()
        say(
            f'{self._url}: waiting up to {LOST_SECONDS:.0f} s to see whether '
            f'{json.loads(now)["holder"]} still writes there'
        )
      elif now is not None and now != seen:
        raise files.StoreError(
            f'another run writes to {self._url} '
            f'({json.loads(now)["holder"]}); wait for it, stop it, or use '
            'another --workdir'
        )
      elif time.monotonic() - since > LOST_SECONDS:
        with contextlib.suppress(FileNotFoundError):
          self._fs.rm_file(self._path)
        since = time.monotonic()
      time.sleep(BEAT_SECONDS / 10)
    self._thread.start()

  def _beat(self):
    beat = 0
    while not self._stop.wait(BEAT_SECONDS):
      beat += 1
      with contextlib.suppress(Exception):  # the next one may get through
        self._fs.pipe_file(self._path, self._text(beat))

  def give(self) -> None:
    """Removes the object."""
    self._stop.set()
    self._thread.join()
    with contextlib.suppress(Exception):  # or it is found without a holder
      self._fs.rm_file(self._path)
