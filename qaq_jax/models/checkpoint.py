"""Models from Hugging Face checkpoints or from a seed, and back to files.

Reading goes parameter by parameter straight into sharded arrays: each process
asks safetensors for the blocks that its own devices hold, in the layout of the
file, and turns and stacks only those. So extra memory is bounded by the largest
stacked parameter, and no collective is needed. orbax's safetensors reader
restores whole tensors one to one; our parameters are stacked over layers,
transposed and padded, which would cost a second copy and a jit for each.
"""

import gc
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

from qaq_jax.models import config_writer, families, quantization, tensors
from qaq_jax.models import source as source_lib
from qaq_jax.models.config import ModelConfig, from_hf
from qaq_jax.models.decoder import Decoder
from qaq_jax.models.params import is_expert, param_specs
from qaq_jax.models.source import ModelSource, fingerprint, resolve

__all__ = [
    'ModelSource',
    'abstract',
    'fingerprint',
    'load',
    'random_init',
    'read_config',
    'resolve',
    'save_hf',
]


def random_init(
    config: ModelConfig,
    *,
    mesh: jax.sharding.Mesh | None,
    dtype=jnp.float32,
    seed: int = 0,
    attention: str = 'auto',
) -> Decoder:
  """Returns a Decoder with random weights, drawn where they will live."""
  model = Decoder(
      config,
      rngs=nnx.Rngs(seed),
      dtype=dtype,
      param_dtype=dtype,
      mesh=mesh,
      attention=attention,
  )
  model.eval()
  return model


def abstract(
    config: ModelConfig,
    *,
    mesh: jax.sharding.Mesh | None,
    dtype=jnp.float32,
    param_dtype=None,
    attention: str = 'auto',
    quantized: str = '',
) -> Decoder:
  """Returns a Decoder of ShapeDtypeStructs: no memory, right shardings."""
  model = Decoder(
      config,
      rngs=None,
      dtype=dtype,
      param_dtype=dtype if param_dtype is None else param_dtype,
      mesh=mesh,
      attention=attention,
  )
  return quantization.prepare(model, quantized)


def _as_source(source) -> ModelSource:
  return source if isinstance(source, ModelSource) else resolve(source)


def read_config(source: ModelSource | str | os.PathLike) -> ModelConfig:
  """Returns the ModelConfig of a source or folder."""
  source = _as_source(source)
  return from_hf(
      source_lib.read_json(source), str(source.directory / 'config.json')
  )


def load(
    source: ModelSource | str | os.PathLike,
    *,
    mesh: jax.sharding.Mesh | None,
    dtype=jnp.float32,
    param_dtype=None,
    attention: str = 'auto',
    quantized: str = '',
) -> Decoder:
  """Returns the checkpoint's Decoder, sharded over the mesh, in eval mode.

  Args:
    source: from `resolve`, or what `resolve` takes.
    mesh: where the parameters go; None: the default device.
    dtype: of the computation, whatever the files hold.
    param_dtype: of the parameters; None: that of the computation.
    attention: implementation, see `attention.choose`.
    quantized: a scheme of `quantization`; kernels are rounded one by one as
      they are read, from the dtype of the computation.

  Raises:
    CheckpointError: see `tensors` for its kinds; names tensor and file.
    ValueError: config.json can't be honoured; names the key.
  """
  source = _as_source(source)
  config = read_config(source)
  model = abstract(
      config, mesh=mesh, dtype=dtype, param_dtype=param_dtype,
      attention=attention, quantized=quantized,
  )
  files = tensors.Tensors(source.directory, families.FAMILIES[config.family])
  _check(config, files)
  values = {}
  variables = dict(nnx.to_flat_state(nnx.state(model)))
  for path, variable in variables.items():
    like = variable.get_value()
    if path[-1].endswith('_kernel_scale'):
      continue  # made with its kernel
    if like.dtype != jnp.int8:
      values[path] = variable.replace(_read(config, path, like, files))
      continue
    read = jax.ShapeDtypeStruct(like.shape, dtype, sharding=like.sharding)
    kernel, scale = quantization.quantize(
        _read(config, path, read, files), path[-1]
    )
    beside = (*path[:-1], f'{path[-1]}_scale')
    values[path] = variable.replace(kernel)
    values[beside] = variables[beside].replace(scale)
  nnx.update(model, nnx.from_flat_state(values))
  model.eval()
  return model


def _layers_of(config: ModelConfig, path: tuple) -> range | None:
  """Returns the model's layers that a stacked parameter holds."""
  return config.stacks[path[1]] if path[0] == 'stacks' else None


def _experts_of(config: ModelConfig, path: tuple) -> range | None:
  """Returns the experts that a parameter is stacked over besides."""
  return range(config.num_experts) if is_expert(path[-1]) else None


def expected_tensors(config: ModelConfig) -> dict[str, tuple[int, ...]]:
  """Returns the shape of every tensor of the checkpoint by its name."""
  expected = {}
  for path, spec in param_specs(config).items():
    template, transform = families.tensor_of(config, path)
    layers, experts = _layers_of(config, path), _experts_of(config, path)
    shape = spec.shape if layers is None else spec.shape[1:]
    shape = shape if experts is None else shape[1:]
    for layer, expert in itertools.product(layers or (0,), experts or (0,)):
      name = template.format(layer, expert=expert)
      expected[name] = tuple(transform.shape(shape, config))
  return expected


