"""8-bit weights for scoring: the layers' kernels, per output channel.

Symmetric: a kernel W becomes `round(W / s)` in int8 with `s = max |W| / 127`
over what a product sums, and y = (x q) s. Two schemes:

  int8          weights alone: products in the dtype of the computation, on
                weights that are half as large as bfloat16 in memory and in
                what fsdp gathers
  int8_dynamic  activations too, each token by its own largest value, products
                of int8 summed in int32 (LLM.int8(), arXiv 2208.07339, without
                its outlier columns): twice the peak rate where a chip has one

Norms, biases, embedding and head stay as they are: the head's logits are the
numbers that scoring is about. Docs: docs/quantization.md.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import nnx

from qaq_jax.models import quantized
from qaq_jax.models.decoder import Decoder

# Kernel -> its axes that a product sums over, the stacking axis counted.
SUMMED = {
  'q_kernel': (1,),
  'k_kernel': (1,),
  'v_kernel': (1,),
  'o_kernel': (1, 2),
  'up_kernel': (1,),
  'gate_kernel': (1,),
  'down_kernel': (1,),
}


def check(scheme: str, field: str = 'quantization') -> None:
  """Refuses a scheme that there isn't."""
  if scheme not in quantized.SCHEMES:
    raise ValueError(
      f'{field} is {scheme!r}; it is one of '
      + ', '.join(map(repr, quantized.SCHEMES))
    )


def prepare(model: Decoder, scheme: str) -> Decoder:
  """Gives an abstract decoder int8 kernels and their scales; returns it.

  Raises:
    ValueError: an unknown scheme, or a model that can't be quantised.
  """
  check(scheme)
  if not scheme:
    return model
  if model.lora is not None:
    raise ValueError('a model with adapters is not quantised: merge them first')
  model.quantization = scheme
  model._layer = dataclasses.replace(
    model._layer, dynamic=scheme == 'int8_dynamic'
  )
  for stack in model.stacks:
    names = [n for n in vars(stack) if n.endswith('_kernel')]
    unknown = [n for n in names if n not in SUMMED]
    if unknown:
      raise ValueError(
        f'quantization {scheme!r}: a {model.config.family} model has '
        f'{unknown[0]}, which is not quantised; use bfloat16'
      )
    for name in names:
      like = getattr(stack, name).get_value()
      kernel, scale = _like(like, SUMMED[name])
      setattr(stack, name, nnx.Param(kernel))
      setattr(stack, f'{name}_scale', nnx.Param(scale))
  return model


def _like(x: jax.ShapeDtypeStruct, summed):
  """Abstract int8 kernel and float32 scale, split as the kernel is."""
  kept = [i for i in range(len(x.shape)) if i not in summed]
  place = x.sharding
  if isinstance(place, jax.sharding.NamedSharding):
    spec = (*place.spec, *[None] * (len(x.shape) - len(place.spec)))
    place = jax.sharding.NamedSharding(
      place.mesh, jax.P(*(spec[i] for i in kept))
    )
  scale = jax.ShapeDtypeStruct(
    tuple(x.shape[i] for i in kept), jnp.float32, sharding=place
  )
  return (jax.ShapeDtypeStruct(x.shape, jnp.int8, sharding=x.sharding), scale)


def quantize(kernel: jax.Array, name: str) -> tuple[jax.Array, jax.Array]:
  """Returns the int8 kernel and its float32 scales.

  Args:
    kernel: a stacked kernel; consumed.
    name: the name of the kernel, a key of SUMMED.
  """
  like, scale = _like(
    jax.ShapeDtypeStruct(kernel.shape, kernel.dtype, sharding=kernel.sharding),
    SUMMED[name],
  )
  shardings = (like.sharding, scale.sharding)
  return _quantizer(SUMMED[name], shardings)(kernel)


@functools.lru_cache(maxsize=64)
def _quantizer(summed, shardings):
  def run(kernel):
    # Whole channels are looked at, wherever their parts live.
    if shardings[0] is not None and isinstance(
      shardings[0], jax.sharding.NamedSharding
    ):
      return jax.sharding.auto_axes(
        functools.partial(_quantized, summed=summed),
        out_sharding=tuple(s.spec for s in shardings),
      )(kernel)
    return _quantized(kernel, summed=summed)

  return jax.jit(run, donate_argnums=0)


def _quantized(kernel, summed):
  kernel = kernel.astype(jnp.float32)
  most = jnp.max(jnp.abs(kernel), axis=summed, keepdims=True)
  scale = most / quantized.LARGEST
  scale = jnp.where(scale == 0, 1.0, scale)
  whole = jnp.round(kernel / scale).astype(jnp.int8)
  return whole, jnp.squeeze(scale, summed)
