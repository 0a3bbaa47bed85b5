"""The same model with every layer's parameters as arrays of their own.

A scan over stacked layers reads each layer's weights out of the stack, which
copies them. Beside a product over thousands of tokens that is nothing, but a
step of generation is little else than reading the weights. Training and export
keep the stacks.
"""

import dataclasses
import functools

import jax
from flax import nnx

from qaq_jax.models.decoder import Decoder, Stack


def unrolled(model: Decoder) -> Decoder:
  """Returns the model without stacks, weights in the computation's dtype.

  The new parameters are copies, layer by layer: drop the old model when memory
  is short. A model that is unrolled already is returned as it is.

  Args:
    model: a decoder, with any parameters beside the declared ones.
  """
  if model.config.unrolled:
    return model
  graphdef, state = nnx.split(model)
  out = nnx.merge(graphdef, state)  # shares the parameters
  out.config = dataclasses.replace(model.config, unrolled=True)
  out._layer = dataclasses.replace(model._layer, config=out.config)
  stacks: list = [None] * model.config.num_layers
  for stack, layers in zip(model.stacks, model.config.stacks, strict=True):
    values = nnx.to_pure_dict(nnx.state(stack))
    for i, layer in enumerate(layers):
      stacks[layer] = Stack(
        {
          name: _layer(value, i, dtype=_dtype(value, model.dtype))
          for name, value in values.items()
        }
      )
  out.stacks = nnx.List(stacks)
  for name in ('embedding', 'head', 'position_embedding'):
    if hasattr(out, name):
      value = getattr(out, name)[...]
      setattr(out, name, nnx.Param(value.astype(model.dtype)))
  return out


def _dtype(stacked, dtype):
  # Scales of norms are used in float32 and stay as they are.
  return dtype if stacked.ndim > 2 else stacked.dtype


@functools.partial(jax.jit, static_argnames='dtype')
def _layer(stacked, index, *, dtype):
  one = jax.lax.dynamic_slice_in_dim(stacked, index, 1)
  return one.astype(dtype)
