"""Causal attention on TPU: JAX's splash attention kernel.

The kernel skips blocks that the mask rules out, keeps scores on the chip, and
reads a key/value head once for all its query heads. It takes no scale, so the
queries are scaled before, in float32, and rounded once. Its products of float32
numbers are made of bfloat16 passes, so float32 is left to XLA.

Letters of dimensions: see `decoder.py`.
"""

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention as splash

LANES = 128  # lengths are padded to a multiple
_BLOCKS = (512, 384, 256, 128)


def refusal(dtype: jnp.dtype) -> str | None:
  """Why it can't be used; None if it can."""
  if dtype != jnp.bfloat16:
    return (
      'its products are exact for bfloat16 alone, not for '
      f'{jnp.dtype(dtype).name}'
    )
  return None


def attend(
  q, k, v, segments, *, scale, window, soft_cap, interpret: bool = False
):
  """Attention of local arrays; see `attention.attention`.

  `interpret` runs the kernel's program on any platform, slowly.
  """
  _, t, n, _ = q.shape
  length = -(-t // LANES) * LANES
  q = (q.astype(jnp.float32) * scale).astype(q.dtype)
  # Padding comes after every query that counts: causality keeps it out.
  q, k, v = (
    jnp.pad(x, ((0, 0), (0, length - t), (0, 0), (0, 0))).swapaxes(1, 2)
    for x in (q, k, v)
  )
  if segments is not None:
    segments = jnp.pad(segments, ((0, 0), (0, length - t)))
    segments = splash.SegmentIds(q=segments, kv=segments)
  kernel = _kernel(n, length, window, soft_cap, interpret)
  y = jax.vmap(kernel)(q, k, v, segments)
  return y.swapaxes(1, 2)[:, :t]


def _kernel(heads, length, window, soft_cap, interpret):
  """The kernel of one shape: [N, T, K] and [G, T, K] to [N, T, K]."""
  shape = (length, length)
  mask: splash.CausalMask | splash.LocalMask = splash.CausalMask(shape)
  if window is not None and window < length:
    mask = splash.LocalMask(shape, window_size=(window - 1, 0), offset=0)
  block = next(b for b in _BLOCKS if length % b == 0)
  sizes = splash.BlockSizes(
    block_q=block,
    block_kv=block,
    block_kv_compute=block,
    block_q_dkv=block,
    block_kv_dkv=block,
    block_kv_dkv_compute=block,
    block_q_dq=block,
    block_kv_dq=block,
  )
  return splash.make_splash_mha_single_device(
    mask=splash.MultiHeadMask([mask] * heads),
    block_sizes=sizes,
    attn_logits_soft_cap=soft_cap,
    interpret=interpret,
  )
