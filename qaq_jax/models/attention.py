"""Causal attention behind one function that chooses the implementation.

The XLA implementation works in blocks of queries that see only the keys they
can: the upper triangle and everything beyond the window are never computed, and
no [B, N, T, T] array exists at long T. Softmax is in float32.

Letters of dimensions: see `decoder.py`.
"""

import functools

import jax
import jax.numpy as jnp

from qaq_jax.models import sharding

IMPLEMENTATIONS = ('xla',)
_MAX_SCORES = 2**26  # scores of one block of queries that may exist at a time
_MASKED = -1e30  # finite, so that a row without keys gives no NaN


def choose(name: str) -> str:
  """Returns the implementation that `name` stands for.

  Raises:
    ValueError: not 'auto' nor an implementation; a named one is never replaced.
  """
  if name == 'auto':
    return 'xla'
  if name not in IMPLEMENTATIONS:
    raise ValueError(
        f"attention {name!r} is not known; choose 'auto' or one of"
        f' {", ".join(IMPLEMENTATIONS)}'
    )
  return name


def attention(
    q_BTNK: jax.Array,
    k_BTGK: jax.Array,
    v_BTGK: jax.Array,
    segment_ids_BT: jax.Array | None = None,
    *,
    scale: float,
    window: int | None = None,
    soft_cap: float | None = None,
    rules: sharding.ShardingRules | None = None,
    implementation: str = 'auto',
) -> jax.Array:
  """Returns softmax(scale * q k^T + mask) v, [B, T, N, K].

  Args:
    q_BTNK: queries.
    k_BTGK: keys; N is a multiple of G.
    v_BTGK: values.
    segment_ids_BT: positions attend within equal ids only; None: one segment.
    scale: multiplies the scores.
    window: keys seen, the position itself included; None: all before it.
    soft_cap: scores become cap * tanh(scores / cap).
    rules: how heads and batch are split when a mesh is set.
    implementation: 'auto' or one of IMPLEMENTATIONS.
  """
  choose(implementation)
  local = functools.partial(
      _xla, scale=scale, window=window, soft_cap=soft_cap
  )
  mesh = sharding.current_mesh()
  if mesh is None:
    return local(q_BTNK, k_BTGK, v_BTGK, segment_ids_BT)
  q_spec = rules.spec('batch', None, 'heads', None)
  kv_spec = rules.spec('batch', None, 'kv_heads', None)
  split = rules.heads is not None and rules.kv_heads is None

  def island(q, k, v, segments):
    if split:
      k, v = _own_kv_heads(q, k, v, rules.heads, mesh.shape[rules.heads])
    return local(q, k, v, segments)

  # Every device has all it needs: attention of its rows and heads is local.
  return jax.shard_map(
      island,
      in_specs=(
          q_spec,
          kv_spec,
          kv_spec,
          None if segment_ids_BT is None else rules.spec('batch', None),
      ),
      out_specs=q_spec,
  )(q_BTNK, k_BTGK, v_BTGK, segment_ids_BT)


def cached_attention(
    q_B1NK: jax.Array,
    k_BGSK: jax.Array,
    v_BGSK: jax.Array,
    start_B: jax.Array,
    slot: jax.Array,
    *,
    scale: float,
    window: int | None = None,
    soft_cap: float | None = None,
    rules: sharding.ShardingRules | None = None,
) -> jax.Array:
  """Returns attention of one new token per row to a cache, [B, 1, N, K].

  Args:
    q_B1NK: the token's queries.
    k_BGSK: keys by slot, the token's own already among them.
    v_BGSK: values likewise.
    start_B: first slot that a row may see; its padding comes before.
    slot: the token's own slot, the last that it sees.
    scale: multiplies the scores.
    window: slots seen, the own included; None: all.
    soft_cap: scores become cap * tanh(scores / cap).
    rules: how heads and batch are split when a mesh is set.
  """
  local = functools.partial(
      _one_query, scale=scale, window=window, soft_cap=soft_cap
  )
  mesh = sharding.current_mesh()
  if mesh is None:
    return local(q_B1NK, k_BGSK, v_BGSK, start_B, slot)
  q_spec = rules.spec('batch', None, 'heads', None)
  kv_spec = rules.spec('batch', 'kv_heads', None, None)
  split = rules.heads is not None and rules.kv_heads is None

  def island(q, k, v, start, slot):
    if split:
      k, v = _own_kv_heads(q, k, v, rules.heads, mesh.shape[rules.heads], 1)
    return local(q, k, v, start, slot)

  return jax.shard_map(
      island,
      in_specs=(q_spec, kv_spec, kv_spec, rules.spec('batch'), jax.P()),
      out_specs=q_spec,
  )(q_B1NK, k_BGSK, v_BGSK, start_B, slot)


def _one_query(q, k, v, start, slot, *, scale, window, soft_cap):
  b, _, n, d = q.shape
  g, length = k.shape[1:3]
  highest = jax.lax.Precision.HIGHEST
  precision = highest if q.dtype == jnp.float32 else None
  q = q.reshape(b, g, n // g, d)
  if q.dtype == jnp.float32:
    q, scale = q * scale, 1.0
  scores = jnp.einsum(
      'bgrk,bgsk->bgrs', q, k, precision=precision,
      preferred_element_type=jnp.float32,
  )
  if scale != 1.0:
    scores = scores * scale
  if soft_cap is not None:
    scores = soft_cap * jnp.tanh(scores / soft_cap)
  slots = jnp.arange(length)
  mask = (slots >= start[:, None]) & (slots <= slot)
  if window is not None:
    mask &= slots > slot - window
  scores = jnp.where(mask[:, None, None], scores, _MASKED)
  weights = jnp.exp(scores - jnp.max(scores, axis=-1, keepdims=True))
  total = jnp.sum(weights, axis=-1, keepdims=True)
  y = jnp.einsum(
      'bgrs,bgsk->bgrk', weights.astype(v.dtype), v, precision=precision,
      preferred_element_type=jnp.float32,
  )
  return (y / total).astype(v.dtype).reshape(b, 1, n, d)


def _own_kv_heads(q, k, v, axis: str, shards: int, heads_axis: int = 2):
  """Picks, of all key/value heads, those of this device's query heads."""
  here = q.shape[2]
  groups = k.shape[heads_axis]
  per_group = here * shards // groups
  if shards == 1:
    return k, v
  first = jax.lax.axis_index(axis) * here
  if per_group % here == 0:  # all of this device's heads share one
    one = (first // per_group)[None]
  else:
    one = (first + jnp.arange(here)) // per_group
  return tuple(jnp.take(x, one, axis=heads_axis) for x in (k, v))


def _xla(q, k, v, segments, *, scale, window, soft_cap):
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
      return jax.lax.map(lambda qkv: run(*qkv, segments), (q, k, v))

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
  out = []
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
  scores = jnp.where(mask, scores, _MASKED)
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
