"""Checkpoints of a training run: all that is needed to go on exactly."""

import os
import pathlib

import jax
from orbax.checkpoint.experimental import v1 as ocp


def _checkpointer(directory, keep):
  policy = ocp.training.preservation_policies.LatestN(keep)
  return ocp.training.Checkpointer(
      pathlib.Path(directory).absolute(), preservation_policy=policy
  )


def save(directory: str | os.PathLike, state, step: int, keep: int = 2) -> None:
  """Saves a pytree of arrays as the checkpoint of `step`, atomically.

  Args:
    directory: of the run's checkpoints; made when missing.
    state: arrays.
    step: number of updates made.
    keep: how many of the latest checkpoints stay.
  """
  with _checkpointer(directory, keep) as checkpointer:
    checkpointer.save(step, state, overwrite=True)


def restore_latest(directory: str | os.PathLike, like):
  """The latest checkpoint with the shapes, types and shardings of `like`.

  Returns `like` itself where there is no checkpoint yet.
  """
  if not pathlib.Path(directory).exists():
    return like

  def abstract(x):
    if isinstance(x, jax.Array):
      return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
    return x

  with _checkpointer(directory, keep=2) as checkpointer:
    if checkpointer.latest is None:
      return like
    step = checkpointer.latest.step
    return checkpointer.load(step, jax.tree.map(abstract, like))
