"""Checkpoints of a training run: all that is needed to go on exactly."""

import contextlib
import json
import os
import pathlib
import shutil

import jax
from orbax.checkpoint.experimental import v1 as ocp

from qaq_jax.finetune.options import FitOptions
from qaq_jax.runtime import processes
from qaq_jax.workdir import checksums
from qaq_jax.workdir.files import StoreError

_LOSS = 'validation_loss'
_SUMS = 'all.sha256'  # in a checkpoint's folder: checksums of its files
_BACK = 'delete this folder to go on from the checkpoint before it'
_SHOWN = 200  # characters of an error
# What is read of every checkpoint when the folder is opened.
_METADATA = ('_CHECKPOINT_METADATA', 'metrics/metrics')
_SLACK = 64 << 20  # bytes, for metrics, samples and file system blocks


class Checkpoints:
  """The checkpoints in a folder: the latest few, and the best.

  Saving is asynchronous: `save` returns when the arrays are copied, and a
  checkpoint that was being written when the process died is not among
  `steps`; opening the folder again deletes its pieces, which only the holder
  of the run's lock may do.
  """

  def __init__(
    self,
    directory: str | os.PathLike,
    keep: int = FitOptions.keep,
    *,
    tidy: bool = True,
  ):
    """Opens the folder, made when missing.

    Args:
      directory: the folder of the run's checkpoints.
      keep: how many of the latest stay; the one of the least validation loss
        stays besides.
      tidy: delete the pieces of saves that did not end.

    Raises:
      StoreError: what is said of a checkpoint there, as its loss, is damaged;
        names it and what to do.
    """
    policies = ocp.training.preservation_policies
    self.directory = pathlib.Path(directory).absolute()
    self._saved: int | None = None  # step whose save may still be going on
    processes.by_the_first(self._check_metadata, 'checkpoints')
    self._checkpointer = ocp.training.Checkpointer(
      self.directory,
      preservation_policy=policies.AnyPreservationPolicy(
        [
          policies.LatestN(keep),
          policies.BestN(
            get_metric_fn=lambda metrics: metrics[_LOSS],
            reverse=True,  # the last of the sorted are the best
            n=1,
            keep_checkpoints_without_metrics=False,
          ),
        ]
      ),
      cleanup_tmp_directories=tidy,
    )

  def _check_metadata(self):
    for folder in sorted(self.directory.glob('[0-9]*')):
      if folder.name.isdigit():
        with _reading(folder):
          # A kill may have come while an old one was deleted.
          there = [name for name in _METADATA if (folder / name).exists()]
          if not checksums.check(folder, _BACK, folder / _SUMS, there):
            _parse_metadata(folder)

  @property
  def latest(self) -> int | None:
    """Updates made by the latest checkpoint, None without one."""
    latest = self._checkpointer.latest
    return None if latest is None else latest.step

  @property
  def best(self) -> tuple[int, float] | None:
    """Step and validation loss of the best; the later one of equals."""
    losses = [
      (c.metrics[_LOSS], -c.step)
      for c in self._checkpointer.checkpoints
      if c.metrics
    ]
    if not losses:
      return None
    loss, step = min(losses)
    return -step, loss

  def save(
    self,
    step: int,
    state,
    progress: dict,
    validation_loss: float | None = None,
  ) -> None:
    """Starts saving; waits for the save before it.

    Args:
      step: number of updates made.
      state: pytree of arrays; may be donated as soon as this returns.
      progress: JSON-serialisable, returned by `restore`.
      validation_loss: finite, or None where it was not measured.
    """
    metrics = None if validation_loss is None else {_LOSS: validation_loss}
    self.wait()
    with self._naming():
      self._checkpointer.save_async(
        step,
        state,
        force=True,
        overwrite=True,
        custom_metadata=progress,
        metrics=metrics,
      )
    self._saved = step

  def restore(self, step: int, like) -> tuple[object, dict]:
    """The state of a checkpoint, laid out like `like`, and its progress.

    Args:
      step: one that is there.
      like: pytree of arrays or jax.ShapeDtypeStruct: shapes, types, shardings.
        Any mesh: each device reads what it holds.

    Raises:
      StoreError: the checkpoint can't be read; names it and what to do.
    """
    folder = self.directory / str(step)

    def check():  # arrays in orbax's files have no checksums
      with _reading(folder):
        checksums.check(folder, _BACK, folder / _SUMS)

    processes.by_the_first(check, f'checkpoint {step}')
    with _reading(folder):
      state = self._checkpointer.load(step, abstract(like))
      progress = self._checkpointer.metadata(step).custom_metadata
    return state, progress

  def wait(self) -> None:
    """Returns when what was saved is on disk.

    Raises:
      StoreError: it could not be written; says what to do.
    """
    with self._naming():
      self._checkpointer.wait()
      folder = self.directory / str(self._saved)
      if jax.process_index() == 0 and self._saved and folder.exists():
        checksums.note(folder, beside=folder / _SUMS)
    self._saved = None

  def close(self) -> None:
    """Waits, then closes."""
    try:
      self.wait()
    finally:
      with self._naming():
        self._checkpointer.close()

  @contextlib.contextmanager
  def _naming(self):
    try:
      yield
    except Exception as e:
      raise StoreError(
        f'a checkpoint could not be written to {self.directory} '
        f'({str(e)[:_SHOWN]}...): the ones before it stay; free the disk, '
        'and the same command goes on from the last'
      ) from e


