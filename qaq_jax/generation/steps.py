"""The compiled programs of generation: read prompts, write tokens.

They are module-level jitted functions, so generators of equal models share
their compilations.

Letters of dimensions: see `models/decoder.py`; C is the tokens of a chunk.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from qaq_jax.generation import sampling
from qaq_jax.models import cache as cache_lib
from qaq_jax.models import sharding
from qaq_jax.models.cache import pytree

NOTHING = -1  # written by rows that are finished


@pytree('cache', 'token_B', 'done_B', 'written')
@dataclasses.dataclass(frozen=True)
class State:
  """A batch between two chunks.

  Attributes:
    cache: keys and values of all tokens but the last.
    token_B: int32, the last token of each row, not handed out yet.
    done_B: bool, rows that handed out all they have.
    written: int32 scalar, tokens handed out.
  """

  cache: cache_lib.Cache
  token_B: jax.Array
  done_B: jax.Array
  written: jax.Array


@pytree('numbers', 'stop_S', 'limits_B')
@dataclasses.dataclass(frozen=True)
class Plan:
  """What stays the same for a batch.

  Attributes:
    numbers: `Sampling.numbers()`.
    stop_S: int32, tokens that end a row; -1 is none.
    limits_B: int32, tokens that a row writes at most.
  """

  numbers: jax.Array
  stop_S: jax.Array | np.ndarray
  limits_B: jax.Array


@functools.partial(jax.jit, static_argnames=('graphdef', 'slots', 'mode'))
def prefill(
  graphdef, params, tokens_BT, segments_BT, uniforms_B1, plan, *, slots, mode
) -> State:
  """Reads the prompts and chooses the first token of each row.

  Args:
    graphdef: the static part of an unrolled decoder.
    params: its state.
    tokens_BT: int32, padded on the left.
    segments_BT: int32, 0 for padding, 1 for tokens.
    uniforms_B1: see `sampling.choose`.
    plan: the plan of the batch.
    slots: size of the cache.
    mode: `Sampling.mode`.
  """
  model = nnx.merge(graphdef, params)
  cache = cache_lib.empty(
    model.config,
    tokens_BT.shape[0],
    slots,
    dtype=model.dtype,
    rules=model.rules,
  )
  hidden_BTD, cache = model(tokens_BT, None, segments_BT, cache=cache)
  token_B = _next(model, hidden_BTD[:, -1], uniforms_B1[:, 0], plan, mode)
  return State(
    cache, token_B, jnp.zeros_like(token_B, bool), jnp.zeros((), jnp.int32)
  )


@functools.partial(jax.jit, static_argnames='slots')
def grow(state, *, slots) -> State:
  """Returns the state with room for more tokens."""
  return dataclasses.replace(state, cache=state.cache.grown(slots))


@functools.partial(
  jax.jit, static_argnames=('graphdef', 'mode'), donate_argnames='state'
)
def decode(
  graphdef, params, state, stopped_B, uniforms_BC, plan, steps, *, mode
) -> tuple[State, jax.Array]:
  """Hands out up to `steps` tokens of each row.

  Args:
    graphdef: the static part of an unrolled decoder.
    params: its state.
    state: the state of the batch; its memory is used again.
    stopped_B: bool, rows that the host says are finished.
    uniforms_BC: see `sampling.choose`, for the tokens after those handed out.
    plan: the plan of the batch.
    steps: int32, C at most; fewer are made when all rows are finished.
    mode: `Sampling.mode`.

  Returns:
    The state and int32 [B, C], the same on every device: the tokens, NOTHING
    where a row was finished or no step was made.
  """
  model = nnx.merge(graphdef, params)
  state = dataclasses.replace(state, done_B=state.done_B | stopped_B)
  tokens_CB = jnp.full_like(uniforms_BC.T, NOTHING, jnp.int32)

  def unfinished(carry):
    i, state, _ = carry
    return (i < steps) & ~jnp.all(state.done_B)

  def step(carry):
    i, state, tokens_CB = carry
    out_B = jnp.where(state.done_B, NOTHING, state.token_B)
    tokens_CB = jax.lax.dynamic_update_index_in_dim(tokens_CB, out_B, i, 0)
    written = state.written + 1
    ended_B = (state.token_B[:, None] == plan.stop_S).any(-1)
    done_B = state.done_B | ended_B | (written >= plan.limits_B)
    hidden_BTD, cache = model(state.token_B[:, None], cache=state.cache)
    uniforms_B = jax.lax.dynamic_index_in_dim(uniforms_BC, i, 1, False)
    token_B = _next(model, hidden_BTD[:, 0], uniforms_B, plan, mode)
    return i + 1, State(cache, token_B, done_B, written), tokens_CB

  carry = jnp.zeros((), jnp.int32), state, tokens_CB
  _, state, tokens_CB = jax.lax.while_loop(unfinished, step, carry)
  return state, sharding.reshard(tokens_CB.T, jax.P())


def _next(model, hidden_BD, uniforms_B, plan, mode):
  return sampling.choose(
    model.logits(hidden_BD),
    uniforms_B,
    plan.numbers,
    mode=mode,
    rules=model.rules,
  )
