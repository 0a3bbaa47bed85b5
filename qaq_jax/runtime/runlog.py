"""The run log: what ran, when, with which versions and on which devices.

`WORKDIR/run.log` gets one JSON object per line, appended by every command, so
that a score table can be traced to the machine and versions that made it.
"""

import datetime
import importlib.metadata
import json
import pathlib
import platform
import time
import traceback
from collections.abc import Sequence

import jax

PACKAGES = (
  'qaq_jax',
  'jax',
  'jaxlib',
  'flax',
  'optax',
  'transformers',
  'tokenizers',
  'orbax-checkpoint',
  'datasets',
  'pyarrow',
  'numpy',
)


class RunLog:
  """Appends events of a command to a log file.

  Only process 0 writes. Every line is flushed, so a kill loses none.
  """

  def __init__(self, path: pathlib.Path, command: Sequence[str]):
    self._path, self._command = path, command

  def write(self, event: str, **fields) -> None:
    """Appends one event."""
    if jax.process_index():
      return
    now = datetime.datetime.now(datetime.UTC)
    line = json.dumps(
      {'time': now.isoformat(timespec='seconds'), 'event': event, **fields},
      default=str,
    )
    with open(self._path, 'a', encoding='utf-8') as f:
      f.write(line + '\n')

  def environment(self) -> None:
    """Appends versions, command line and devices."""
    devices = jax.devices()
    self.write(
      'environment',
      command=self._command,
      python=platform.python_version(),
      platform=platform.platform(),
      versions=_versions(),
      processes=jax.process_count(),
      devices=len(devices),
      device_kind=devices[0].device_kind,
    )

  def stage(self, name: str) -> '_Stage':
    """Context manager that logs a stage's start, end and failure."""
    return _Stage(self, name)


class _Stage:
  def __init__(self, log, name):
    self._log, self._name = log, name

  def __enter__(self):
    self._start = time.monotonic()
    self._log.write('start', stage=self._name)
    return self

  def __exit__(self, kind, error, trace):
    fields = {
      'stage': self._name,
      'seconds': round(time.monotonic() - self._start, 3),
    }
    if error is None:
      self._log.write('end', **fields)
    else:
      text = ''.join(traceback.format_exception(kind, error, trace))
      self._log.write('failed', **fields, error=text)
    return False


def _versions() -> dict[str, str]:
  versions = {}
  for name in PACKAGES:
    try:
      versions[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      versions[name] = 'not installed'
  return versions
