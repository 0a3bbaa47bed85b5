"""The mixture of experts against a plain loop, and compiled for TPUs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_models

from qaq_jax.models import config as config_lib
from qaq_jax.models import experts, sharding
from qaq_jax.planner import topology

CONFIG = config_lib.from_hf(tiny_models.hf_config('qwen3_moe'))
RULES = sharding.ShardingRules()
NAMES = ('x', 'router', 'gate', 'up', 'down')


def arrays(seed=0, tokens=(8, 10)):
  d, f, e = CONFIG.hidden_size, CONFIG.intermediate_size, CONFIG.num_experts
  rng = np.random.default_rng(seed)
  draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
  return (
      draw(*tokens, d), draw(d, e), draw(e, d, f) * d**-0.5,
      draw(e, d, f) * d**-0.5, draw(e, f, d) * f**-0.5,
  )


def plain(x_BTD, router, gate, up, down):
  """Token by token, expert by expert, in float64."""
  x_MD = x_BTD.reshape(-1, x_BTD.shape[-1]).astype(np.float64)
  out = np.zeros_like(x_MD)
  for token, x in enumerate(x_MD):
    logits = x @ router
    weights = np.exp(logits - logits.max())
    weights /= weights.sum()
    for e in np.argsort(-weights)[: CONFIG.experts_per_token]:
      g = x @ gate[e]
      h = g / (1 + np.exp(-g)) * (x @ up[e])
      out[token] += weights[e] * (h @ down[e])
  return out.reshape(x_BTD.shape)


def run(*args, rules=RULES):
  return experts.mlp(
      *args, config=CONFIG, rules=rules, activation=jax.nn.silu
  )


def test_equals_a_loop_over_tokens_and_experts():
  args = arrays()
  np.testing.assert_allclose(jax.jit(run)(*args), plain(*args), atol=2e-5)


def test_no_token_is_dropped_when_all_want_the_same_expert():
  x, router, *kernels = arrays()
  x[..., 0] = 9.0
  router[0, 3] = 100.0
  out = jax.jit(run)(x, router, *kernels)
  np.testing.assert_allclose(out, plain(x, router, *kernels), atol=2e-4)


def test_a_token_does_not_depend_on_the_others():
  x, *rest = arrays()
  other = x.copy()
  other[1:] = 1e3  # and all of them go to one expert
  np.testing.assert_array_equal(
      jax.jit(run)(x, *rest)[0], jax.jit(run)(other, *rest)[0]
  )


@pytest.mark.parametrize('sizes', [(2, 1, 2), (1, 1, 8), (1, 2, 4)])
def test_gradients_on_a_mesh_are_those_of_one_device(sizes):
  args = arrays()
  weight = np.random.default_rng(1).normal(size=args[0].shape)
  weight = weight.astype(np.float32)

  def loss(rules, weight, *args):
    return jnp.sum(run(*args, rules=rules) * weight)

  grad = lambda rules: jax.jit(
      jax.grad(functools.partial(loss, rules), argnums=range(1, 6))
  )
  want = grad(RULES)(weight, *args)
  mesh = sharding.make_mesh(
      *sizes, devices=jax.devices()[: int(np.prod(sizes))]
  )
  rules = RULES.resolve(CONFIG, mesh)
  specs = placed(rules)
  with jax.set_mesh(mesh):
    put = [
        jax.device_put(x, jax.NamedSharding(mesh, spec))
        for x, spec in zip((weight, *args), (specs[0], *specs), strict=True)
    ]
    got = grad(rules)(*put)
  for name, a, b in zip(NAMES, got, want, strict=True):
    np.testing.assert_allclose(
        a, b, rtol=0, atol=5e-6 * np.abs(b).max(), err_msg=name
    )


def placed(rules):
  inwards = rules.gathered('experts', 'embed', 'expert_mlp')
  return (
      rules.spec('batch', None, None), jax.P(None, None), inwards, inwards,
      rules.gathered('experts', 'expert_mlp', 'embed'),
  )


@pytest.mark.parametrize('name', [
    'v4:2x2x1', 'v5e:2x2', 'v5p:2x2x1', 'v6e:2x2'
])
def test_compiles_for_tpus_without_a_copy_per_expert(name):
  """Forward and backward; what a row by every expert takes would be E times."""
  pytest.importorskip('libtpu')
  mesh = sharding.make_mesh(
      2, 1, 2, devices=topology.describe(name).devices
  )
  rules = RULES.resolve(CONFIG, mesh)
  args = [
      jax.ShapeDtypeStruct(
          x.shape, jnp.bfloat16, sharding=jax.NamedSharding(mesh, spec)
      )
      for x, spec in zip(arrays(tokens=(8, 512)), placed(rules), strict=True)
  ]
  with jax.set_mesh(mesh):
    forward = jax.jit(functools.partial(run, rules=rules)).lower(*args)
    backward = jax.jit(jax.grad(
        lambda *args: jnp.sum(run(*args, rules=rules).astype(jnp.float32)),
        argnums=range(5),
    )).lower(*args)
    rows = 4 * 512 * CONFIG.experts_per_token * 128 * 2  # of a device, padded
    for program, copies in ((forward, 8), (backward, 16)):
      memory = program.compile().memory_analysis()
      assert memory.temp_size_in_bytes < copies * rows