@contextlib.contextmanager
def _reading(folder):
  try:
    yield
  except Exception as e:  # many kinds, all with one cure
    raise StoreError(  # orbax prints the whole tree
      f'the checkpoint {folder} cannot be read ({str(e)[:_SHOWN]}...): {_BACK}'
    ) from e


def _parse_metadata(folder):
  """Refuses what can't have been written, where there are no checksums."""
  for name in _METADATA:
    path = folder / name
    if path.exists():
      found = json.loads(path.read_bytes())
      needed = 'custom_metadata' if name == _METADATA[0] else _LOSS
      if not isinstance(found, dict) or needed not in found:
        raise ValueError(f'{name} has no {needed}')
      if needed == _LOSS and not isinstance(found[_LOSS], float):
        raise ValueError(f'{name} has no number')


def abstract(state):
  """The same pytree of jax.ShapeDtypeStruct, with shardings."""
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
    state,
  )


def load(directory: str | os.PathLike, step: int, like):
  """The state of one checkpoint of a run that is not going on."""
  store = Checkpoints(directory, tidy=False)
  try:
    return store.restore(step, like)[0]
  finally:
    store.close()


def size_of(state) -> int:
  """Bytes of a pytree's arrays."""
  return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))


def _bytes_in(directory: pathlib.Path) -> int:
  """Bytes of all files below, some of which may go away meanwhile."""
  total = 0
  for path in directory.rglob('*'):
    with contextlib.suppress(FileNotFoundError):
      total += path.stat().st_size if path.is_file() else 0
  return total


def check_folder(
  directory: str | os.PathLike,
  state,
  keep: int,
  reserve: int = 0,
  free: int | None = None,
) -> str:
  """Sees to it that the checkpoints of a run can be written.

  Args:
    directory: the folder of the checkpoints; made when missing.
    state: what will be saved.
    keep: the number kept, as in `Checkpoints`.
    reserve: bytes that will be written besides.
    free: bytes free on the disk; None: asks the system.

  Returns:
    What is needed and free, in words.

  Raises:
    StoreError: the folder can't be written, or the disk has no room for
      `keep` checkpoints, the best one and the one being written.
  """
  directory = pathlib.Path(directory)
  probe = directory / f'.writable-{os.getpid()}'
  try:
    directory.mkdir(parents=True, exist_ok=True)
    probe.write_bytes(b'x')
    probe.unlink()
    there = _bytes_in(directory)
    if free is None:
      free = shutil.disk_usage(directory).free
  except OSError as e:
    raise StoreError(
      f'checkpoints cannot be written to {directory}: {e}. Free the disk or '
      'give another folder'
    ) from e
  needed = size_of(state) * (keep + 2) + reserve + _SLACK - there
  text = (
    f'{keep + 2} checkpoints of {size_of(state) / 2**20:,.1f} MiB'
    + (f', an export of {reserve / 2**20:,.1f} MiB' if reserve else '')
    + f': up to {max(needed, 0) / 2**20:,.0f} MiB more, '
    f'{free / 2**20:,.0f} MiB free'
  )
  if needed > free:
    raise StoreError(
      f'the disk of {directory} is too full ({text}): free some, give '
      'another folder, or keep fewer checkpoints'
    )
  return text
