"""Causal attention by cuDNN's flash attention, through `jax.nn`.

Letters of dimensions: see `decoder.py`.
"""

import jax
import jax.numpy as jnp

# Compute capability 9 (H100, H200, GH200) takes heads of 256, others of 128.
_HOPPER = ('h100', 'h200', 'gh200', 'h800', 'h20')


def refusal(
  dtype: jnp.dtype, head_dim: int, soft_cap: bool, segments: bool, kind: str
) -> str | None:
  """Why it can't be used; None if it can."""
  if dtype not in (jnp.bfloat16, jnp.float16):
    return f'cuDNN takes 16-bit numbers, not {jnp.dtype(dtype).name}'
  if soft_cap:
    return 'cuDNN has no soft cap on scores'
  if segments:
    return 'cuDNN has no packed segments'
  most = 256 if any(name in kind.lower() for name in _HOPPER) else 128
  if head_dim > most or head_dim % 8:
    return (
      f'cuDNN takes head sizes up to {most} that are multiples of 8 on '
      f'{kind or "this GPU"}, not {head_dim}'
    )
  return None


def attend(q, k, v, segments, *, scale, window, soft_cap):
  """Attention of local arrays; see `attention.attention`."""
  del segments, soft_cap  # refused
  return jax.nn.dot_product_attention(
    q,
    k,
    v,
    scale=scale,
    is_causal=True,
    implementation='cudnn',
    local_window_size=None if window is None else (window - 1, 0),
  )
