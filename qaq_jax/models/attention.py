"""Causal attention behind one function that chooses the implementation.

The XLA implementation works in blocks of queries that see only the keys they
can: the upper triangle and everything beyond the window are never computed, and
no [B, N, T, T] array exists at long T. Softmax is in float32.

Letters of dimensions: see `decoder.py`.
"""

import functools
import math

import jax
import jax.numpy as jnp

from qaq_jax.models import sharding

IMPLEMENTATIONS = ('xla',)
_BLOCK = 256  # queries per block
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


def _own_kv_heads(q, k, v, axis: str, shards: int):
  """Picks, of all key/value heads, those of this device's query heads."""
  here = q.shape[2]
  groups = k.shape[2]
  per_group = here * shards // groups
  if shards == 1:
    return k, v
  first = jax.lax.axis_index(axis) * here
  if per_group % here == 0:  # all of this device's heads share one
    one = (first // per_group)[None]
  else:
    one = (first + jnp.arange(here)) // per_group
  return jnp.take(k, one, axis=2), jnp.take(v, one, axis=2)


def _xla(q, k, v, segments, *, scale, window, soft_cap):
  b, t, n, d = q.shape
  g = k.shape[2]
  precision = (
      jax.lax.Precision.HIGHEST if q.dtype == jnp.float32 else None
  )
  q = q.reshape(b, t, g, n // g, d).transpose(0, 2, 3, 1, 4)  # B G R T K
  k = k.transpose(0, 2, 1, 3)  # B G T K
  v = v.transpose(0, 2, 1, 3)
  block = min(t, max(_BLOCK, math.ceil(t / 32)))
  out = []
  for start in range(0, t, block):
    stop = min(start + block, t)
    low = 0 if window is None else max(0, start - window + 1)
    scores = jnp.einsum(
        'bgrtk,bgsk->bgrts',
        q[:, :, :, start:stop],
        k[:, :, low:stop],
        precision=precision,
        preferred_element_type=jnp.float32,
    )
    scores = scores * scale
    if soft_cap is not None:
      scores = soft_cap * jnp.tanh(scores / soft_cap)
    rows = jnp.arange(start, stop)[:, None]
    columns = jnp.arange(low, stop)[None, :]
    mask = columns <= rows
    if window is not None:
      mask &= columns > rows - window
    if segments is not None:
      same = segments[:, start:stop, None] == segments[:, None, low:stop]
      mask = mask & same[:, None, None]
    scores = jnp.where(mask, scores, _MASKED)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    out.append(
        jnp.einsum(
            'bgrts,bgsk->bgrtk', weights, v[:, :, low:stop],
            precision=precision,
        )
    )
  merged = jnp.concatenate(out, axis=3) if len(out) > 1 else out[0]
  return merged.transpose(0, 3, 1, 2, 4).reshape(b, t, n, d)

