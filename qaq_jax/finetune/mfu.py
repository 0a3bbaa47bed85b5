"""Model FLOPs utilisation: operations that training needs, per peak rate."""

import functools
import math
import time

import jax
import jax.numpy as jnp

from qaq_jax.runtime import chips


def lora_params(state) -> int:
  """Parameters of adapters among those that a state trains."""
  leaves = jax.tree_util.tree_flatten_with_path(state.params)[0]
  return sum(
    x.size for path, x in leaves if '_lora_' in jax.tree_util.keystr(path)
  )


def peak_flops(dtype, devices=None) -> tuple[float, str]:
  """Peak operations per second of the devices together, and its origin.

  Args:
    dtype: the dtype of the computation, used where the peak is measured.
    devices: the devices of the mesh; None: the first alone.

  Returns:
    FLOP/s, and 'data sheet' or 'measured product of matrices'.
  """
  devices = list(devices) if devices is not None else jax.devices()[:1]
  kind = devices[0].device_kind
  chip = chips.of_kind(kind)
  if chip is not None:
    return chip.flops * len(devices), f'{chip.name}, bfloat16 data sheet'
  # Devices of a CPU, fake ones too, share its cores.
  number = 1 if devices[0].platform == 'cpu' else len(devices)
  rate = _measured(jnp.dtype(dtype).name, devices[0])
  return rate * number, f'{dtype} product of matrices measured on {kind}'


@functools.lru_cache
def _measured(dtype, device, size=1024, repeats=5):
  """FLOP/s of the best of a few products [size, size] x [size, size]."""
  x = jax.device_put(jnp.ones((size, size), dtype), device)
  multiply = jax.jit(jnp.matmul)
  multiply(x, x).block_until_ready()
  best = math.inf
  for _ in range(repeats):
    start = time.perf_counter()
    multiply(x, x).block_until_ready()
    best = min(best, time.perf_counter() - start)
  return 2 * size**3 / best
