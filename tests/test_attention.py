"""Kernels against XLA, the choice among them, and compiling for TPUs."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_models
import tolerances

from qaq_jax.finetune import optimizer, step
from qaq_jax.models import sharding
from qaq_jax.models.attention import choose as attention
from qaq_jax.models.attention import tpu, xla
from qaq_jax.models.hf import checkpoint
from qaq_jax.models.hf.read_config import read_config
from qaq_jax.planner import collectives, topology
from qaq_jax.scoring import programs as programs_lib

CPU = attention.Case('cpu', jnp.dtype('bfloat16'), 128)
TPU = dataclasses.replace(CPU, platform='tpu', device_kind='TPU v5 lite')
H100 = dataclasses.replace(CPU, platform='gpu', device_kind='NVIDIA H100')
A100 = dataclasses.replace(CPU, platform='gpu', device_kind='NVIDIA A100')
FLOAT32 = jnp.dtype('float32')


@pytest.mark.parametrize(
  'case, chosen',
  [
    (CPU, 'xla'),
    (TPU, 'splash'),
    (dataclasses.replace(TPU, segments=True, soft_cap=True), 'splash'),
    (dataclasses.replace(TPU, dtype=FLOAT32), 'xla'),
    (H100, 'cudnn'),
    (dataclasses.replace(H100, head_dim=256), 'cudnn'),
    (dataclasses.replace(A100, head_dim=256), 'xla'),
    (dataclasses.replace(H100, soft_cap=True), 'xla'),
    (dataclasses.replace(H100, segments=True), 'xla'),
    (dataclasses.replace(H100, dtype=FLOAT32), 'xla'),
    (dataclasses.replace(H100, head_dim=100), 'xla'),
  ],
)
def test_auto_takes_the_fastest_that_can(case, chosen):
  assert attention.choose('auto', case) == chosen
  assert attention.choose(chosen, case) == chosen
  assert attention.choose('xla', case) == 'xla'


@pytest.mark.parametrize(
  'name, case, words',
  [
    ('splash', CPU, 'it is for tpu, this is cpu'),
    ('cudnn', TPU, 'it is for gpu, this is tpu'),
    ('splash', dataclasses.replace(TPU, dtype=FLOAT32), 'bfloat16 alone'),
    ('cudnn', dataclasses.replace(H100, soft_cap=True), 'no soft cap'),
    ('cudnn', dataclasses.replace(H100, segments=True), 'no packed segments'),
    ('cudnn', dataclasses.replace(A100, head_dim=256), 'up to 128'),
    ('flash9', CPU, "choose 'auto' or one of xla, splash, cudnn"),
  ],
)
def test_a_named_one_is_refused_and_never_replaced(name, case, words):
  with pytest.raises(ValueError, match=words):
    attention.choose(name, case)


def test_a_decoder_refuses_what_its_devices_cannot_do():
  config = read_config(tiny_models.hf_config('qwen2'))
  with pytest.raises(ValueError, match='it is for tpu, this is cpu'):
    checkpoint.abstract(config, mesh=None, attention='splash')


def arrays(length, heads, groups, size, dtype, segments=False, seed=0):
  rng = np.random.default_rng(seed)

  def draw(n):
    return jnp.asarray(rng.normal(size=(2, length, n, size)), dtype)

  ids = None
  if segments:
    ids = jnp.asarray(np.sort(rng.integers(1, 4, (2, length))), jnp.int32)
  return draw(heads), draw(groups), draw(groups), ids


@pytest.mark.parametrize(
  'length, heads, groups, size, window, soft_cap, segments',
  [
    (128, 4, 4, 128, None, None, False),
    (200, 14, 2, 64, None, None, True),
    (300, 4, 1, 64, 50, None, False),
    (256, 4, 2, 256, 128, 30.0, True),
    (130, 2, 1, 80, None, 20.0, False),
  ],
)
def test_splash_equals_xla_and_so_do_its_gradients(
  length, heads, groups, size, window, soft_cap, segments
):
  """The kernel's own program, interpreted; float32, where both are exact."""
  q, k, v, ids = arrays(length, heads, groups, size, jnp.float32, segments)
  options = {'scale': size**-0.5, 'window': window, 'soft_cap': soft_cap}

  def loss(attend, q, k, v):
    y = attend(q, k, v, ids, **options)
    return jnp.sum(jnp.sin(y)), y

  results = []
  for attend in (
    xla.attend,
    functools.partial(tpu.attend, interpret=True),
  ):
    gradient = jax.grad(
      functools.partial(loss, attend), argnums=(0, 1, 2), has_aux=True
    )
    results.append(jax.jit(gradient)(q, k, v))
  (wanted_grads, wanted), (found_grads, found) = results
  terms = size + 2 * length  # a score; softmax and values, averages of about 1
  limit = tolerances.chain(terms)
  np.testing.assert_allclose(found, wanted, rtol=limit, atol=limit)
  for a, b in zip(found_grads, wanted_grads, strict=True):
    atol = tolerances.chain(3 * terms) * tolerances.largest(b)
    np.testing.assert_allclose(a, b, rtol=0, atol=atol)


