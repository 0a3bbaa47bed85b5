"""Keys and values of the tokens so far, so that each is computed once.

Rows are padded on the left: they end at the same slot, so a step writes one
slice at one place, which XLA does without copying the cache. A slot is a place
in the cache; a row's position is its slot minus its padding, so distances
between slots are distances between positions and windows need nothing special.

Letters of dimensions: see `decoder.py`; S counts slots.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from qaq_jax.models import sharding
from qaq_jax.models.config import ModelConfig


def pytree(*fields: str):
  """Returns a decorator that registers a dataclass of arrays with JAX."""
  return functools.partial(
    jax.tree_util.register_dataclass, data_fields=fields, meta_fields=()
  )


@pytree('keys', 'values', 'start_B', 'slot')
@dataclasses.dataclass(frozen=True)
class StackCache:
  """The cache of one stack of layers, as the layers see it.

  Attributes:
    keys: [L, B, G, S, K], rotated, in the compute dtype.
    values: likewise.
    start_B: see `Cache`.
    slot: int32 scalar, where the first of the new tokens goes.
  """

  keys: jax.Array
  values: jax.Array
  start_B: jax.Array
  slot: jax.Array

  def write(self, index, k_BTGK, v_BTGK) -> 'StackCache':
    """Returns the cache with new tokens of layer `index` at `slot`."""
    zero = jnp.zeros((), jnp.int32)
    at = (jnp.asarray(index, jnp.int32), zero, zero, self.slot, zero)

    def put(stack, x_BTGK):
      x_BGTK = x_BTGK.transpose(0, 2, 1, 3)
      return jax.lax.dynamic_update_slice(stack, x_BGTK[None], at)

    return dataclasses.replace(
      self, keys=put(self.keys, k_BTGK), values=put(self.values, v_BTGK)
    )

  def read(self, index) -> tuple[jax.Array, jax.Array]:
    """Returns keys and values of layer `index`, each [B, G, S, K]."""
    return tuple(
      jax.lax.dynamic_index_in_dim(x, index, 0, keepdims=False)
      for x in (self.keys, self.values)
    )


@pytree('keys', 'values', 'start_B', 'length')
@dataclasses.dataclass(frozen=True)
class Cache:
  """Keys and values of every layer.

  Attributes:
    keys: the keys per stack of layers [L, B, G, S, K].
    values: likewise.
    start_B: int32, the first slot with a token of the row; padding before.
    length: int32 scalar, slots in use.
  """

  keys: list[jax.Array]
  values: list[jax.Array]
  start_B: jax.Array
  length: jax.Array

  @property
  def slots(self) -> int:
    """S, the tokens that fit, padding included."""
    return self.keys[0].shape[3]

  def positions_B1(self) -> jax.Array:
    """Returns the position of the next token of each row, int32 [B, 1]."""
    return (self.length - self.start_B)[:, None]

  def padded(self, segment_ids_BT) -> 'Cache':
    """Returns the cache for rows with padding: segment id 0, before tokens."""
    if segment_ids_BT is None:
      return self
    start_B = jnp.sum(segment_ids_BT == 0, axis=1, dtype=jnp.int32)
    return dataclasses.replace(self, start_B=start_B)

  def views(self) -> list[StackCache]:
    """Returns what each stack of layers needs."""
    return [
      StackCache(k, v, self.start_B, self.length)
      for k, v in zip(self.keys, self.values, strict=True)
    ]

  def after(self, views: list[StackCache], tokens: int) -> 'Cache':
    """Returns the cache with `tokens` more slots, which `views` hold."""
    return Cache(
      [v.keys for v in views],
      [v.values for v in views],
      self.start_B,
      self.length + tokens,
    )

  def grown(self, slots: int) -> 'Cache':
    """Returns a copy with room for `slots` tokens."""

    def pad(x):
      return jnp.pad(x, ((0, 0),) * 3 + ((0, slots - x.shape[3]), (0, 0)))

    return dataclasses.replace(
      self,
      keys=jax.tree.map(pad, self.keys),
      values=jax.tree.map(pad, self.values),
    )


def empty(
  config: ModelConfig,
  rows: int,
  slots: int,
  *,
  dtype,
  rules: sharding.ShardingRules,
) -> Cache:
  """Returns a cache without tokens; call it under the decoder's mesh.

  Args:
    config: the config of the decoder.
    rows: B.
    slots: S.
    dtype: the dtype of the computation.
    rules: the sharding rules of the decoder: rows and key/value heads are split
      as they say.
  """
  meshed = sharding.current_mesh() is not None

  def zeros(shape, dtype, *axes):
    out = rules.spec(*axes) if meshed else None
    return jnp.zeros(shape, dtype, out_sharding=out)

  def stacks():
    return [
      zeros(
        (len(layers), rows, config.num_kv_heads, slots, config.head_dim),
        dtype,
        None,
        'batch',
        'kv_heads',
        None,
        None,
      )
      for layers in config.stacks
    ]

  return Cache(
    stacks(),
    stacks(),
    zeros((rows,), jnp.int32, 'batch'),
    jnp.zeros((), jnp.int32),
  )
