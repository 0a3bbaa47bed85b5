"""Experts: every way to multiply the same, no token dropped, none dependent."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_models
import tolerances
from flax import nnx

from qaq_jax.models import experts, grouped, sharding
from qaq_jax.models.hf import checkpoint
from qaq_jax.models.hf.read_config import read_config
from qaq_jax.planner import topology

RULES = sharding.ShardingRules()
CASES = ['mixtral', 'qwen3_moe', 'qwen3_moe_window']
SIZES = {  # rows per group, of 40 rows
  'even': [10, 10, 10, 10],
  'gaps': [0, 17, 0, 0, 23, 0],
  'one takes all': [0, 0, 40],
  'some beyond': [3, 0, 20, 1],
  'none': [0, 0],
  'more groups than rows': [1, 0] * 40,
}


def config_of(case):
  return read_config(tiny_models.hf_config(case))


def normal(seed, *shape):
  return jax.random.normal(jax.random.key(seed), shape)


# Products.


def assert_product(got, a, b):
  """Equal to a @ b, relative to the sums of magnitudes."""
  a, b = (np.asarray(x, np.float64) for x in (a, b))
  bound = tolerances.product(a.shape[1]) * (np.abs(a) @ np.abs(b))
  assert (np.abs(got - a @ b) <= bound).all()


@pytest.mark.parametrize('sizes', SIZES.values(), ids=SIZES)
@pytest.mark.parametrize('block', [None, 1, 7, 8, 16, 40])
def test_products_and_gradients_of_every_grouping(sizes, block):
  """Against numpy, a group at a time; rows beyond the groups don't count."""
  x, w = normal(0, 40, 6), normal(1, len(sizes), 6, 5)
  dy = np.array(normal(2, 40, 5))
  dy[sum(sizes) :] = 0
  y, pull = jax.vjp(
    lambda x, w: grouped.product(
      x,
      w,
      jnp.asarray(sizes, jnp.int32),
      block=block,
      precision=jax.lax.Precision.HIGHEST,
    ),
    x,
    w,
  )
  dx, dw = pull(jnp.asarray(dy))
  first = 0
  for group, size in enumerate(sizes):
    rows = slice(first, first + size)
    assert_product(y[rows], x[rows], w[group])
    assert_product(dx[rows], dy[rows], w[group].T)
    assert_product(dw[group], x[rows].T, dy[rows])
    first += size


def test_blocks_in_bfloat16_are_those_of_float32_rounded():
  sizes = jnp.asarray(SIZES['gaps'], jnp.int32)
  x, w = normal(0, 40, 64), normal(1, 6, 64, 5)
  x, w = x.astype(jnp.bfloat16), w.astype(jnp.bfloat16)

  def squares(x, w):
    y = grouped.product(x, w, sizes, block=8)
    assert y.dtype == x.dtype
    return jnp.sum(y.astype(jnp.float32) ** 2)

  got = jax.grad(squares, (0, 1))(x, w)
  want = jax.grad(squares, (0, 1))(x.astype(jnp.float32), w.astype(jnp.float32))
  for a, b in zip(got, want, strict=True):
    assert a.dtype == jnp.bfloat16
    error = np.abs(a.astype(jnp.float32) - b).max()
    assert error < 0.02 * np.abs(b).max()


def test_blocks_suit_the_rows():
  rows = functools.partial(grouped.block_rows, groups=128, platform='gpu')
  assert [rows(n) for n in (5, 64, 4096, 2**20)] == [5, 8, 32, 1024]
  assert grouped.block_rows(2**20, 1, 'cpu') == 1024
  assert grouped.block_rows(2**20, 128, 'tpu') is None


def test_memory_is_that_of_the_rows():
  """Not of the rows times the experts, forwards or backwards."""
  rows, groups, size = 1024, 64, 32

  def temporary(block, call):
    lowered = jax.jit(functools.partial(call, block)).lower(
      jax.ShapeDtypeStruct((rows, size), jnp.float32),
      jax.ShapeDtypeStruct((groups, size, size), jnp.float32),
      jax.ShapeDtypeStruct((groups,), jnp.int32),
    )
    return lowered.compile().memory_analysis().temp_size_in_bytes

  def forwards(block, x, w, sizes):
    return grouped.product(x, w, sizes, block=block)

  def backwards(block, x, w, sizes):
    loss = lambda x, w: jnp.sum(forwards(block, x, w, sizes) ** 2)  # noqa: E731
    return jax.grad(loss, (0, 1))(x, w)

  block = grouped.block_rows(rows, groups, 'cpu')
  one = 4 * rows * size
  assert temporary(block, forwards) < 2 * one
  assert temporary(block, backwards) < 6 * one
  assert temporary(None, forwards) > groups / 2 * one


