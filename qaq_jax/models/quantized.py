"""Activations in int8, for layers whose kernels are; see `quantization.py`."""

import jax
import jax.numpy as jnp

SCHEMES = ('', 'int8', 'int8_dynamic')  # see quantization.py
LARGEST = 127.0


def by_token(x: jax.Array, axes: tuple[int, ...]):
  """Activations in int8 and their float32 scales [B, T].

  Args:
    x: [B, T, ...].
    axes: all of its axes from the third on.
  """
  x = x.astype(jnp.float32)
  scale = jnp.max(jnp.abs(x), axis=axes, keepdims=True) / LARGEST
  scale = jnp.where(scale == 0, 1.0, scale)
  return jnp.round(x / scale).astype(jnp.int8), jnp.squeeze(scale, axes)
