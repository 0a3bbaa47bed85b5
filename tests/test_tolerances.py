"""The tolerances of whole models lie far below what a fault would do."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_models
import tolerances
from flax import nnx

from qaq_jax.models.hf import checkpoint

LENGTH = 40


@pytest.fixture(scope='module')
def exact(tmp_path_factory):
  """A model, its log-probabilities of [2, LENGTH] tokens, their tolerance."""
  folder = tmp_path_factory.mktemp('model') / 'm'
  model = checkpoint.load(tiny_models.write('qwen2', folder), mesh=None)
  tokens = jnp.asarray(tiny_models.tokens('qwen2')[2:4, :LENGTH])
  logp = logp_of(model, tokens)
  limit = tolerances.decoder(model.config, LENGTH) * tolerances.largest(logp)
  return model, tokens, logp, limit


@functools.partial(jax.jit, static_argnums=0)
def program(graphdef, params, tokens):
  model = nnx.merge(graphdef, params)
  logp = jax.nn.log_softmax(model.logits(model(tokens)))[:, :-1]
  return jnp.take_along_axis(logp, tokens[:, 1:, None], 2)[..., 0]


def logp_of(model, tokens):
  return np.asarray(program(*nnx.split(model), tokens))


def test_bfloat16_in_one_kernel_is_seen(exact):
  model, tokens, logp, limit = exact
  for name in ('q_kernel', 'o_kernel', 'down_kernel'):
    broken = nnx.clone(model)
    kernel = getattr(broken.stacks[0], name)
    kernel[...] = kernel[...].astype(jnp.bfloat16).astype(jnp.float32)
    error = np.abs(logp_of(broken, tokens) - logp)
    assert error.max() > 10 * limit, name
    assert np.median(error) > limit, name


def test_a_lost_or_wrong_token_is_seen(exact):
  model, tokens, logp, limit = exact
  other = tokens.at[:, 20].set((tokens[:, 20] + 1) % 211)
  error = np.abs(logp_of(model, other) - logp)
  assert not error[:, :19].any()
  # Of the twenty tokens after it, every one.
  assert error[:, 20:].min() > limit and np.median(error[:, 20:]) > 100 * limit


def test_a_sum_that_cancels_is_held_by_its_magnitudes():
  """Two orders of one sum differ by more than a relative bound allows."""
  rng = np.random.default_rng(0)
  x = rng.normal(size=4096).astype(np.float32)
  x = np.concatenate([x, -x[::-1] * np.float32(1 + 1e-6)])
  forwards, backwards = (
    np.add.accumulate(v, dtype=np.float32)[-1] for v in (x, x[::-1])
  )
  exact = x.astype(np.float64).sum()
  bound = tolerances.product(len(x)) * np.abs(x, dtype=np.float64).sum()
  assert abs(forwards - exact) < bound and abs(backwards - exact) < bound
  assert abs(forwards - exact) > 1e-5 * abs(exact)
