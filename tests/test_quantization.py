"""int8 kernels: against the same rounding by hand, sharded, and on a TPU."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_models
import tolerances
from flax import nnx

from qaq_jax.models import quantization, quantized, sharding
from qaq_jax.models.hf import checkpoint
from qaq_jax.models.hf.read_config import read_config
from qaq_jax.planner import topology
from qaq_jax.scoring import programs as programs_lib

CASES = [
  case
  for case, config in tiny_models.CASES.items()
  if 'num_experts_per_tok' not in config
]


def model_config(case):
  return read_config(tiny_models.hf_config(case))


def logp(model, case='qwen2'):
  """Log-probability of each token after the first, float32 [B, T - 1]."""
  graphdef, params = nnx.split(model)
  ids = jnp.asarray(tiny_models.tokens(case)[:, :64], jnp.int32)

  @jax.jit
  def run(params, tokens_BT):
    model = nnx.merge(graphdef, params)
    logits = jax.nn.log_softmax(model.logits(model(tokens_BT))[:, :-1])
    # Not by index: the vocabulary may be split.
    hit = tokens_BT[:, 1:, None] == jnp.arange(logits.shape[-1])
    return jnp.sum(jnp.where(hit, logits, 0.0), axis=-1)

  return np.asarray(run(params, ids))


def saved(case, folders):
  folder = folders / case
  return folder if folder.exists() else tiny_models.write(case, folder)


def rounded_by_hand(folder, path, quantised):
  """Saves the checkpoint with kernels rounded to 255 steps in numpy.

  Checks the quantised model's integers on the way. A weight half-way between
  two steps may go either way, by the last bit of its scale: then the model's
  own integer is saved.
  """
  model = checkpoint.load(folder, mesh=None)
  for stack, own in zip(model.stacks, quantised.stacks, strict=True):
    for name, summed in quantization.SUMMED.items():
      if not hasattr(stack, name):
        continue
      w = np.asarray(getattr(stack, name)[...])
      scale = np.abs(w).max(axis=summed, keepdims=True) / np.float32(127)
      scale = np.where(scale == 0, np.float32(1), scale)
      whole = np.asarray(getattr(own, name)[...], np.float32)
      differ = np.round(w / scale) != whole
      assert differ.sum() <= 2
      np.testing.assert_allclose(
        np.abs(w / scale - whole)[differ], 0.5, atol=1e-4
      )
      np.testing.assert_allclose(
        np.squeeze(scale, summed),
        getattr(own, f'{name}_scale')[...],
        rtol=tolerances.product(2),  # a division, or a product by 1 / 127
      )
      getattr(stack, name)[...] = jnp.asarray(whole * scale)
  checkpoint.save_hf(model, path, dtype=jnp.float32)


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
  return tmp_path_factory.mktemp('models')


@pytest.mark.parametrize('case', CASES)
def test_weights_alone_are_the_rounded_model(case, folders, tmp_path):
  """Equal to transformers on weights rounded by hand, in every family."""
  folder = saved(case, folders)
  model = checkpoint.load(folder, mesh=None, quantized='int8')
  rounded_by_hand(folder, tmp_path / 'rounded', model)
  found = logp(model, case)
  exact = logp(checkpoint.load(folder, mesh=None), case)
  assert np.abs(found - exact).max() > 1e-3  # it does round
  pytest.importorskip('torch')
  theirs = tiny_models.torch_logp(
    tmp_path / 'rounded', tiny_models.tokens(case)[:, :64]
  )
  np.testing.assert_allclose(
    found, theirs, **tolerances.near(model.config, 64, theirs)
  )


def test_activations_are_rounded_by_token():
  """One product against integers in numpy, to the last bit of float32."""
  rng = np.random.default_rng(1)
  x = rng.normal(size=(2, 5, 64)).astype(np.float32)
  w = rng.normal(size=(1, 64, 4, 8)).astype(np.float32)
  kernel, scale = quantization.quantize(jnp.asarray(w), 'q_kernel')
  assert kernel.dtype == jnp.int8 and scale.shape == (1, 4, 8)
  model = checkpoint.random_init(
    dataclasses.replace(model_config('qwen2'), hidden_size=64),
    mesh=None,
  )
  layer = dataclasses.replace(model._layer, dynamic=True)
  y = layer.einsum('btd,dnk->btnk', jnp.asarray(x), kernel[0])
  y = layer.rescaled(y, {'q_kernel_scale': scale[0]}, 'q', None, None)
  s = np.abs(x).max(axis=-1, keepdims=True) / np.float32(127)
  whole = np.round(x / s).astype(np.int64)
  wanted = np.einsum('btd,dnk->btnk', whole, np.asarray(kernel[0], np.int64))
  wanted = wanted.astype(np.float32) * s[..., None] * np.asarray(scale[0])
  # The sums are exact; a scale is divided and multiplied by.
  np.testing.assert_allclose(np.asarray(y), wanted, rtol=tolerances.product(4))


@pytest.mark.parametrize('case', ['qwen2', 'gemma2', 'gpt2'])
def test_dynamic_stays_near_the_exact_model(case, folders):
  folder = saved(case, folders)
  exact = logp(checkpoint.load(folder, mesh=None), case)
  found = logp(
    checkpoint.load(folder, mesh=None, quantized='int8_dynamic'), case
  )
  error = np.sqrt(np.mean((found - exact) ** 2)) / exact.std()
  assert 1e-4 < error < 0.1


@pytest.mark.parametrize('scheme', ['int8', 'int8_dynamic'])
@pytest.mark.parametrize('sizes', [(1, 4, 2), (2, 2, 2)])
def test_sharded_equals_unsharded(scheme, sizes, folders):
  """Scales are over whole channels, wherever the parts of a kernel live."""
  folder = saved('qwen2', folders)
  mesh = sharding.make_mesh(*sizes)
  alone = checkpoint.load(folder, mesh=None, quantized=scheme)
  spread = checkpoint.load(folder, mesh=mesh, quantized=scheme)
  for a, b in zip(
    jax.tree.leaves(nnx.state(alone)),
    jax.tree.leaves(nnx.state(spread)),
    strict=True,
  ):
    np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
  with jax.set_mesh(mesh):
    found = logp(spread)
  # Sums of activations in another order may round to the next integer.
  atol = 5e-5 if scheme == 'int8' else 0.05
  np.testing.assert_allclose(found, logp(alone), atol=atol)


def test_fsdp_gathers_int8_and_a_tpu_multiplies_it():
  """On v5e: int8 arguments, int8 gathers; dynamic: products of int8."""
  pytest.importorskip('libtpu')
  config = dataclasses.replace(
    model_config('qwen2'), hidden_size=256, intermediate_size=512
  )
  where = topology.describe('v5e:2x2')
  mesh = sharding.make_mesh(data=1, fsdp=4, devices=where.devices)
  sizes, texts = {}, {}
  for scheme in quantized.SCHEMES:
    model = checkpoint.abstract(
      config, mesh=mesh, dtype=jnp.bfloat16, quantized=scheme
    )
    programs = programs_lib.Programs(model, mesh)
    program = programs.program((8, 128))
    sizes[scheme] = program.memory_analysis().argument_size_in_bytes
    texts[scheme] = program.as_text()
  assert sizes['int8'] < sizes['']
  for scheme in ('int8', 'int8_dynamic'):
    gathers = [
      line for line in texts[scheme].splitlines() if ' all-gather' in line
    ]
    assert any('= s8[' in line or '(s8[' in line for line in gathers)
  assert any(
    '= s32[' in line and (' convolution(' in line or ' dot(' in line)
    for line in texts['int8_dynamic'].splitlines()
  )


@pytest.mark.parametrize(
  'scheme, words',
  [
    ('int4', "quantization is 'int4'; it is one of"),
  ],
)
def test_an_unknown_scheme_is_told(scheme, words):
  with pytest.raises(ValueError, match=words):
    checkpoint.abstract(model_config('qwen2'), mesh=None, quantized=scheme)


@pytest.mark.parametrize('case', ['mixtral', 'qwen3_moe'])
def test_experts_are_refused(case):
  with pytest.raises(ValueError, match=f'a {case} model has .*kernel, which'):
    checkpoint.abstract(model_config(case), mesh=None, quantized='int8')


def test_a_quantised_model_is_not_saved(folders, tmp_path):
  folder = saved('qwen2', folders)
  model = checkpoint.load(folder, mesh=None, quantized='int8')
  with pytest.raises(ValueError, match='is quantised .int8.'):
    checkpoint.save_hf(model, tmp_path)
