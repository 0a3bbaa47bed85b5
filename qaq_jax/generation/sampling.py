"""From logits to the next token: temperature, top-k, top-p, one draw per row.

A row's draws are a function of its own seed and the number of the token, so
neither its neighbours nor its place in a batch matter. The filters keep what
transformers' keep: temperature first, then top-k, then top-p (the smallest set
of most likely tokens that reaches the mass; Holtzman et al., arXiv:1904.09751).
No sort: the least token kept is found by bisection over the bits of a float,
which is exact, and a draw inverts the cumulated probabilities with one uniform
number in place of one for each token of the vocabulary.

Letters of dimensions: see `models/decoder.py`.
"""

import functools

import jax
import jax.numpy as jnp

from qaq_jax.models import sharding

_BLOCK = 128  # probabilities are cumulated in two levels: blocks, then inside


@functools.partial(jax.jit, static_argnames='count')
def uniforms(seed, seeds_B, first, *, count: int) -> jax.Array:
  """Returns float32 [B, count] in [0, 1): of tokens first, first + 1, ...

  Args:
    seed: uint32, of the whole.
    seeds_B: uint32, of each row.
    first: int32, number of the first token.
    count: tokens.
  """

  def one(row_seed, number):
    key = jax.random.fold_in(jax.random.key(seed), row_seed)
    return jax.random.uniform(jax.random.fold_in(key, number))

  numbers = first + jnp.arange(count)
  return jax.vmap(jax.vmap(one, (None, 0)), (0, None))(seeds_B, numbers)


def choose(
  logits_BV: jax.Array,
  uniforms_B: jax.Array,
  numbers: jax.Array,
  *,
  mode: tuple[bool, bool, bool],
  rules: sharding.ShardingRules,
) -> jax.Array:
  """Returns the next token of each row, int32 [B].

  Args:
    logits_BV: float32.
    uniforms_B: the row's number in [0, 1) for this token.
    numbers: `Sampling.numbers()`.
    mode: `Sampling.mode`.
    rules: the sharding rules of the decoder.
  """

  def local(logits, uniforms, numbers):
    if not mode[0]:
      return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    return _draw(weights(logits, numbers, mode=mode), uniforms)

  if sharding.current_mesh() is None:
    return local(logits_BV, uniforms_B, numbers)
  # A vocabulary that is split is gathered: rows are then local.
  logits_BV = sharding.reshard(logits_BV, rules.spec('batch', None))
  return jax.shard_map(
    local,
    in_specs=(rules.spec('batch', None), rules.spec('batch'), jax.P()),
    out_specs=rules.spec('batch'),
  )(logits_BV, uniforms_B, numbers)


def weights(logits_BV, numbers, *, mode) -> jax.Array:
  """Returns what each token's probability is proportional to, [B, V].

  Tokens with the logit of the least one kept are all kept.
  """
  _, top_k, top_p = mode
  temperature, k, p = numbers
  logits_BV = logits_BV / temperature
  w_BV = jnp.exp(logits_BV - jnp.max(logits_BV, axis=-1, keepdims=True))
  order_BV = _order(logits_BV)
  if top_k:
    least_B1 = _least_kept(order_BV, jnp.ones_like(w_BV), k)
    w_BV = jnp.where(order_BV >= least_B1, w_BV, 0)
  if top_p:
    mass_B1 = p * jnp.sum(w_BV, axis=-1, keepdims=True)
    least_B1 = _least_kept(order_BV, w_BV, mass_B1)
    w_BV = jnp.where(order_BV >= least_B1, w_BV, 0)
  return w_BV


def _order(x):
  """int32 that compare as the floats do."""
  bits = jax.lax.bitcast_convert_type(x, jnp.int32)
  return bits ^ ((bits >> 31) & 0x7FFFFFFF)


def _least_kept(order_BV, w_BV, limit):
  """Returns the least number [B, 1] above which the weights are below limit.

  So a token is kept as long as those before it don't reach the limit.
  """
  rows = order_BV[:, :1]
  low = jnp.full_like(rows, jnp.iinfo(jnp.int32).min)
  high = jnp.full_like(rows, jnp.iinfo(jnp.int32).max)

  def halve(_, ends):
    low, high = ends
    middle = (low & high) + ((low ^ high) >> 1)  # without overflow
    above = jnp.sum(
      jnp.where(order_BV > middle, w_BV, 0), axis=-1, keepdims=True
    )
    enough = above < limit
    return jnp.where(enough, low, middle + 1), jnp.where(enough, middle, high)

  return jax.lax.fori_loop(0, 32, halve, (low, high))[1]


def _draw(w_BV, uniforms_B):
  """Returns the token at which the cumulated weights pass the uniform."""
  b, v = w_BV.shape
  blocks_BCK = w_BV.reshape(b, v // _BLOCK, _BLOCK)
  sums_BC = blocks_BCK.sum(-1)
  # A uniform may round to 1 in the product.
  target_B = jnp.minimum(uniforms_B, 1 - 2.0**-24) * sums_BC.sum(-1)
  block_B, before_B = _first_above(sums_BC, target_B)
  inside_BK = jnp.take_along_axis(blocks_BCK, block_B[:, None, None], 1)[:, 0]
  place_B, _ = _first_above(inside_BK, target_B - before_B)
  return block_B * _BLOCK + place_B


def _first_above(w_BN, target_B):
  """Returns where the cumulated weights pass the target, and those before.

  Never a place of weight 0: a target that rounding put beyond the end is of the
  last place that has some.
  """
  sums_BN = jnp.cumsum(w_BN, axis=-1)
  some_BN = w_BN > 0
  above_BN = (sums_BN > target_B[:, None]) & some_BN
  last_B = w_BN.shape[1] - 1 - jnp.argmax(some_BN[:, ::-1], axis=-1)
  place_B = jnp.where(above_BN.any(-1), jnp.argmax(above_BN, axis=-1), last_B)
  place_B1 = place_B[:, None]
  at = functools.partial(jnp.take_along_axis, indices=place_B1, axis=1)
  return place_B.astype(jnp.int32), (at(sums_BN) - at(w_BN))[:, 0]
