"""The loss over the vocabulary, and its gradient, without [B, T, V].

Letters: B rows of the batch, T tokens of a row, D hidden size, V vocabulary
(padded), C positions of one chunk, P positions of a shard.

Positions with a weight are moved together and the head runs over them in
chunks, so prompts and padding cost nothing. The gradient is formed in the same
pass, while a chunk's logits are at hand: three products per position, nothing
is computed twice, and logits exist for C positions at a time.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from qaq_jax.models import decoder as decoder_lib
from qaq_jax.models import sharding

# Float32 logits of one chunk, bytes: what a CPU's memory passes over quickly,
# and few, large products for an accelerator.
_CHUNK_BYTES = {'cpu': 2**26, 'gpu': 2**30, 'tpu': 2**29}


@dataclasses.dataclass(frozen=True)
class Head:
  """How the loss is computed; hashable, made by `head_of`.

  Attributes:
    rules: logical to mesh axes, resolved.
    rows: C.
    vocab_size: ids beyond it only pad the table.
    soft_cap: logits become cap * tanh(logits / cap); None: they don't.
    dtype: the dtype of the products; accumulation is in float32.
    trained: whether the table gets a gradient.
  """

  rules: sharding.ShardingRules
  rows: int
  vocab_size: int
  soft_cap: float | None
  dtype: jnp.dtype
  trained: bool


def head_of(model: decoder_lib.Decoder, *, rows: int, trained: bool) -> Head:
  """Returns the head of a decoder.

  Args:
    model: the decoder.
    rows: positions per chunk; 0: a good number for this platform.
    trained: whether the table gets a gradient.
  """
  config = model.config
  if not rows:
    limit = _CHUNK_BYTES.get(jax.default_backend(), 2**29)
    rows = max(limit // (4 * config.padded_vocab_size), 64)
    # The last chunk should not be mostly empty: few positions may count.
    most = 512 if jax.default_backend() == 'cpu' else 4096
    rows = min(1 << (rows.bit_length() - 1), most)
  return Head(
    rules=model.rules,
    rows=rows,
    vocab_size=config.vocab_size,
    soft_cap=config.final_soft_cap,
    dtype=model.dtype,
    trained=trained,
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def loss_sum(head: Head, table_VD, hidden_BTD, targets_BT, weights_BT):
  """Returns the sum of weight * -log p(target), nats, a float32 scalar.

  Args:
    head: see Head.
    table_VD: the embedding or head as it is stored, in any dtype.
    hidden_BTD: hidden states after the final norm.
    targets_BT: int32, the token that each position predicts.
    weights_BT: float32; positions of weight 0 are left out.
  """
  return _run(head, False, table_VD, hidden_BTD, targets_BT, weights_BT)[0]


def _forward(head, table_VD, hidden_BTD, targets_BT, weights_BT):
  loss, *grads = _run(head, True, table_VD, hidden_BTD, targets_BT, weights_BT)
  return loss, grads


def _backward(head, grads, scale):
  hidden_BTD, *table_VD = [(g * scale).astype(g.dtype) for g in grads]
  return table_VD[0] if head.trained else None, hidden_BTD, None, None


loss_sum.defvjp(_forward, _backward)


def _run(head, gradient, table_VD, hidden_BTD, targets_BT, weights_BT):
  """Returns [loss], and [hidden's, table's gradient] where asked for."""
  rules, mesh = head.rules, sharding.current_mesh()
  hidden_BTD = hidden_BTD.astype(head.dtype)
  args = (table_VD, hidden_BTD, targets_BT, weights_BT)
  island = functools.partial(_island, head, gradient, mesh is not None)
  if mesh is None:
    return island(*args)
  # By hand rather than by the compiler: each shard gathers its own positions
  # and runs its own number of chunks. The vocabulary may be split.
  specs = (
    rules.spec('vocab', 'embed'),
    rules.spec('batch', None, None),
    rules.spec('batch', None),
    rules.spec('batch', None),
  )
  placed = tuple(
    sharding.reshard(x, spec) for x, spec in zip(args, specs, strict=True)
  )
  out = [jax.P()]
  if gradient:
    out += [specs[1], specs[0]][: 1 + head.trained]
  return jax.shard_map(island, in_specs=specs, out_specs=out, check_vma=False)(
    *placed
  )


def _island(
  head, gradient, meshed, table_VD, hidden_BTD, targets_BT, weights_BT
):
  """The loss on one shard, and its gradients, summed over the mesh."""
  rules = head.rules
  batch_axes = rules.batch_axes if meshed else ()
  vocab_axis = rules.vocab if meshed else None
  embed_axis = rules.embed if meshed else None
  chunk = functools.partial(_chunk, head, vocab_axis)
  stored = table_VD.dtype
  table_VD = table_VD.astype(head.dtype)
  if embed_axis is not None:
    table_VD = jax.lax.all_gather(table_VD, embed_axis, axis=1, tiled=True)
  rows, length, size_D = hidden_BTD.shape
  total = rows * length
  weights_P = weights_BT.reshape(total)
  targets_P = targets_BT.reshape(total)
  hidden_PD = hidden_BTD.reshape(total, size_D)
  # Positions that count come first, in order: the sort is stable.
  counts_P = weights_P != 0
  count = jnp.sum(counts_P.astype(jnp.int32))
  order_P = jnp.argsort(~counts_P, stable=True)
  size = min(head.rows, total)
  # Past the end, a position that doesn't exist: reads get zeros, writes drop.
  order_P = jnp.pad(order_P, (0, -total % size), constant_values=total)
  # All devices of a collective must be in the same iteration.
  for axis in batch_axes:
    count = jax.lax.pmax(count, axis)

  def step(i, carry):
    at_C = jax.lax.dynamic_slice_in_dim(order_P, i * size, size)
    read = lambda x: x.at[at_C].get(mode='fill', fill_value=0)
    hidden_CD, weights_C = read(hidden_PD), read(weights_P)
    loss, grad_CV = chunk(table_VD, hidden_CD, read(targets_P), weights_C)
    out = [carry[0] + loss]
    if gradient:
      part_CD = _product('cv,vd->cd', grad_CV, table_VD)
      if vocab_axis is not None:
        part_CD = jax.lax.psum(part_CD, vocab_axis)
      part_CD = part_CD.astype(head.dtype)
      out.append(carry[1].at[at_C].set(part_CD, mode='drop'))
    if gradient and head.trained:
      out.append(carry[2] + _product('cv,cd->vd', grad_CV, hidden_CD))
    return out

  carry = [jnp.zeros((), jnp.float32)]
  if gradient:
    carry.append(jnp.zeros_like(hidden_PD))
  if gradient and head.trained:
    carry.append(jnp.zeros(table_VD.shape, jnp.float32))
  carry = jax.lax.fori_loop(0, -(-count // size), step, carry)
  for axis in batch_axes:
    carry[0] = jax.lax.psum(carry[0], axis)
  if gradient:
    carry[1] = carry[1].reshape(hidden_BTD.shape)
  if gradient and head.trained:
    carry[2] = _sum_table(carry[2], batch_axes, embed_axis).astype(stored)
  return carry


def _chunk(head, vocab_axis, table_VD, hidden_CD, targets_C, weights_C):
  """Returns the loss of C positions and the gradient of their logits."""
  local = table_VD.shape[0]
  first = 0
  if vocab_axis is not None:
    first = jax.lax.axis_index(vocab_axis) * local
  logits_CV = _product('cd,vd->cv', hidden_CD, table_VD)
  slope_CV: jax.Array | float = 1.0
  if head.soft_cap is not None:
    tanh_CV = jnp.tanh(logits_CV / head.soft_cap)
    logits_CV, slope_CV = head.soft_cap * tanh_CV, 1.0 - tanh_CV * tanh_CV
  ids_V = first + jnp.arange(local)
  logits_CV = jnp.where(
    ids_V < head.vocab_size, logits_CV, decoder_lib.PAD_LOGIT
  )
  hit_CV = ids_V == targets_C[:, None]
  top_C = jnp.max(logits_CV, axis=1)
  if vocab_axis is not None:
    top_C = jax.lax.pmax(top_C, vocab_axis)
  logits_CV = logits_CV - top_C[:, None]
  exp_CV = jnp.exp(logits_CV)
  sum_C = jnp.sum(exp_CV, axis=1)
  target_C = jnp.sum(jnp.where(hit_CV, logits_CV, 0.0), axis=1)
  if vocab_axis is not None:
    sum_C = jax.lax.psum(sum_C, vocab_axis)
    target_C = jax.lax.psum(target_C, vocab_axis)
  loss = jnp.sum(weights_C * (jnp.log(sum_C) - target_C))
  grad_CV = exp_CV * (weights_C / sum_C)[:, None]
  grad_CV = (grad_CV - jnp.where(hit_CV, weights_C[:, None], 0.0)) * slope_CV
  return loss, grad_CV.astype(head.dtype)


def _product(expression, x, y):
  """A matrix product that accumulates, and ends, in float32."""
  highest = x.dtype == jnp.float32
  return jnp.einsum(
    expression,
    x,
    y,
    precision=jax.lax.Precision.HIGHEST if highest else None,
    preferred_element_type=jnp.float32,
  )


def _sum_table(grad_VD, batch_axes, embed_axis):
  """Sums over the batch's shards; each keeps its part of the hidden size."""
  for axis in batch_axes:
    if axis == embed_axis:
      grad_VD = jax.lax.psum_scatter(
        grad_VD, axis, scatter_dimension=1, tiled=True
      )
    else:
      grad_VD = jax.lax.psum(grad_VD, axis)
  return grad_VD
