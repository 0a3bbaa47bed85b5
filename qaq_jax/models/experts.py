"""Mixture of experts: a router sends every token to a few of a layer's MLPs.

As in Mixtral (arXiv 2401.04088, section 2.1) and Qwen3-MoE (arXiv 2505.09388,
section 2): softmax over all experts, the largest X chosen. There is no
capacity: no token is dropped, so a token's result doesn't depend on what else
is in its batch. Tokens are sorted by expert and multiplied group by group, see
`grouped.py`.

Letters of dimensions: see `decoder.py`; besides,

  E  experts          X  experts that a token goes to
  M  tokens, B T      R  rows, one per token and expert of it: M X

On a mesh every device has all tokens of its rows and, over the axis of
`experts`, some of the experts: it computes what its own contribute, and one sum
over the axis joins them, as large as that of an ordinary MLP.
"""

import functools

import jax
import jax.numpy as jnp

from qaq_jax.models import grouped, precision, sharding
from qaq_jax.models.config import ModelConfig


def route(
  x_MD: jax.Array, router_DE: jax.Array, config: ModelConfig
) -> tuple[jax.Array, jax.Array]:
  """Returns (weights float32 [M, X], experts int32 [M, X]) of every token.

  Logits and softmax are float32 whatever the dtype of the tokens: a choice
  that flips changes a token's result by much more than a rounding.
  """
  logits_ME = jnp.einsum(
    'md,de->me',
    x_MD,
    router_DE,
    preferred_element_type=jnp.float32,
    precision=precision.of(x_MD.dtype),
  )
  weight_MX, expert_MX = jax.lax.top_k(
    jax.nn.softmax(logits_ME, axis=-1), config.experts_per_token
  )
  if config.normalized_routing:
    weight_MX = weight_MX / jnp.sum(weight_MX, axis=-1, keepdims=True)
  return weight_MX, expert_MX


def mlp(
  x_BTD: jax.Array,
  router_DE: jax.Array,
  gate_EDF: jax.Array,
  up_EDF: jax.Array,
  down_EFD: jax.Array,
  *,
  config: ModelConfig,
  rules: sharding.ShardingRules,
  activation,
  platform: str,
) -> jax.Array:
  """Returns the weighted sum of each token's experts, [B, T, D].

  Args:
    x_BTD: the normed residual stream.
    router_DE: the router's kernel of all experts, also where they are split.
    gate_EDF: kernels, gathered over fsdp, in the dtype of the computation.
    up_EDF: likewise.
    down_EFD: likewise.
    config: sizes and switches.
    rules: how experts and batch are split when a mesh is set.
    activation: the function of the gate.
    platform: the platform of the devices that the program is for, see
      `grouped.py`.
  """
  local = functools.partial(
    _local,
    config=config,
    activation=activation,
    platform=platform,
    axes=(),
    split=False,
    batch=(),
  )
  if sharding.current_mesh() is None:
    return local(x_BTD, router_DE, gate_EDF, up_EDF, down_EFD)
  x_spec = rules.spec('batch', None, None)
  inwards = rules.gathered('experts', 'embed', 'expert_mlp')
  axis = rules.experts or rules.expert_mlp
  return jax.shard_map(
    functools.partial(
      local,
      axes=(axis,) if axis else (),
      batch=rules.batch_axes,
      split=rules.experts is not None,
    ),
    in_specs=(
      x_spec,
      jax.P(),
      inwards,
      inwards,
      rules.gathered('experts', 'expert_mlp', 'embed'),
    ),
    out_specs=x_spec,
  )(x_BTD, router_DE, gate_EDF, up_EDF, down_EFD)


def _local(
  x_BTD,
  router_DE,
  gate_EDF,
  up_EDF,
  down_EFD,
  *,
  config,
  activation,
  platform,
  axes,
  split,
  batch,
):
  """What this device's experts, or parts of experts, contribute.

  `axes` split the experts, or each of them where not `split`; `batch` the rows.
  """
  chosen, here = config.experts_per_token, gate_EDF.shape[0]
  x_MD = x_BTD.reshape(-1, x_BTD.shape[-1])
  weight_MX, expert_MX = route(x_MD, router_DE, config)
  own_R = _varying(expert_MX.reshape(-1), axes)
  if split:
    own_R = own_R - jax.lax.axis_index(axes) * here
  mine_R = (own_R >= 0) & (own_R < here)
  # Rows of other devices' experts come last, beyond all groups.
  own_R = jnp.where(mine_R, own_R, here)
  order_R = jnp.argsort(own_R)
  sizes_E = jnp.bincount(own_R, length=here + 1)[:here].astype(jnp.int32)
  # Made explicit: left to the indexing below, jax 0.10 does not sum the
  # gradient of the tokens over the axes.
  x_MD = _varying(x_MD, axes)
  gate_EDF, up_EDF, down_EFD = (
    _varying(kernel, batch) for kernel in (gate_EDF, up_EDF, down_EFD)
  )
  product = functools.partial(
    grouped.product,
    sizes_E=sizes_E,
    precision=precision.of(x_BTD.dtype),
    block=grouped.block_rows(len(own_R), config.num_experts, platform),
  )
  # Zero beyond the groups, forwards and backwards, whatever a kernel leaves.
  x_RD = jnp.where(mine_R[order_R, None], x_MD[order_R // chosen], 0)
  h_RF = activation(product(x_RD, gate_EDF)) * product(x_RD, up_EDF)
  y_RD = product(h_RF, down_EFD)
  # Back into the order of tokens: sums of X rows, always in the same order.
  back_R = (
    jnp.zeros_like(order_R)
    .at[order_R]
    .set(jnp.arange(len(order_R), dtype=order_R.dtype), unique_indices=True)
  )
  y_RD = jnp.where(mine_R[:, None], y_RD[back_R], 0)
  y_MD = jnp.einsum(
    'mx,mxd->md',
    weight_MX,
    y_RD.reshape(-1, chosen, y_RD.shape[-1]),
    preferred_element_type=jnp.float32,
    precision=jax.lax.Precision.HIGHEST,
  ).astype(x_BTD.dtype)
  if axes:
    y_MD = jax.lax.psum(y_MD, axes)
  return y_MD.reshape(x_BTD.shape)


def _varying(value, axes):
  """Says that a value, equal over mesh axes, is one on each device of them."""
  return jax.lax.pcast(value, axes, to='varying') if axes else value