def test_splash_in_bfloat16_is_as_exact_as_xla():
  """Both against float32: rounding the scaled queries costs little."""
  q, k, v, _ = arrays(384, 4, 2, 128, jnp.bfloat16)
  options = {'scale': 128**-0.5, 'window': None, 'soft_cap': None}
  exact = xla.attend(
    *(x.astype(jnp.float32) for x in (q, k, v)), None, **options
  )
  errors = [
    float(jnp.abs(attend(q, k, v, None, **options) - exact).mean())
    for attend in (
      xla.attend,
      functools.partial(tpu.attend, interpret=True),
    )
  ]
  assert errors[1] < 1.5 * errors[0]


def model_config(**changes):
  """14 query and 2 key/value heads, as in Qwen2.5-0.5B."""
  return dataclasses.replace(
    read_config(
      tiny_models.hf_config('qwen2')
      | {
        'hidden_size': 256,
        'num_attention_heads': 14,
        'num_key_value_heads': 2,
        'head_dim': 64,
        'num_hidden_layers': 2,
      }
    ),
    **changes,
  )


def scoring_program(name, config, shape=(16, 256), **mesh):
  devices = topology.describe(name).devices
  mesh = sharding.make_mesh(**mesh, devices=devices)
  model = checkpoint.abstract(config, mesh=mesh, dtype=jnp.bfloat16)
  programs = programs_lib.Programs(model, mesh)
  return programs.program(shape)


def test_scoring_on_a_tpu_runs_the_kernel_and_gathers_no_logits():
  """Vocabulary over `tensor`; key/value heads whole where they don't divide."""
  pytest.importorskip('libtpu')
  config = model_config(vocab_size=8000)
  text = scoring_program('v5e:2x2', config, data=2, tensor=2).as_text()
  assert 'splash' in text and 'tpu_custom_call' in text
  # Of a device: 8 rows of 256 tokens, half of the vocabulary. A chunk's logits
  # in bfloat16 would be four times as large as the largest that is needed, the
  # residual stream.
  stream = 8 * 256 * config.hidden_size * 2
  chunk = 1024 * config.padded_vocab_size // 2 * 2
  assert chunk > 4 * stream
  found = collectives.find(text, 4)
  assert max(c.bytes for c in found) == stream
  assert not [c for c in found if c.kind != 'all-reduce' and c.bytes > 1 << 16]


@pytest.mark.slow
@pytest.mark.parametrize(
  'name, mesh',
  [
    ('v4:2x2x1', {'data': 2, 'fsdp': 2}),
    ('v5e:2x4', {'data': 2, 'fsdp': 2, 'tensor': 2}),
    ('v5p:2x2x1', {'fsdp': 2, 'tensor': 2}),
    ('v6e:2x4', {'data': 8}),
  ],
)
@pytest.mark.parametrize('case', ['qwen2', 'gemma2', 'mistral'])
def test_every_topology_compiles_scoring_and_training(name, mesh, case):
  """Windows, soft caps and packed segments among them."""
  pytest.importorskip('libtpu')
  config = (
    model_config()
    if case == 'qwen2'
    else read_config(tiny_models.hf_config(case))
  )
  text = scoring_program(name, config, **mesh).as_text()
  assert 'splash' in text
  devices = topology.describe(name).devices
  mesh = sharding.make_mesh(**({'data': 1} | mesh), devices=devices)
  model = checkpoint.abstract(
    config, mesh=mesh, dtype=jnp.bfloat16, param_dtype=jnp.float32
  )
  trainer = step.Trainer(
    model,
    optimizer.make(optimizer.OptimizerOptions()),
    step.StepOptions(remat=True),
  )
  assert 'splash' in trainer.compile(16, 256)['gradient'].as_text()
