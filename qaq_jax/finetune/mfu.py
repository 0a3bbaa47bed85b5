"""Model FLOPs utilisation: operations that training needs, per peak rate.

Operations are counted, not measured: products only, real tokens only (padding
and recomputation under `remat` are not useful work), causal attention as half
of the square.
"""

import functools
import math
import time

import jax
import jax.numpy as jnp

from qaq_jax.models import params as params_lib
from qaq_jax.models.config import ModelConfig

# Dense bfloat16 TFLOP/s of one chip, by what jax.Device.device_kind holds;
# from the makers' data sheets. The first that fits counts.
_PEAKS = (
    ('v6 lite', 918), ('v6e', 918), ('v5 lite', 197), ('v5e', 197),
    ('v5p', 459), ('v5', 459), ('v4', 275), ('H100', 989), ('H200', 989),
    ('A100', 312),
)


def forward_flops(
    config: ModelConfig, tokens: int, attended: int
) -> tuple[float, float]:
  """Operations of a forward pass: in products with weights, in attention.

  Args:
    config: of the model.
    tokens: real tokens.
    attended: sum over sequences of their tokens squared.

  Returns:
    2 x parameters x tokens, the embedding counting once, as the head; and
    2 products of 2 x heads x head_dim per query and key, half of the square. A
    window lowers the keys of a query to its size.
  """
  specs = params_lib.param_specs(config)
  weights = sum(
      math.prod(spec.shape) for path, spec in specs.items()
      if path[-1].endswith('_kernel')
  ) + config.padded_vocab_size * config.hidden_size
  mean = attended / max(tokens, 1)  # length seen by the average token
  keys = sum(
      _keys_per_query(mean, kind.window) for kind in config.layers
  )
  width = config.num_heads * config.head_dim
  return 2.0 * weights * tokens, 4.0 * width * keys * tokens


def _keys_per_query(length, window):
  """Mean over a sequence's queries; causal, with a window or without."""
  if window is None or window >= length:
    return length / 2
  return window - window * window / (2 * length)


def training_flops(
    config: ModelConfig, tokens: int, attended: int, lora_params: int = 0
) -> float:
  """Operations of forward and backward pass.

  Full: three forward passes' worth, 6 per parameter and token. LoRA: no
  gradient of the frozen weights, 4 per parameter and token (and 6 per adapter
  parameter); attention has no weights and costs three in both cases.

  Args:
    config: of the model.
    tokens: real tokens.
    attended: sum over sequences of their tokens squared.
    lora_params: parameters of the adapters; 0: all weights are trained.
  """
  products, attention = forward_flops(config, tokens, attended)
  if lora_params:
    return 2 * products + 6.0 * lora_params * tokens + 3 * attention
  return 3 * (products + attention)


def lora_params(state) -> int:
  """Parameters of adapters among those that a state trains."""
  leaves = jax.tree_util.tree_flatten_with_path(state.params)[0]
  return sum(
      x.size for path, x in leaves if '_lora_' in jax.tree_util.keystr(path)
  )


def peak_flops(dtype, devices=None) -> tuple[float, str]:
  """Peak operations per second of the devices together, and its origin.

  Args:
    dtype: of the computation, used where the peak is measured.
    devices: of the mesh; None: the first alone.

  Returns:
    FLOP/s, and 'data sheet' or 'measured product of matrices'.
  """
  devices = list(devices) if devices is not None else jax.devices()[:1]
  kind = devices[0].device_kind.lower()
  for name, tflops in _PEAKS:
    if name.lower() in kind:
      return tflops * 1e12 * len(devices), f'{kind}, bfloat16 data sheet'
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
