"""Low-rank adapters: the same model at first, gradients of the dense formula.

Tolerances, float32: of an array's largest entry, as in `test_finetune_step`.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_models
import tolerances
from flax import nnx
from test_finetune_step import (
  OPTIONS,
  assert_trees_close,
  gradient_limit,
  loss_limit,
  micro_batch,
  random_model,
  trainer_of,
  weight_limit,
)

from qaq_jax.finetune import lora
from qaq_jax.finetune import step as step_lib
from qaq_jax.models import sharding
from qaq_jax.models.hf import checkpoint
from qaq_jax.models.hf.read_config import read_config
from qaq_jax.models.options import LoraOptions

TARGETS = {
  'qwen2': ('q', 'k', 'v', 'o', 'gate', 'up', 'down'),
  'gpt2': ('q', 'k', 'v', 'o', 'up', 'down'),
  'qwen3_moe': ('q', 'k', 'v', 'o'),
}


def adapted(case, mesh=None, targets=None, random_b=True, **kwargs):
  """A random model with adapters; B is random too where `random_b`."""
  options = LoraOptions(4, 6.0, targets or TARGETS[case])
  model = lora.add(random_model(case, mesh, **kwargs), options, seed=1)
  if random_b:
    for i, stack in enumerate(model.stacks):
      for target in options.targets:
        param = getattr(stack, f'{target}_lora_b')
        key = jax.random.key(100 * i + ord(target[0]))
        x = 0.3 * jax.random.normal(key, param[...].shape)
        param[...] = jax.device_put(x, param[...].sharding)
  return model


def logits(model, tokens):
  return np.asarray(model.logits(model(jnp.asarray(tokens))))


@functools.partial(jax.jit, static_argnums=0)
def compiled_logits(graphdef, params, tokens):
  model = nnx.merge(graphdef, params)
  return model.logits(model(tokens))


def test_zero_b_is_the_base_model():
  tokens = micro_batch(211, 2)['tokens']
  np.testing.assert_array_equal(
    logits(adapted('qwen2', random_b=False), tokens),
    logits(random_model('qwen2'), tokens),
  )


@pytest.mark.parametrize('case', ['qwen2', 'gpt2', 'qwen3_moe'])
def test_loss_and_gradients_equal_the_dense_formula(case):
  """W + alpha / rank * A B in every kernel, differentiated by A and B."""
  model = adapted(case)
  base = random_model(case)
  batch = micro_batch(tiny_models.CASES[case]['vocab_size'])
  trainer = trainer_of(model)
  graphdef, state = nnx.split(base)
  flat = dict(nnx.to_flat_state(state))
  tokens = batch['tokens']
  same = batch['segment_ids'][:, 1:] == batch['segment_ids'][:, :-1]
  weights = batch['weights'][:, 1:] * same

  def dense(adapters):
    dense = {}
    for path, variable in flat.items():
      value = variable.get_value()
      name = '/'.join(map(str, path)).removesuffix('_kernel')
      if f'{name}_lora_a' in adapters:
        a, b = adapters[f'{name}_lora_a'], adapters[f'{name}_lora_b']
        layers, rank = a.shape[0], a.shape[-1]
        delta = a.reshape(layers, -1, rank) @ b.reshape(layers, rank, -1)
        value = value + 6.0 / 4 * delta.reshape(value.shape)
      dense[path] = variable.replace(value)
    model = nnx.merge(graphdef, nnx.from_flat_state(dense))
    hidden = model(tokens, segment_ids_BT=batch['segment_ids'])
    logp = jax.nn.log_softmax(model.logits(hidden)[:, :-1])
    target = jnp.take_along_axis(logp, tokens[:, 1:, None], 2)[..., 0]
    return -jnp.sum(weights * target)

  want, want_grads = jax.jit(jax.value_and_grad(dense))(trainer.state.params)
  got = trainer.gradient(trainer.state, batch)
  assert len(want_grads) == 2 * len(TARGETS[case]) * len(model.stacks)
  np.testing.assert_allclose(got.loss, want, rtol=loss_limit(case))
  assert_trees_close(got.gradient, want_grads, gradient_limit(case))


@pytest.mark.parametrize('sizes', [None, (2, 2, 2)])
def test_merged_model_gives_the_same_logits(sizes):
  mesh = sharding.make_mesh(*sizes) if sizes else None
  tokens = micro_batch(211)['tokens']
  model = adapted('qwen2', mesh)
  merged = lora.merge(model)
  assert merged.lora is None
  assert not [k for k in nnx.to_pure_dict(nnx.state(merged)) if 'lora' in k]
  context = jax.set_mesh(mesh) if mesh else jax.default_device(None)
  with context:
    want, got = (
      np.asarray(compiled_logits(*nnx.split(m), tokens))
      for m in (model, merged)
    )
  assert np.abs(want - logits(random_model('qwen2'), tokens)).max() > 0.1
  np.testing.assert_array_equal(got[..., 211:], want[..., 211:])  # masked
  want = want[..., :211]
  near = tolerances.near(model.config, tokens.shape[1], want)
  np.testing.assert_allclose(got[..., :211], want, **near)


def test_meshes_give_the_update_of_one_device():
  batch = micro_batch(211)
  results = []
  for mesh in (None, sharding.make_mesh(2, 2, 2)):
    trainer = trainer_of(adapted('qwen2', mesh))
    sums = trainer.gradient(trainer.state, batch)
    gradient = jax.device_get(sums.gradient)
    state, metrics = trainer.apply(trainer.state, sums, 1e-2)
    results.append((gradient, float(metrics['loss']), state.params))
  (want, want_loss, want_params), (got, got_loss, got_params) = results
  np.testing.assert_allclose(got_loss, want_loss, rtol=loss_limit('qwen2'))
  limit = gradient_limit('qwen2')
  assert_trees_close(got, want, limit)
  atol = weight_limit(want, limit, (1e-2,))
  for name, x in want_params.items():
    np.testing.assert_allclose(
      got_params[name], x, rtol=0, atol=atol, err_msg=name
    )


def test_only_adapters_are_trained_and_kept():
  model = adapted('qwen2', dtype=jnp.bfloat16)
  trainer = trainer_of(model)
  state = trainer.state
  for arrays in (state.params, state.opt_state):
    names = {
      jax.tree_util.keystr(path)
      for path, x in jax.tree_util.tree_leaves_with_path(arrays)
      if x.ndim
    }
    assert names and all('_lora_' in name for name in names)
  assert {x.dtype for x in state.params.values()} == {jnp.dtype('float32')}
  before = jax.device_get(state.params)
  state, _ = trainer.update(state, micro_batch(211), 1e-2)
  trained = trainer.model(state)
  assert trained.lora == model.lora
  for path, variable in nnx.to_flat_state(nnx.state(trained)):
    value = np.asarray(variable.get_value())
    name = '/'.join(map(str, path))
    if '_lora_' in name:
      assert np.any(value != before[name]), name
    else:
      want = nnx.to_flat_state(nnx.state(model))
      want = dict(want)[path].get_value()
      np.testing.assert_array_equal(value, want, err_msg=name)


def test_frozen_weights_get_no_gradient():
  """The step's temporary memory is far below the weights."""
  config = read_config(
    tiny_models.hf_config('qwen3')
    | {'vocab_size': 8192, 'hidden_size': 256, 'intermediate_size': 1024}
  )
  model = lora.add(checkpoint.random_init(config, mesh=None), LoraOptions(4))
  trainer = trainer_of(model, OPTIONS, head_rows=16)
  batch = micro_batch(211, 1, 16)
  args = (trainer._program, trainer.state, trainer._frozen, batch, 0.1)
  memory = step_lib._update.lower(*args).compile().memory_analysis()
  frozen = sum(x.nbytes for x in trainer._frozen.values())
  assert memory.temp_size_in_bytes < 0.4 * frozen
  assert memory.output_size_in_bytes < 0.1 * frozen


def test_wrong_adapters_are_named(tmp_path):
  with pytest.raises(ValueError, match=r"\['gate'\]; a gpt2 layer has q, k"):
    lora.add(random_model('gpt2'), LoraOptions(4, targets=('gate',)))
  for target in ('router', 'experts_up'):
    with pytest.raises(ValueError, match='a qwen3_moe layer has q, k, v, o$'):
      lora.add(random_model('qwen3_moe'), LoraOptions(4, targets=(target,)))
  with pytest.raises(ValueError, match='rank 0'):
    lora.add(random_model('gpt2'), LoraOptions())
  model = adapted('gpt2')
  with pytest.raises(ValueError, match='already'):
    lora.add(model, LoraOptions(4, targets=('q',)))
  with pytest.raises(ValueError, match='lora.merge'):
    checkpoint.save_hf(model, tmp_path)
  with pytest.raises(ValueError, match='no adapters'):
    lora.merge(random_model('gpt2'))
