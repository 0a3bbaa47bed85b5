"""What a run's checkpoints belong to: refuses to go on with anything else."""

import dataclasses
import hashlib
import pathlib
from collections.abc import Mapping, Sequence

import jax

from qaq_jax.encoding.examples import Example
from qaq_jax.models.decoder import Decoder
from qaq_jax.workdir import files, fingerprint

# Part of every fingerprint: raise it when a change in this folder moves a loss.
VERSION = 1


def digest(examples: Sequence[Example]) -> str:
  """SHA-256 of examples: ids, weights, rows, order."""
  total = hashlib.sha256()
  for example in examples:
    total.update(f'{example.row} {len(example.ids)}\n'.encode())
    total.update(example.ids.astype('<i4').tobytes())
    total.update(example.weights.astype('<f4').tobytes())
  return total.hexdigest()


def describe_options(options, free: Sequence[str] = ()) -> dict:
  """A dataclass as JSON, without the fields that change no number."""
  return {
    field.name: _plain(getattr(options, field.name))
    for field in dataclasses.fields(options)
    if field.name not in free
  }


def _plain(value):
  if dataclasses.is_dataclass(value):
    return describe_options(value)
  if isinstance(value, list | tuple):
    return [_plain(v) for v in value]
  if value is None or isinstance(value, bool | int | float | str):
    return value
  return str(value)


def describe_model(model: Decoder) -> dict:
  """What of a model changes a loss besides its weights."""
  return {
    'family': model.config.family,
    'layers': model.config.num_layers,
    'heads': model.config.num_heads,
    'dtype': model.dtype.name,
    'attention': model.attention,
    'lora': _plain(model.lora),
  }


def shapes(state) -> dict[str, str]:
  """Path -> type and shape of a pytree's arrays."""
  leaves = jax.tree_util.tree_flatten_with_path(state)[0]
  return {
    jax.tree_util.keystr(path): f'{x.dtype.name}{list(x.shape)}'
    for path, x in leaves
  }


def check(path: str | pathlib.Path, wanted: Mapping, started: bool) -> None:
  """Compares a run with the one that the folder holds, or notes it.

  Args:
    path: the path of the fingerprint's file.
    wanted: JSON-serialisable, of this run.
    started: whether there are checkpoints; without, nothing can be mixed.

  Raises:
    StoreError: the folder holds another run's checkpoints; says what differs.
  """
  path = pathlib.Path(path)
  back = (
    f'delete {path.parent / "checkpoints"} and this file to begin again, or '
    'copy it from where it is whole'
  )
  found = files.read_json(path, back) if started else None
  if started and found is None:
    raise files.StoreError(
      f'{path.parent} has checkpoints but no {path.name}, so it is unknown '
      'what they belong to: use another folder, or delete its checkpoints'
    )
  if found is None:
    if jax.process_index() == 0:
      files.write_json(path, files.seal(wanted))
    return
  found.pop(files.SEAL, None)
  fingerprint.check(
    found,
    wanted,
    what=f'{path.parent} holds the checkpoints of another run',
    back='Set these back, use another folder, or delete '
    f'{path.parent / "checkpoints"} to begin again',
  )
