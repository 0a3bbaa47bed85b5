"""The next token: filters as transformers', draws as their probabilities."""

import jax.numpy as jnp
import numpy as np
import pytest

from qaq_jax.generation import sampling
from qaq_jax.generation.options import Sampling
from qaq_jax.models import sharding

OPTIONS = [
  {'top_p': 1.0},
  {'top_k': 1, 'top_p': 1.0},
  {'top_k': 7, 'top_p': 1.0},
  {'top_p': 0.6},
  {'top_p': 0.999},
  {'top_k': 20, 'top_p': 0.5},
  {'top_p': 1e-6},
]


def logits(rows=4, vocab=256, seed=0):
  x = np.random.default_rng(seed).standard_normal((rows, vocab))
  return (2.5 * x).astype(np.float32)


def probabilities(logits_BV, options: Sampling):
  w_BV = np.asarray(
    sampling.weights(
      jnp.asarray(logits_BV), options.numbers(), mode=options.mode
    )
  )
  return w_BV / w_BV.sum(-1, keepdims=True)


@pytest.mark.parametrize('temperature', [0.3, 1.0, 1.7])
@pytest.mark.parametrize('changes', OPTIONS)
def test_filters_equal_those_of_transformers(temperature, changes):
  torch = pytest.importorskip('torch')
  from transformers.generation import logits_process

  options = Sampling(temperature=temperature, **changes)
  warpers = [logits_process.TemperatureLogitsWarper(temperature)]
  if options.top_k:
    warpers.append(logits_process.TopKLogitsWarper(options.top_k))
  if options.top_p < 1:
    warpers.append(logits_process.TopPLogitsWarper(options.top_p))
  x_BV = logits()
  scores = torch.from_numpy(x_BV.copy())
  for warper in warpers:
    scores = warper(None, scores)
  expected = torch.softmax(scores, -1).numpy()
  ours = probabilities(x_BV, options)
  np.testing.assert_array_equal(ours > 0, expected > 0)
  # Exponents reach 50, and half an ulp there is 2e-6 of the probability.
  np.testing.assert_allclose(ours, expected, rtol=1e-5)


def test_equal_logits_are_kept_together_and_padding_never():
  x_BV = np.full((1, 128), -1e30, np.float32)
  x_BV[0, :6] = [2, 1, 1, 1, -0.0, 0.0]
  kept = (
    probabilities(x_BV, Sampling(temperature=1.0, top_k=2, top_p=1.0))[0] > 0
  )
  assert np.flatnonzero(kept).tolist() == [0, 1, 2, 3]
  kept = probabilities(x_BV, Sampling(temperature=1.0, top_p=1.0))[0] > 0
  assert np.flatnonzero(kept).tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize('changes', OPTIONS)
def test_draws_follow_the_probabilities(changes):
  """Chi-square of 40,000 draws, one for each of as many row seeds.

  Its mean is the degrees of freedom and its variance twice that; five standard
  deviations are allowed. The seed is fixed, so the test always says the same.
  """
  count = 40_000
  options = Sampling(temperature=1.3, seed=3, **changes)
  x_V = logits(1)[0]
  uniforms_B = sampling.uniforms(
    np.uint32(3), np.arange(count, dtype=np.uint32), np.int32(11), count=1
  )[:, 0]
  drawn_B = np.asarray(
    sampling.choose(
      jnp.broadcast_to(x_V, (count, 256)),
      uniforms_B,
      options.numbers(),
      mode=options.mode,
      rules=sharding.ShardingRules(),
    )
  )
  p_V = probabilities(x_V[None], options)[0]
  seen_V = np.bincount(drawn_B, minlength=256)
  assert not seen_V[p_V == 0].any()
  often = p_V * count >= 5
  expected = np.append(p_V[often], p_V[~often].sum()) * count
  seen = np.append(seen_V[often], seen_V[~often].sum())
  used = expected > 0
  terms = (seen - expected)[used] ** 2 / expected[used]
  freedom = used.sum() - 1
  assert terms.sum() <= freedom + 5 * (2 * freedom) ** 0.5


def test_greedy_takes_the_first_of_the_largest():
  x_BV = logits()
  x_BV[1, [5, 9]] = 50
  chosen = sampling.choose(
    jnp.asarray(x_BV),
    jnp.zeros(4),
    Sampling().numbers(),
    mode=Sampling().mode,
    rules=sharding.ShardingRules(),
  )
  np.testing.assert_array_equal(chosen, x_BV.argmax(-1))
  assert chosen[1] == 5


@pytest.mark.parametrize('uniform', [0.0, 0.5, 1 - 2**-24])
def test_draws_at_the_ends_have_some_probability(uniform):
  w_BV = np.zeros((3, 512), np.float32)
  w_BV[0, 300] = 1
  w_BV[1, [130, 400]] = 1e-30, 3e-30
  w_BV[2, 1:511] = np.random.default_rng(0).random(510)
  drawn = np.asarray(
    sampling._draw(jnp.asarray(w_BV), jnp.full(3, uniform, jnp.float32))
  )
  assert (w_BV[np.arange(3), drawn] > 0).all()
  if uniform == 0:
    assert drawn.tolist() == [300, 130, 1]
  if uniform > 0.9:
    assert drawn.tolist() == [300, 400, 510]


def test_uniforms_are_of_row_seed_and_number():
  seeds = np.array([7, 8, 7], np.uint32)
  whole = sampling.uniforms(np.uint32(1), seeds, np.int32(0), count=6)
  later = sampling.uniforms(np.uint32(1), seeds[1:], np.int32(4), count=2)
  np.testing.assert_array_equal(whole[1:, 4:], later)
  np.testing.assert_array_equal(whole[0], whole[2])
  other = sampling.uniforms(np.uint32(2), seeds, np.int32(0), count=6)
  assert len(np.unique(np.concatenate([whole[:2], other[:2]]))) == 24


@pytest.mark.parametrize(
  'changes, name',
  [
    ({'temperature': -1}, 'temperature=-1'),
    ({'top_p': 0}, 'top_p=0'),
    ({'top_p': 1.5}, 'top_p=1.5'),
    ({'top_k': -2}, 'top_k=-2'),
  ],
)
def test_options_that_cannot_be_are_refused(changes, name):
  with pytest.raises(ValueError, match=name):
    Sampling(**changes)
