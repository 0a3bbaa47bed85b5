"""One training step: loss, gradients, optimiser update. Pure and jitted."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from qaq_jax.models.decoder import PAD_LOGIT


@dataclasses.dataclass(frozen=True)
class OptimizerOptions:
  """Optimiser and learning rate.

  The rate rises over `warmup_steps`, stays, and falls in a straight line to
  zero over the last `decay_steps` (warm-up, stable, decay): until the decay
  begins, nothing depends on where the run will end, so the end can be moved
  by resuming with another `steps`.

  Attributes:
    name: 'muon' (matrices by Muon, the rest by Adam) or 'adamw'.
    learning_rate: peak.
    steps: updates in all.
    warmup_steps: updates until the peak.
    decay_steps: updates of the final decay.
    weight_decay: of the matrices.
    clip: global norm of the gradient is cut to this.
  """

  name: str = 'muon'
  learning_rate: float = 4e-3
  steps: int = 1000
  warmup_steps: int = 50
  decay_steps: int = 300
  weight_decay: float = 0.01
  clip: float = 1.0


def learning_rate(options: OptimizerOptions, step):
  """The rate of update number `step` (from 0)."""
  rise = jnp.minimum(1.0, (step + 1) / options.warmup_steps)
  fall = jnp.clip((options.steps - step) / options.decay_steps, 0.0, 1.0)
  return options.learning_rate * rise * fall


def make_optimizer(options: OptimizerOptions) -> optax.GradientTransformation:
  """The optax transformation that `options` describe."""
  rate = partial(learning_rate, options)
  if options.name == 'muon':
    rule = optax.contrib.muon(
        rate,
        weight_decay=options.weight_decay,
        adam_b2=0.98,
        consistent_rms=0.2,
        muon_weight_dimension_numbers=_matrices,
    )
  elif options.name == 'adamw':
    rule = optax.adamw(
        rate,
        b2=0.98,
        weight_decay=options.weight_decay,
        mask=partial(jax.tree.map, lambda x: x.ndim > 2),
    )
  else:
    raise ValueError(
        f"optimizer.name is {options.name!r}; known: 'muon', 'adamw'"
    )
  return optax.chain(optax.clip_by_global_norm(options.clip), rule)


def _matrices(params):
  """Which axes of the stacked kernels are rows and columns (Muon).

  Kernels are [layers, in..., out...]; only the output projection of attention
  has two input axes. Embeddings, norms and biases go to Adam.
  """

  def numbers(path, value):
    name = jax.tree_util.keystr(path)
    if 'kernel' not in name:
      return None
    axes = tuple(range(1, value.ndim))
    inputs = 2 if 'o_kernel' in name else 1
    return optax.contrib.MuonDimensionNumbers(axes[:inputs], axes[inputs:])

  return jax.tree_util.tree_map_with_path(numbers, params)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def head_loss(chunk, vocab_size, table_VD, hidden_ND, targets_N, weights_N):
  """Weighted sum of -log p(target) over N tokens, tied or plain head.

  Logits exist for `chunk` tokens at a time, never for all. The gradient is
  formed in the same pass, while a chunk's logits are at hand, so nothing is
  computed twice.
  """
  return _head_loss_fwd(
      chunk, vocab_size, table_VD, hidden_ND, targets_N, weights_N
  )[0]


def _head_loss_fwd(
    chunk, vocab_size, table_VD, hidden_ND, targets_N, weights_N
):
  def one(carry, inputs):
    total, table_grad_VD = carry
    hidden, targets, weights = inputs
    logits = jnp.einsum(
        'nd,vd->nv', hidden, table_VD, preferred_element_type=jnp.float32
    )
    ids = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 1)
    if vocab_size < logits.shape[1]:  # ids that only pad the table
      logits = jnp.where(ids < vocab_size, logits, PAD_LOGIT)
    top = jnp.max(logits, -1, keepdims=True)
    exp = jnp.exp(logits - top)
    mass = jnp.sum(exp, -1, keepdims=True)
    hit = ids == targets[:, None]
    target = jnp.sum(jnp.where(hit, logits - top, 0.0), -1)
    total += jnp.sum(weights * (jnp.log(mass[:, 0]) - target))
    grad = exp * (weights[:, None] / mass) - jnp.where(
        hit, weights[:, None], 0.0
    )
    grad = grad.astype(hidden.dtype)
    table_grad_VD += jnp.einsum(
        'nv,nd->vd', grad, hidden, preferred_element_type=jnp.float32
    )
    return (total, table_grad_VD), grad @ table_VD

  parts = jax.tree.map(
      lambda x: x.reshape(-1, chunk, *x.shape[1:]),
      (hidden_ND, targets_N, weights_N),
  )
  start = jnp.zeros(()), jnp.zeros(table_VD.shape, jnp.float32)
  (total, table_grad_VD), hidden_grad = jax.lax.scan(one, start, parts)
  table_grad_VD = table_grad_VD.astype(table_VD.dtype)
  return total, (table_grad_VD, hidden_grad.reshape(hidden_ND.shape))


def _head_loss_bwd(chunk, vocab_size, grads, scale):
  del chunk, vocab_size
  table_grad_VD, hidden_grad_ND = grads
  return (
      (table_grad_VD * scale).astype(table_grad_VD.dtype),
      (hidden_grad_ND * scale).astype(hidden_grad_ND.dtype),
      None,
      None,
  )


head_loss.defvjp(_head_loss_fwd, _head_loss_bwd)


def weighted_loss(model, batch, chunk: int = 256):
  """Weighted mean of -log p over a batch's targets, nats per token."""
  tokens_BT, weights_BT = batch['tokens'], batch['weights']
  hidden_BTD = model(tokens_BT)
  # The last position predicts nothing: its weight is 0.
  targets_BT = jnp.roll(tokens_BT, -1, axis=1)
  weights_BT = jnp.roll(weights_BT, -1, axis=1).at[:, -1].set(0.0)
  flat = hidden_BTD.reshape(-1, hidden_BTD.shape[-1])
  table = model.embedding if model.config.tie_embeddings else model.head
  extra = -flat.shape[0] % chunk
  total = head_loss(
      chunk,
      model.config.vocab_size,
      table[...].astype(flat.dtype),
      jnp.pad(flat, ((0, extra), (0, 0))),
      jnp.pad(targets_BT.reshape(-1), (0, extra)),
      jnp.pad(weights_BT.reshape(-1), (0, extra)),
  )
  return total / jnp.sum(weights_BT)


@partial(jax.jit, static_argnums=(0, 1), donate_argnums=(2, 3))
def train_step(graphdef, optimizer, params, opt_state, batch):
  """One update.

  Args:
    graphdef: of the Decoder.
    optimizer: from `make_optimizer`.
    params: pure dict of float32 arrays; donated.
    opt_state: of the optimizer; donated.
    batch: tokens and weights [B, T], see `batches`.

  Returns:
    params, opt_state, and metrics: `loss` (weighted mean, nats per token) and
    `grad_norm`.
  """

  def loss_fn(params):
    return weighted_loss(nnx.merge(graphdef, params), batch)

  loss, grads = jax.value_and_grad(loss_fn)(params)
  updates, opt_state = optimizer.update(grads, opt_state, params)
  params = optax.apply_updates(params, updates)
  metrics = {'loss': loss, 'grad_norm': optax.global_norm(grads)}
  return params, opt_state, metrics