# The layer.


def layer(case, seed=0):
  """Returns (config, x_BTD, the kernels) of one layer."""
  config = config_of(case)
  d, e, f = config.hidden_size, config.num_experts, config.intermediate_size
  kernels = (
    normal(1, d, e),
    normal(2, e, d, f) * d**-0.5,
    normal(3, e, d, f) * d**-0.5,
    normal(4, e, f, d) * f**-0.5,
  )
  return config, normal(seed, 4, 10, d), kernels


@functools.partial(jax.jit, static_argnames=('config', 'platform', 'rules'))
def run(config, x, kernels, platform='cpu', rules=RULES):
  """One layer, on the mesh that is set if any."""
  return experts.mlp(
    x,
    *kernels,
    config=config,
    activation=jax.nn.silu,
    platform=platform,
    rules=rules,
  )


def near(config, want, passes=1):
  """Router, softmax and the two products of an expert; a gradient: 3 passes."""
  terms = 2 * config.hidden_size + config.num_experts + config.intermediate_size
  atol = tolerances.chain(passes * terms) * tolerances.largest(want)
  return {'rtol': 0, 'atol': atol}


def by_token(config, x_BTD, kernels):
  """Every token for itself, in float64."""
  router, gate, up, down = (np.asarray(k, np.float64) for k in kernels)
  x_MD = np.asarray(x_BTD, np.float64).reshape(-1, x_BTD.shape[-1])
  out = np.zeros_like(x_MD)
  for token, x in enumerate(x_MD):
    logits = x @ router
    p = np.exp(logits - logits.max())
    p /= p.sum()
    chosen = np.argsort(-p)[: config.experts_per_token]
    weights = p[chosen]
    if config.normalized_routing:
      weights /= weights.sum()
    for weight, e in zip(weights, chosen, strict=True):
      a = x @ gate[e]
      out[token] += weight * ((a / (1 + np.exp(-a)) * (x @ up[e])) @ down[e])
  return out.reshape(x_BTD.shape)


@pytest.mark.parametrize('case', CASES)
@pytest.mark.parametrize('platform', ['cpu', 'tpu'])
def test_the_layer_is_the_formula(case, platform):
  config, x, kernels = layer(case)
  want = by_token(config, x, kernels)
  np.testing.assert_allclose(
    run(config, x, kernels, platform), want, **near(config, want)
  )


@pytest.mark.parametrize('case', CASES)
def test_a_token_does_not_depend_on_the_others(case):
  config, x, kernels = layer(case)
  together = run(config, x, kernels)
  alone = run(config, x[2:3, 4:5], kernels)
  close = near(config, together[2, 4])
  np.testing.assert_allclose(alone[0, 0], together[2, 4], **close)
  # Nor when all the others crowd the experts that it goes to.
  crowd = jnp.broadcast_to(x[2, 4], x.shape)
  np.testing.assert_allclose(
    run(config, crowd, kernels),
    np.broadcast_to(together[2, 4], x.shape),
    **close,
  )


@pytest.mark.parametrize(
  'case,sizes',
  [
    ('mixtral', (2, 2, 2)),
    ('mixtral', (1, 1, 8)),  # each of 4 experts is split over 8 devices
    ('qwen3_moe', (1, 2, 4)),
    ('qwen3_moe', (2, 1, 1)),
  ],
)
@pytest.mark.parametrize('platform', ['cpu', 'tpu'])
def test_meshes_give_the_gradients_of_one_device(case, sizes, platform):
  config, x, kernels = layer(case)
  devices = jax.devices()[: int(np.prod(sizes))]
  mesh = sharding.make_mesh(*sizes, devices=devices)
  rules = sharding.ShardingRules().resolve(config, mesh)
  specs = (
    rules.spec('batch', None, None),
    jax.P(),
    *[rules.gathered('experts', 'embed', 'expert_mlp')] * 2,
    rules.gathered('experts', 'expert_mlp', 'embed'),
  )

  @jax.jit
  @jax.grad
  def gradient(arguments):
    x, *kernels = arguments
    return jnp.sum(jnp.sin(run(config, x, kernels, platform, rules)))

  want = gradient((x, *kernels))
  with jax.set_mesh(mesh):
    placed = jax.device_put(
      (x, *kernels),
      tuple(jax.sharding.NamedSharding(mesh, spec) for spec in specs),
    )
    got = gradient(placed)
  for a, b in zip(got, want, strict=True):
    np.testing.assert_allclose(a, b, **near(config, b, passes=3))


