"""Token and position embedding: rows of tables that may be split.

Letters of dimensions: see `decoder.py`.
"""

import jax
import jax.numpy as jnp

from qaq_jax.models import sharding


def positions(
  tokens_BT: jax.Array, segment_ids_BT: jax.Array | None
) -> jax.Array:
  """Returns int32 [B, T]: 0, 1, 2, ... from the start of each segment."""
  index_BT = jnp.broadcast_to(
    jnp.arange(tokens_BT.shape[1], dtype=jnp.int32), tokens_BT.shape
  )
  if segment_ids_BT is None:
    return index_BT
  changes = segment_ids_BT[:, 1:] != segment_ids_BT[:, :-1]
  changes = jnp.pad(changes, ((0, 0), (1, 0)))
  starts = jnp.where(changes, jnp.arange(tokens_BT.shape[1]), 0)
  return index_BT - jax.lax.cummax(starts.astype(jnp.int32), axis=1)


def lookup(
  table_VD: jax.Array, ids_BT: jax.Array, rules: sharding.ShardingRules
) -> jax.Array:
  """Returns rows [B, T, D] of a table; where V is split, devices add theirs."""
  mesh = sharding.current_mesh()
  if mesh is None:
    return _rows(table_VD, ids_BT)

  def island(table, ids):
    if rules.vocab is None:
      return _rows(table, ids)
    ids = ids - jax.lax.axis_index(rules.vocab) * table.shape[0]
    mine = (ids >= 0) & (ids < table.shape[0])
    rows = _rows(table, jnp.where(mine, ids, 0))
    rows = jnp.where(mine[..., None], rows, 0)
    return jax.lax.psum(rows, rules.vocab)

  return jax.shard_map(
    island,
    in_specs=(rules.spec('vocab', None), rules.spec('batch', None)),
    out_specs=rules.spec('batch', None, None),
  )(table_VD, ids_BT)


def _rows(table_VD, ids):
  # In float32, so that the gradient of a token that occurs a thousand times is
  # summed in it: bfloat16 sums stop growing at 256 equal terms.
  return table_VD.astype(jnp.float32)[ids].astype(table_VD.dtype)
