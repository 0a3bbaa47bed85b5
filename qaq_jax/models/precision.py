"""Precision of matrix products."""

import jax
import jax.numpy as jnp


def of(dtype) -> jax.lax.Precision | None:
  """HIGHEST for float32, which TPU and GPU would multiply in less."""
  return jax.lax.Precision.HIGHEST if dtype == jnp.float32 else None