def test_routing_is_float32_in_bfloat16():
  config, x, kernels = layer('qwen3_moe')
  x_MD = x.reshape(-1, x.shape[-1]).astype(jnp.bfloat16)
  router = kernels[0].astype(jnp.bfloat16)
  weights, chosen = experts.route(x_MD, router, config)
  exact, same = experts.route(
    x_MD.astype(jnp.float32), router.astype(jnp.float32), config
  )
  assert weights.dtype == jnp.float32
  np.testing.assert_array_equal(chosen, same)
  # A logit's error is the relative one of its weight.
  logits = np.asarray(x_MD, np.float32) @ np.asarray(router, np.float32)
  rtol = tolerances.chain(config.hidden_size) * tolerances.largest(logits)
  np.testing.assert_allclose(weights, exact, rtol=rtol)
  assert (weights.sum(axis=-1) < 1).all()  # this case isn't normalised


# The model.


@pytest.mark.parametrize('case', CASES)
def test_padding_and_other_rows_change_nothing(case):
  model = checkpoint.random_init(config_of(case), mesh=None, seed=3)
  tokens = jnp.asarray(tiny_models.tokens(case)[:3, :40])
  graphdef, params = nnx.split(model)
  decode = jax.jit(lambda p, t: nnx.merge(graphdef, p)(t))
  rows = decode(params, tokens)
  padded = jnp.pad(tokens[1:2], ((0, 1), (0, 25)))
  np.testing.assert_allclose(
    decode(params, padded)[0, :40],
    rows[1],
    **tolerances.near(model.config, 66, rows),
  )


def test_remat_gives_the_same_gradients():
  graphdef, params = nnx.split(
    checkpoint.random_init(config_of('qwen3_moe'), mesh=None)
  )
  tokens = jnp.asarray(tiny_models.tokens('qwen3_moe')[:2, :30])

  def gradients(remat):
    loss = lambda p: nnx.merge(graphdef, p)(tokens, remat=remat).std()  # noqa: E731
    return jax.jit(jax.grad(loss))(params)

  tolerances.assert_gradients_close(
    config_of('qwen3_moe'), 30, gradients(True), gradients(False)
  )


@pytest.mark.parametrize(
  'name', ['v4:2x2x1', 'v5e:2x2', 'v5p:2x2x1', 'v6e:2x2']
)
def test_compiles_for_tpus_without_a_copy_per_expert(name):
  """Forward and backward; what a row by every expert takes would be E times."""
  pytest.importorskip('libtpu')
  mesh = sharding.make_mesh(2, 1, 2, devices=topology.describe(name).devices)
  config, _, kernels = layer('qwen3_moe')
  rules = sharding.ShardingRules().resolve(config, mesh)
  inwards = rules.gathered('experts', 'embed', 'expert_mlp')
  specs = (
    rules.spec('batch', None, None),
    jax.P(None, None),
    inwards,
    inwards,
    rules.gathered('experts', 'expert_mlp', 'embed'),
  )
  shapes = (8, 128, config.hidden_size), *(k.shape for k in kernels)
  x, *kernels = (
    jax.ShapeDtypeStruct(
      shape, jnp.bfloat16, sharding=jax.NamedSharding(mesh, spec)
    )
    for shape, spec in zip(shapes, specs, strict=True)
  )

  def loss(x, kernels):
    y = run(config, x, kernels, 'tpu', rules)
    return jnp.sum(y.astype(jnp.float32))

  # Of a device, padded to the lanes of a TPU.
  rows = 4 * 128 * config.experts_per_token * 128 * 2
  with jax.set_mesh(mesh):
    for function, copies in ((loss, 8), (jax.grad(loss, (0, 1)), 16)):
      program = jax.jit(function).lower(x, kernels).compile()
      memory = program.memory_analysis().temp_size_in_bytes
      assert memory < copies * rows
