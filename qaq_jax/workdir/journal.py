"""A file of JSON lines that can be killed at any time and gone on with."""

import json
import pathlib
import threading

from qaq_jax.workdir import files


class Journal:
  """A header that says what the lines depend on, then one line per result.

  Attributes:
    records: the lines that were there, without the header.
  """

  def __init__(self, path, fingerprint: dict, *, write: bool = True):
    """Opens the file, or makes it.

    Args:
      path: the file.
      fingerprint: JSON-ready; lines of another one are not mixed with.
      write: whether lines will be added; if not, the file stays as it is.

    Raises:
      ValueError: the file's fingerprint is another; says what differs.
    """
    self._lock = threading.Lock()
    self._file = None
    path = pathlib.Path(path)
    content = path.read_bytes() if path.exists() else b''
    # A kill can leave half a line at the end.
    whole = content[: content.rfind(b'\n') + 1]
    lines = [json.loads(line) for line in whole.split(b'\n') if line]
    if lines:
      _check(path, lines[0].get('fingerprint', {}), fingerprint)
    self.records = lines[1:]
    if not write:
      return
    path.parent.mkdir(parents=True, exist_ok=True)
    self._file = path.open('r+b' if path.exists() else 'wb')
    self._file.truncate(len(whole))
    self._file.seek(len(whole))
    if not lines:
      self._append({'fingerprint': fingerprint})

  def add(self, record: dict) -> None:
    """Appends a line; safe from several threads."""
    with self._lock:
      self._append(record)

  def _append(self, record):
    self._file.write(json.dumps(record).encode() + b'\n')
    self._file.flush()

  def close(self) -> None:
    """Closes the file."""
    if self._file is not None:
      self._file.close()


def _check(path, old, new):
  # Through JSON, so that a tuple is the list that it was written as.
  differing = files.differences(old, json.loads(json.dumps(new)))
  if differing:
    raise ValueError(
      f'{path}: made with other settings ({"; ".join(differing)}); delete '
      'it, or write to another place'
    )