def _check(config: ModelConfig, files: tensors.Tensors) -> None:
  expected = expected_tensors(config)
  weights = families.FAMILIES[config.family].weights
  head, embedding = weights['head'][0], weights['embedding'][0]
  if config.tie_embeddings and head in files and embedding in files:
    if not files.equal(head, embedding):
      raise tensors.CheckpointError(
          f'{files.describe(head)} differs from the embedding, but config.json'
          " says 'tie_word_embeddings': set it to false if the head is its own"
      )
    expected[head] = expected[embedding]
  files.check(expected)


def _read(config, path, like: jax.ShapeDtypeStruct, files: tensors.Tensors):
  """Reads one parameter into its sharding."""
  template, transform = families.tensor_of(config, path)
  layers, experts = _layers_of(config, path), _experts_of(config, path)
  sharding = like.sharding or jax.sharding.SingleDeviceSharding(
      jax.local_devices()[0]
  )
  blocks = {}  # devices that hold the same block share one read

  def read_layer(layer, index, shape):
    if experts is None:
      return read_tensor(template.format(layer), index, shape)
    return np.stack([
        read_tensor(template.format(layer, expert=e), index[1:], shape[1:])
        for e in experts[index[0]]
    ])

  def read_tensor(name, index, shape):
    tensor = files.open(name)
    return transform.read(tensor, index, shape).astype(like.dtype)

  def block(index):
    key = tuple((s.start, s.stop) for s in index)
    if key not in blocks:
      if layers is None:
        blocks[key] = read_layer(0, index, like.shape)
      else:  # the stacking axis is never split
        first = read_layer(layers[0], index[1:], like.shape[1:])
        stacked = np.empty((len(layers), *first.shape), first.dtype)
        stacked[0] = first
        for i, layer in enumerate(layers[1:], 1):
          stacked[i] = read_layer(layer, index[1:], like.shape[1:])
        blocks[key] = stacked
    return blocks[key]

  array = jax.make_array_from_callback(like.shape, sharding, block)
  jax.block_until_ready(array)
  # The host's copy goes before the next parameter is read; jax lets go of it
  # in a callback of the garbage collector.
  blocks.clear()
  gc.collect(0)
  return array


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
    dtype: of the saved weights.
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
        "those of the checkpoint; save the one that it was loaded from"
    )
  dtype = jnp.dtype(dtype)
  directory = pathlib.Path(directory)
  writer = jax.process_index() == 0
  if writer:
    directory.mkdir(parents=True, exist_ok=True)
  shapes = expected_tensors(model.config)
  plan = _plan_files(shapes, dtype.itemsize, shard_bytes)
  host, sources = _Host(model), _writers(model.config)
  names = {}
  for i, group in enumerate(plan):
    name = tensors.SINGLE
    if len(plan) > 1:
      name = f'model-{i + 1:05d}-of-{len(plan):05d}.safetensors'
    data = {
        t: _export(model.config, host, sources[t], dtype) for t in group
    }
    names |= dict.fromkeys(group, name)
    if writer:
      save_file(data, directory / name, metadata={'format': 'pt'})
  if not writer:
    return
  _remove_stale(directory, set(names.values()))
  if len(plan) > 1:
    total = sum(
        dtype.itemsize * int(np.prod(s))
        for s in shapes.values()
    )
    (directory / tensors.INDEX).write_text(
        json.dumps(
            {'metadata': {'total_size': total}, 'weight_map': names}, indent=2
        )
    )
  (directory / 'config.json').write_text(
      json.dumps(config_writer.write_config(model.config, dtype), indent=2)
      + '\n'
  )


def _plan_files(shapes, itemsize, limit):
  """Groups tensors, in order, into files of at most `limit` bytes."""
  groups, room = [[]], limit
  for name, shape in shapes.items():
    size = itemsize * int(np.prod(shape))
    if size > room and groups[-1]:
      groups.append([])
      room = limit
    groups[-1].append(name)
    room -= size
  return groups


def _writers(config):
  """Returns what each tensor is made of: (path, layer, expert) by name.

  Layer and expert are indices into the stacked parameter, None where it isn't.
  """
  sources = {}
  for path in param_specs(config):
    template, transform = families.tensor_of(config, path)
    layers, experts = _layers_of(config, path), _experts_of(config, path)
    for (i, layer), expert in itertools.product(
        enumerate(layers or (0,)), experts or (None,)
    ):
      sources.setdefault(template.format(layer, expert=expert), []).append(
          (transform.part or 0, path, None if layers is None else i, expert)
      )
  return {name: sorted(parts) for name, parts in sources.items()}


class _Host:
  """Parameters on the host, one layer of one at a time.

  The experts of a layer are tensors that follow each other: they are fetched
  together.
  """

  def __init__(self, model: Decoder):
    self._parameters = dict(nnx.to_flat_state(nnx.state(model)))
    self._key, self._value = None, None

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
    _, transform = families.tensor_of(config, path)
    array = transform.write(value if expert is None else value[expert])
    if transform is families.VOCAB:
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
