"""The head over scored positions: log-probabilities without `[B, T, V]`.

Letters: B rows of the batch, T tokens of a row, S = 2 spans of a row, D hidden
size, V vocabulary (padded), C positions of one chunk, P positions of a shard.

The positions that predict a scored token are moved together, and the head runs
over them in chunks: logits of C positions and one block of the vocabulary at a
time, float32 accumulation, an online logsumexp. The number of chunks is found
on the device, so positions that nobody scores cost nothing. Temporary memory is
C times the vocabulary block, whatever V, B and T are.
"""

import dataclasses

import jax
import jax.numpy as jnp

from qaq_jax.models import decoder as decoder_lib
from qaq_jax.models import precision, sharding


@dataclasses.dataclass(frozen=True)
class HeadChunks:
  """Sizes of the head's chunks; they change speed and memory, not results.

  Attributes:
    rows: positions per chunk.
    vocab: ids per block, on one device.
    one_pass: logits are read once for their maximum and sum, with two
      exponentials each, instead of twice with one.
  """

  rows: int
  vocab: int
  one_pass: bool = False

  @classmethod
  def for_platform(cls, platform: str) -> 'HeadChunks':
    """Sizes measured to be good on 'cpu', 'gpu' or 'tpu'.

    On a CPU logits and weights of one step should stay in its caches, and
    the last chunk should not be mostly empty; an accelerator wants few, large
    products.
    """
    if platform == 'cpu':
      return cls(rows=128, vocab=1024)
    if platform == 'gpu':
      return cls(rows=1024, vocab=1 << 18, one_pass=True)
    return cls(rows=1024, vocab=1 << 17)


def scored_logp(
  model: decoder_lib.Decoder,
  hidden_BTD: jax.Array,
  tokens_BT: jax.Array,
  spans_BS2: jax.Array,
  chunks: HeadChunks,
) -> jax.Array:
  """Log-probabilities of the scored tokens, float32 [B, T], 0 elsewhere.

  Entry t is `log p(token t | tokens before t)`: it is read off the hidden
  state at t - 1.
  """
  config, rules = model.config, model.rules
  table = model.embedding if config.tie_embeddings else model.head
  table_VD = table[...].astype(model.dtype)
  island = _Head(
    chunks=chunks,
    vocab_size=config.vocab_size,
    soft_cap=config.final_soft_cap,
    precision=precision.of(model.dtype),
    vocab_axis=None if sharding.current_mesh() is None else rules.vocab,
    batch_axes=() if sharding.current_mesh() is None else rules.batch_axes,
  )
  args = (hidden_BTD.astype(model.dtype), tokens_BT, spans_BS2, table_VD)
  if sharding.current_mesh() is None:
    return island(*args)
  # By hand rather than by the compiler: each shard gathers its own scored
  # positions and runs its own number of chunks. The vocabulary may be split.
  specs = (
    rules.spec('batch', None, None),
    rules.spec('batch', None),
    rules.spec('batch', None, None),
    rules.gathered('vocab', 'embed'),
  )
  placed = tuple(
    sharding.reshard(x, spec) for x, spec in zip(args, specs, strict=True)
  )
  return jax.shard_map(
    island, in_specs=specs, out_specs=specs[1], check_vma=False
  )(*placed)


