"""The decoder by itself: causality, packing, masks, meshes, compilation."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_models
import tolerances
from flax import nnx

from qaq_jax.models import sharding
from qaq_jax.models.attention import choose as attention
from qaq_jax.models.attention import xla
from qaq_jax.models.hf import checkpoint
from qaq_jax.models.hf.read_config import read_config


@functools.cache
def build(case: str, seed: int = 0, **changes):
  config = read_config(tiny_models.hf_config(case))
  config = dataclasses.replace(config, **changes)
  return checkpoint.random_init(config, mesh=None, seed=seed)


@pytest.mark.parametrize('case', ['gemma3', 'gpt2', 'qwen2'])
def test_causality_by_gradients(case):
  """Position 40 depends on the tokens up to 40, all of them, and no other."""
  model = build(case)
  graphdef, params = nnx.split(model)
  tokens_BT = jnp.arange(100, dtype=jnp.int32)[None]  # all different

  @jax.jit
  @jax.grad
  def of_table(params):
    hidden_D = nnx.merge(graphdef, params)(tokens_BT)[0, 40]
    # Not the plain sum, which a layer norm makes a constant.
    return hidden_D @ jnp.sin(jnp.arange(hidden_D.shape[0]))

  gradient_VD = np.asarray(of_table(params)['embedding'].get_value())
  reached = np.abs(gradient_VD).sum(axis=1) > 0
  np.testing.assert_array_equal(np.flatnonzero(reached), np.arange(41))


def test_window_by_gradients():
  """One layer with a window of 29 sees 29 tokens, itself included."""
  config = read_config(
    tiny_models.hf_config('mistral') | {'num_hidden_layers': 1}
  )
  graphdef, params = nnx.split(checkpoint.random_init(config, mesh=None))
  tokens_BT = jnp.arange(150, dtype=jnp.int32)[None]

  @jax.jit
  @jax.grad
  def of_table(params):
    return nnx.merge(graphdef, params)(tokens_BT)[0, 140].sum()

  gradient_VD = np.asarray(of_table(params)['embedding'].get_value())
  reached = np.flatnonzero(np.abs(gradient_VD).sum(axis=1))
  np.testing.assert_array_equal(reached, np.arange(112, 141))


@pytest.mark.parametrize('case', ['gemma3', 'gpt2'])
def test_packed_rows_equal_separate_ones(case):
  model = build(case)
  tokens = jnp.asarray(tiny_models.tokens(case)[:2, :90])
  first, second = tokens[:1, :50], tokens[1:, :40]
  packed = jnp.concatenate([first, second], axis=1)
  segments = jnp.asarray([[3] * 50 + [1] * 40], jnp.int32)
  decode = jax.jit(lambda *x: nnx.merge(*nnx.split(model))(*x))
  together = decode(packed, None, segments)
  near = tolerances.near(model.config, 90, together)
  np.testing.assert_allclose(together[:, :50], decode(first), **near)
  np.testing.assert_allclose(together[:, 50:], decode(second), **near)
  apart = np.abs(decode(packed)[:, 50:] - together[:, 50:]).max()
  assert apart > 1e-2  # the ids matter


def test_remat_gives_the_same_gradients():
  model = build('qwen3')
  graphdef, params = nnx.split(model)
  tokens_BT = jnp.asarray(tiny_models.tokens('qwen3')[:2, :50])

  def gradients(remat):
    @jax.jit
    @jax.grad
    def loss(params):
      return nnx.merge(graphdef, params)(tokens_BT, remat=remat).std()

    return loss(params)

  tolerances.assert_gradients_close(
    model.config, 50, gradients(True), gradients(False)
  )


def test_padding_of_the_vocabulary_never_counts():
  model = build('llama')
  assert model.config.vocab_size == 211
  assert model.config.padded_vocab_size == 256
  # Padding that is not zero must not matter either.
  table = model.head[...].at[211:].set(100.0)
  model = nnx.merge(*nnx.split(model))
  model.head.set_value(table)
  hidden = jax.random.normal(jax.random.key(0), (3, 5, 48))
  logits = model.logits(hidden)
  assert logits.shape == (3, 5, 256) and logits.dtype == jnp.float32
  np.testing.assert_allclose(
    jax.nn.logsumexp(logits, -1),
    jax.nn.logsumexp(logits[..., :211], -1),
    rtol=0,
    atol=tolerances.chain(211),  # of the sum of positive terms
  )
  assert (logits[..., 211:] < -1e29).all()


def test_compilation_does_not_grow_with_depth():
  def size(layers):
    config = read_config(
      tiny_models.hf_config('qwen3') | {'num_hidden_layers': layers}
    )
    graphdef, params = nnx.split(checkpoint.abstract(config, mesh=None))
    tokens = jax.ShapeDtypeStruct((1, 70), jnp.int32)
    decode = jax.jit(lambda p, t: nnx.merge(graphdef, p)(t))
    return len(decode.lower(params, tokens).as_text().splitlines())

  assert size(64) == size(2)


def test_temporary_memory_leaves_the_parameters_alone():
  """No copy of the stacked parameters, no [heads, length, length] scores."""
  config = read_config(
    tiny_models.hf_config('qwen3')
    | {'num_hidden_layers': 24, 'hidden_size': 256, 'intermediate_size': 1024}
  )
  graphdef, params = nnx.split(checkpoint.abstract(config, mesh=None))
  decode = jax.jit(lambda p, t: nnx.merge(graphdef, p)(t))

  def temporary(length):
    tokens = jax.ShapeDtypeStruct((1, length), jnp.int32)
    compiled = decode.lower(params, tokens).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  total = sum(4 * x.size for x in jax.tree.leaves(params))
  assert temporary(64) < 0.25 * total
  dense = 4 * 8 * 2048 * 2048  # float32 scores of one layer
  assert temporary(2048) < 0.5 * dense


@pytest.mark.parametrize('window,soft_cap', [(None, None), (37, 3.0)])
def test_long_attention_goes_row_by_row(monkeypatch, window, soft_cap):
  """Where scores would be too many, rows and groups go one at a time."""
  key = jax.random.split(jax.random.key(0), 3)
  q = jax.random.normal(key[0], (2, 300, 6, 8))
  k = jax.random.normal(key[1], (2, 300, 2, 8))
  v = jax.random.normal(key[2], (2, 300, 2, 8))
  segments = jnp.asarray([[0] * 300, [0] * 120 + [1] * 180], jnp.int32)

  def run(ids):
    call = functools.partial(
      attention.attention, scale=0.5, window=window, soft_cap=soft_cap
    )
    return jax.jit(call)(q, k, v, ids)

  for ids in (None, segments):
    expected = run(ids)
    with monkeypatch.context() as m:
      m.setattr(xla, '_MAX_SCORES', 10)
      np.testing.assert_allclose(
        run(ids),
        expected,
        rtol=0,
        atol=tolerances.chain(8 + 2 * 300) * tolerances.largest(expected),
      )


def test_random_weights_do_not_depend_on_the_mesh():
  config = build('qwen3').config
  one = checkpoint.random_init(config, mesh=None, seed=3)
  many = checkpoint.random_init(
    config, mesh=sharding.make_mesh(2, 2, 2), seed=3
  )
  jax.tree.map(
    # The normal distribution is made by a polynomial of nine terms.
    functools.partial(np.testing.assert_allclose, rtol=tolerances.product(9)),
    nnx.state(one),
    nnx.state(many),
  )
  other = checkpoint.random_init(config, mesh=None, seed=4)
  assert not np.array_equal(one.embedding[...], other.embedding[...])


def test_meshes_that_do_not_fit():
  qwen2 = read_config(tiny_models.hf_config('qwen2'))
  with pytest.raises(
    ValueError, match=r"14 query heads.*'tensor' of size 4.*\[1, 2, 7, 14\]"
  ):
    checkpoint.abstract(qwen2, mesh=sharding.make_mesh(1, 2, 4))
  with pytest.raises(ValueError, match='needs 6 devices, there are 8'):
    sharding.make_mesh(3, 2, 1)
  with pytest.raises(ValueError, match='at most one may be -1'):
    sharding.make_mesh(-1, -1, 1)
  model = checkpoint.abstract(qwen2, mesh=sharding.make_mesh())
  with pytest.raises(ValueError, match=r'jax.set_mesh\(mesh\)'):
    model(jnp.zeros((8, 4), jnp.int32))
  with pytest.raises(ValueError, match='use a mesh axis twice'):
    sharding.ShardingRules(embed='tensor').spec('vocab', 'embed')
  gpt2 = build('gpt2')
  with pytest.raises(ValueError, match='300 learned positions'):
    gpt2(jnp.zeros((1, 301), jnp.int32))
