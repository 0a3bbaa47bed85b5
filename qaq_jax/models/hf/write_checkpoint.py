"""Models as Hugging Face checkpoints: safetensors and config.json."""

import itertools
import json
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils
from safetensors.numpy import save_file

from qaq_jax.models.decoder import Decoder
from qaq_jax.models.hf import (
  stacking,
  tensors,
  transforms,
  write_config,
)
from qaq_jax.models.hf.families import family_of
from qaq_jax.workdir import files


def save_hf(
  model: Decoder,
  directory: str | os.PathLike,
  *,
  dtype=jnp.bfloat16,
  shard_bytes: int = 5 * 10**9,
) -> None:
  """Writes safetensors and config.json as transformers writes and reads them.

  Every process must call it; the first one writes. At most `shard_bytes` of the
  model are on the host at a time.

  Args:
    model: the decoder.
    directory: made if missing; files of the same names are replaced.
    dtype: the dtype of the saved weights.
    shard_bytes: largest file; more than one file gets an index.

  Raises:
    ValueError: the model has adapters, or is quantised; this format holds
      neither.
  """
  if model.lora is not None:
    raise ValueError(
      'this model has adapters (LoRA): save what finetune.lora.merge returns'
    )
  if model.quantization:
    raise ValueError(
      f'this model is quantised ({model.quantization}): its weights are not '
      'those of the checkpoint; save the one that it was loaded from'
    )
  dtype = jnp.dtype(dtype)
  directory = pathlib.Path(directory)
  writer = jax.process_index() == 0
  if writer:
    directory.mkdir(parents=True, exist_ok=True)
  shapes = stacking.expected_tensors(model.config)
  plan = _plan_files(shapes, dtype.itemsize, shard_bytes)
  host, sources = _Host(model), stacking.sources(model.config)
  names: dict[str, str] = {}  # tensor -> its file
  for i, group in enumerate(plan):
    name = tensors.SINGLE
    if len(plan) > 1:
      name = f'model-{i + 1:05d}-of-{len(plan):05d}.safetensors'
    data = {t: _export(model.config, host, sources[t], dtype) for t in group}
    names |= dict.fromkeys(group, name)
    if writer:
      save_file(data, directory / name, metadata={'format': 'pt'})
  if not writer:
    return
  _remove_stale(directory, set(names.values()))
  if len(plan) > 1:
    total = sum(dtype.itemsize * int(np.prod(s)) for s in shapes.values())
    index = {'metadata': {'total_size': total}, 'weight_map': names}
    files.write_atomic(
      directory / tensors.INDEX, json.dumps(index, indent=2).encode()
    )
  config = write_config.write_config(model.config, dtype)
  files.write_atomic(
    directory / 'config.json', (json.dumps(config, indent=2) + '\n').encode()
  )


def _plan_files(shapes, itemsize, limit):
  """Groups tensors, in order, into files of at most `limit` bytes."""
  groups: list[list[str]] = [[]]
  room = limit
  for name, shape in shapes.items():
    size = itemsize * int(np.prod(shape))
    if size > room and groups[-1]:
      groups.append([])
      room = limit
    groups[-1].append(name)
    room -= size
  return groups


class _Host:
  """Parameters on the host, one layer of one at a time.

  The experts of a layer are tensors that follow each other: they are fetched
  together.
  """

  def __init__(self, model: Decoder):
    self._parameters = dict(nnx.to_flat_state(nnx.state(model)))
    self._key: tuple | None = None  # path and layer of what is held
    self._value: np.ndarray

  def get(self, path, layer) -> np.ndarray:
    """Every process must ask for the same ones in the same order."""
    if (path, layer) != self._key:
      value = self._parameters[path].get_value()
      value = value if layer is None else value[layer]
      if not value.is_fully_addressable:
        value = multihost_utils.process_allgather(value, tiled=True)
      self._key, self._value = (path, layer), np.asarray(value)
    return self._value


def _export(config, host, parts, dtype):
  arrays = []
  for _, path, layer, expert in parts:
    value = host.get(path, layer)
    _, transform = family_of(config).tensor(path)
    array = transform.write(value if expert is None else value[expert])
    if transform is transforms.VOCAB:
      array = array[: config.vocab_size]
    arrays.append(array)
  array = arrays[0] if len(arrays) == 1 else np.concatenate(arrays, axis=-1)
  return np.ascontiguousarray(array.astype(dtype))


def _remove_stale(directory, keep):
  """Removes weight files of an earlier save, which would be read instead."""
  old = itertools.chain(
    directory.glob('model*.safetensors'), [directory / tensors.INDEX]
  )
  for path in old:
    if path.name not in keep:
      path.unlink(missing_ok=True)
