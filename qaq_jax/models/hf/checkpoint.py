"""Models from Hugging Face checkpoints or from a seed, and back to files.

Reading goes parameter by parameter straight into sharded arrays: each process
asks safetensors for the blocks that its own devices hold, in the layout of the
file, and turns and stacks only those. So extra memory is bounded by the largest
stacked parameter, and no collective is needed. orbax's safetensors reader
restores whole tensors one to one; our parameters are stacked over layers,
transposed and padded, which would cost a second copy and a jit for each.
"""

import gc
import os

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from qaq_jax.models import quantization
from qaq_jax.models.config import ModelConfig
from qaq_jax.models.decoder import Decoder
from qaq_jax.models.hf import read_config as read_config_lib
from qaq_jax.models.hf import source as source_lib
from qaq_jax.models.hf import stacking, tensors
from qaq_jax.models.hf.families import family_of
from qaq_jax.models.hf.source import ModelSource, fingerprint, resolve
from qaq_jax.models.hf.stacking import expected_tensors
from qaq_jax.models.hf.write_checkpoint import save_hf

__all__ = [
  'ModelSource',
  'abstract',
  'expected_tensors',
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
  return read_config_lib.read_config(
    source_lib.read_json(source), str(source.directory / 'config.json')
  )


def check(source: ModelSource | str | os.PathLike) -> None:
  """Sees that the files hold what config.json asks for; loads no weights.

  Raises:
    CheckpointError: see `tensors` for its kinds; names tensor and file.
  """
  source = _as_source(source)
  config = read_config(source)
  _check(config, tensors.Tensors(source.directory, family_of(config)))


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
    source: the files from `resolve`, or what `resolve` takes.
    mesh: where the parameters go; None: the default device.
    dtype: the dtype of the computation, whatever the files hold.
    param_dtype: the dtype of the parameters; None: that of the computation.
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
    config,
    mesh=mesh,
    dtype=dtype,
    param_dtype=param_dtype,
    attention=attention,
    quantized=quantized,
  )
  files = tensors.Tensors(source.directory, family_of(config))
  _check(config, files)
  values = {}
  variables = dict(nnx.to_flat_state(nnx.state(model)))
  for path, variable in variables.items():
    like, name = variable.get_value(), str(path[-1])
    if name.endswith('_kernel_scale'):
      continue  # made with its kernel
    if like.dtype != jnp.int8:
      values[path] = variable.replace(_read(config, path, like, files))
      continue
    read = jax.ShapeDtypeStruct(like.shape, dtype, sharding=like.sharding)
    kernel, scale = quantization.quantize(
      _read(config, path, read, files), name
    )
    beside = (*path[:-1], f'{name}_scale')
    values[path] = variable.replace(kernel)
    values[beside] = variables[beside].replace(scale)
  nnx.update(model, nnx.from_flat_state(values))
  model.eval()
  return model


def _check(config: ModelConfig, files: tensors.Tensors) -> None:
  expected = expected_tensors(config)
  weights = family_of(config).weights
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
  template, transform = family_of(config).tensor(path)
  layers = stacking.layers_of(config, path)
  experts = stacking.experts_of(config, path)
  sharding = like.sharding or jax.sharding.SingleDeviceSharding(
    jax.local_devices()[0]
  )
  blocks = {}  # devices that hold the same block share one read

  def read_layer(layer, index, shape):
    if experts is None:
      return read_tensor(template.format(layer), index, shape)
    return np.stack(
      [
        read_tensor(template.format(layer, expert=e), index[1:], shape[1:])
        for e in experts[index[0]]
      ]
    )

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
