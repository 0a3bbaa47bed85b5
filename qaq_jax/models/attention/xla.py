"""Causal attention by XLA, in blocks of queries.

A block sees only the keys it can: the upper triangle and everything beyond the
window are never computed, and no [B, N, T, T] array exists at long T. Softmax
is in float32. Letters of dimensions: see `decoder.py`.
"""

import functools

import jax
import jax.numpy as jnp

_MAX_SCORES = 2**26  # scores of one block of queries that may exist at a time
MASKED = -1e30  # finite, so that a row without keys gives no NaN


def attend(q, k, v, segments, *, scale, window, soft_cap):
  """Attention of local arrays; see `attention.attention`."""
  b, t, n, d = q.shape
  g = k.shape[2]
  if q.dtype == jnp.float32:  # a pass over q costs less than one over scores
    q, scale = q * scale, 1.0
  q = q.reshape(b, t, g, n // g, d).transpose(0, 2, 3, 1, 4)  # B G R T K
  k = k.transpose(0, 2, 1, 3)  # B G T K
  v = v.transpose(0, 2, 1, 3)
  run = functools.partial(
    _blocks, scale=scale, window=window, soft_cap=soft_cap
  )
  if b * n * _block_length(t) * t <= _MAX_SCORES:
    y = run(q, k, v, segments)
  else:  # at long T: one row and group at a time

    def row(x):
      q, k, v, segments = x
      return jax.lax.map(
        lambda qkv: run(qkv[0], qkv[1], qkv[2], segments), (q, k, v)
      )

    y = jax.lax.map(row, (q, k, v, segments))
  return y.transpose(0, 3, 1, 2, 4).reshape(b, t, n, d)


def _block_length(t: int) -> int:
  """Queries per block: few blocks to compile, little wasted beyond causality.

  On CPU blocks that stay in cache are the fastest: at T = 1000 blocks of 128
  take half the time of blocks of 256, and a third of one dense mask.
  """
  return min(max(64, -(-t // 8 // 64) * 64), 512, t)


def _blocks(q, k, v, segments, *, scale, window, soft_cap):
  """Attention of [..., R, T, K] queries to [..., T, K] keys, by blocks."""
  t = q.shape[-2]
  block = _block_length(t)
  out: list[jax.Array] = []
  for start in range(0, t, block):
    own = q[..., start : min(start + block, t), :]
    if out:
      # Adds nothing, but makes one block wait for the other: else the scores
      # of all exist at once. XLA for CPU drops optimization barriers too early.
      own = own + 0 * out[-1][..., -1:, :1]
    one = functools.partial(
      _block, start=start, scale=scale, window=window, soft_cap=soft_cap
    )
    # Kept for the backward pass, the scores would be [B, N, T, T] per layer.
    out.append(jax.checkpoint(one)(own, k, v, segments))
  return jnp.concatenate(out, axis=-2) if len(out) > 1 else out[0]


def _block(q, k, v, segments, *, start, scale, window, soft_cap):
  """Attention of the queries from `start` on to the keys that they see."""
  highest = jax.lax.Precision.HIGHEST
  precision = highest if q.dtype == jnp.float32 else None
  stop = start + q.shape[-2]
  low = 0 if window is None else max(0, start - window + 1)
  scores = jnp.einsum(
    '...rtk,...sk->...rts',
    q,
    k[..., low:stop, :],
    precision=precision,
    preferred_element_type=jnp.float32,
  )
  if scale != 1.0:
    scores = scores * scale
  if soft_cap is not None:
    scores = soft_cap * jnp.tanh(scores / soft_cap)
  rows = jnp.arange(start, stop)[:, None]
  columns = jnp.arange(low, stop)[None, :]
  mask = columns <= rows
  if window is not None:
    mask &= columns > rows - window
  if segments is not None:
    same = segments[..., start:stop, None] == segments[..., None, low:stop]
    # [B, T, S] beside scores [B, G, R, T, S]; without B beside [R, T, S]
    mask = mask & (same[:, None, None] if same.ndim == 3 else same)
  scores = jnp.where(mask, scores, MASKED)
  top = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True))
  weights = jnp.exp(scores - top)
  total = jnp.sum(weights, axis=-1, keepdims=True)
  y = jnp.einsum(
    '...rts,...sk->...rtk',
    weights.astype(v.dtype),
    v[..., low:stop, :],
    precision=precision,
    preferred_element_type=jnp.float32,
  )
  return (y / total).astype(v.dtype)  # smaller than weights / total