@dataclasses.dataclass(frozen=True)
class _Head:
  """The head on one shard: local arrays in, log-probabilities out."""

  chunks: HeadChunks
  vocab_size: int
  soft_cap: float | None
  precision: jax.lax.Precision | None
  vocab_axis: str | None
  batch_axes: tuple[str, ...]

  def __call__(self, hidden_BTD, tokens_BT, spans_BS2, table_VD):
    rows, length = tokens_BT.shape
    total = rows * length
    position_T = jnp.arange(length)
    scored_BT = jnp.zeros((rows, length), bool)
    for s in range(spans_BS2.shape[1]):
      start, stop = spans_BS2[:, s, 0, None], spans_BS2[:, s, 1, None]
      scored_BT |= (position_T >= start) & (position_T < stop)
    scored = scored_BT.reshape(total)
    count = jnp.sum(scored.astype(jnp.int32))
    # Scored targets first, in order, then the others: what a stable sort would
    # give, without one, which TPUs are slow at. The source of target t is
    # t - 1, which is in the same row because spans start at 1 or later.
    size = min(self.chunks.rows, total)
    space = total + size  # or the last slice would be moved back
    position_P = jnp.arange(total)
    before_P = jnp.cumsum(scored.astype(jnp.int32))  # scored ones up to here
    place_P = jnp.where(scored, before_P - 1, count + position_P - before_P)
    target_P = (
      jnp.zeros(total, jnp.int32)
      .at[place_P]
      .set(position_P, unique_indices=True)
    )
    target_P = jnp.pad(target_P, (0, space - total))
    hidden_PD = hidden_BTD.reshape(total, -1)
    tokens_P = tokens_BT.reshape(total)

    # Every shard of the batch runs as many chunks as the fullest one: then
    # all devices of a collective are in the same iteration.
    most = count
    for axis in self.batch_axes:
      most = jax.lax.pmax(most, axis)

    def step(i, logp_P):
      target_C = jax.lax.dynamic_slice_in_dim(target_P, i * size, size)
      logp_C = self._chunk(
        hidden_PD[jnp.maximum(target_C - 1, 0)], tokens_P[target_C], table_VD
      )
      return jax.lax.dynamic_update_slice_in_dim(logp_P, logp_C, i * size, 0)

    logp_P = jax.lax.fori_loop(
      0, -(-most // size), step, jnp.zeros(space, jnp.float32)
    )
    logp_P = jnp.where(jnp.arange(total) < count, logp_P[:total], 0.0)
    return (
      jnp.zeros(total, jnp.float32)
      .at[target_P[:total]]
      .set(logp_P, unique_indices=True)
      .reshape(rows, length)
    )

  def _chunk(self, hidden_CD, target_C, table_VD):
    """Log-probability of each target, float32 [C]."""
    local = table_VD.shape[0]
    first = 0
    if self.vocab_axis is not None:
      first = jax.lax.axis_index(self.vocab_axis) * local
    size = min(self.chunks.vocab, local)

    def add(at, ids, carry):
      top_C, sum_C, hit_C = carry
      table = jax.lax.dynamic_slice_in_dim(table_VD, at, ids)
      logits_CV = self._logits(hidden_CD, table, first + at)
      if self.chunks.one_pass:
        both = jax.lax.reduce(
          (logits_CV, jnp.ones_like(logits_CV)),
          (jnp.float32(-jnp.inf), jnp.float32(0.0)),
          _add_exps,
          (1,),
        )
      else:
        most_C = jnp.max(logits_CV, axis=1)
        both = (
          most_C,
          jnp.sum(jnp.exp(logits_CV - _finite(most_C)[:, None]), axis=1),
        )
      top_C, sum_C = _add_exps((top_C, sum_C), both)
      index_C = target_C - first - at
      here_C = (index_C >= 0) & (index_C < ids)
      logit_C = jnp.take_along_axis(
        logits_CV, jnp.where(here_C, index_C, 0)[:, None], axis=1
      )[:, 0]
      return top_C, sum_C, jnp.where(here_C, logit_C, hit_C)

    nothing_C = jnp.full(hidden_CD.shape[0], -jnp.inf, jnp.float32)
    carry = (nothing_C, jnp.zeros_like(nothing_C), nothing_C)
    whole = local // size
    if whole == 1:
      carry = add(0, size, carry)
    else:
      carry = jax.lax.fori_loop(
        0, whole, lambda i, c: add(i * size, size, c), carry
      )
    if local % size:
      carry = add(whole * size, local % size, carry)
    top_C, sum_C, hit_C = carry
    if self.vocab_axis is not None:
      most_C = jax.lax.pmax(top_C, self.vocab_axis)
      scale_C = jnp.where(top_C == -jnp.inf, 0.0, jnp.exp(top_C - most_C))
      sum_C = jax.lax.psum(sum_C * scale_C, self.vocab_axis)
      hit_C = jax.lax.pmax(hit_C, self.vocab_axis)
      top_C = most_C
    return hit_C - top_C - jnp.log(sum_C)

  def _logits(self, hidden_CD, table_VD, first):
    """Float32 logits [C, V] of one block of ids that begins at `first`."""
    logits_CV = jnp.einsum(
      'cd,vd->cv',
      hidden_CD,
      table_VD,
      precision=self.precision,
      preferred_element_type=jnp.float32,
    )
    if self.soft_cap is not None:
      logits_CV = self.soft_cap * jnp.tanh(logits_CV / self.soft_cap)
    ids_V = first + jnp.arange(table_VD.shape[0])
    return jnp.where(ids_V < self.vocab_size, logits_CV, -jnp.inf)


def _finite(top):
  # While nothing but padding was seen the maximum is -inf: exp(-inf - 0).
  return jnp.where(top == -jnp.inf, 0.0, top)


def _add_exps(a, b):
  """Adds sums of exp(x - top), each a pair (top, sum)."""
  top = jnp.maximum(a[0], b[0])
  base = _finite(top)
  return top, a[1] * jnp.exp(a[0] - base) + b[1] * jnp.exp(b[0] - base)
