"""Low-rank adapters: added to a decoder, merged into it again."""

import contextlib

import jax
import jax.numpy as jnp
from flax import nnx

from qaq_jax.models import params as params_lib
from qaq_jax.models import sharding
from qaq_jax.models.decoder import Decoder
from qaq_jax.models.options import LoraOptions


def add(model: Decoder, options: LoraOptions, seed: int = 0) -> Decoder:
  """Returns a decoder of the same arrays with adapters that do nothing yet.

  Args:
    model: the model without adapters; stays as it is. Of an abstract one the
      adapters are abstract too.
    options: see LoraOptions.
    seed: the seed of the random halves of the adapters.

  Raises:
    ValueError: unknown targets, or the model has adapters already.
  """
  if model.lora is not None:
    raise ValueError('the model has adapters already: merge them first')
  values = _values(model)
  mesh = next(iter(values.values())).sharding.mesh if model.has_mesh else None
  out = _abstract(model, mesh, options)
  wanted = _values(out)
  specs = {
    path: spec
    for path, spec in params_lib.param_specs(model.config, options).items()
    if path not in values
  }
  abstract = {
    path: jax.ShapeDtypeStruct(
      spec.shape, jnp.float32, sharding=wanted[path].sharding
    )
    for path, spec in specs.items()
  }
  if any(isinstance(x, jax.ShapeDtypeStruct) for x in values.values()):
    values |= abstract
  else:
    values |= params_lib.random_values(
      model.config, specs, abstract, jax.random.key(seed)
    )
  return _filled(out, values)


def merge(model: Decoder) -> Decoder:
  """Returns a decoder without adapters: kernels W + alpha / rank * A B.

  Computed in float32 and stored in the kernels' dtype.
  """
  if model.lora is None:
    raise ValueError('the model has no adapters to merge')
  values = _values(model)
  mesh = next(iter(values.values())).sharding.mesh if model.has_mesh else None
  out = _abstract(model, mesh, None)
  merged = {}
  for path in _values(out):
    merged[path] = values[path]
    kernel = path[-1].removesuffix('_kernel')
    a = values.get((*path[:-1], f'{kernel}_lora_a'))
    if a is not None and path[-1].endswith('_kernel'):
      b = values[*path[:-1], f'{kernel}_lora_b']
      with contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh):
        merged[path] = _merged(values[path], a, b, model.lora.scale)
  return _filled(out, merged)


@jax.jit
def _merged(kernel, a, b, scale):

  def product(kernel, a, b):
    rank = a.shape[-1]
    low = a.astype(jnp.float32).reshape(a.shape[0], -1, rank)
    high = b.astype(jnp.float32).reshape(b.shape[0], rank, -1)
    delta = jnp.einsum(
      'lir,lro->lio', low, high, precision=jax.lax.Precision.HIGHEST
    )
    delta = scale * delta.reshape(kernel.shape)
    return (kernel.astype(jnp.float32) + delta).astype(kernel.dtype)

  if sharding.current_mesh() is None:
    return product(kernel, a, b)
  # The compiler finds the collectives: the inner axis is small.
  spec = jax.typeof(kernel).sharding.spec
  return jax.sharding.auto_axes(product, out_sharding=spec)(kernel, a, b)


def _abstract(model, mesh, options) -> Decoder:
  return Decoder(
    model.config,
    rngs=None,
    dtype=model.dtype,
    mesh=mesh,
    attention=model.attention,
    lora=options,
  )


def _values(model) -> dict:
  return {
    path: variable.get_value()
    for path, variable in nnx.to_flat_state(nnx.state(model))
  }


def _filled(model, values) -> Decoder:
  """Puts arrays by path into an abstract decoder."""
  state = {
    path: variable.replace(values[path])
    for path, variable in nnx.to_flat_state(nnx.state(model))
  }
  nnx.update(model, nnx.from_flat_state(state))
  model.eval()
  return model
