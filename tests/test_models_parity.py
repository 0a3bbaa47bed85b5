"""Every family gives transformers' log-probabilities, however it is stored.

With torch, tiny checkpoints are saved by transformers and scored by both. Where
torch is missing, the same weights are compared with the numbers that torch gave
(tests/reference/parity.json), which the torch column checks too.

Tolerances, on tokens' log-probabilities in nats: `tolerances.decoder` of the
largest, in float32.
"""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_models
import tolerances
from flax import nnx

from qaq_jax.models import sharding
from qaq_jax.models.hf import checkpoint
from qaq_jax.models.hf.read_config import read_config

try:
  import torch  # noqa: F401

  HAS_TORCH = True
except ImportError:
  HAS_TORCH = False

CASES = sorted(tiny_models.CASES)
ONE = (1, 1, 1)
# All eight devices: each family on one mix, two of them on many.
MIXES = [
  (case, [(2, 2, 2), (1, 4, 2), (4, 1, 2), (1, 8, 1)][i % 4])
  for i, case in enumerate(CASES)
] + [
  ('qwen2', (8, 1, 1)),
  ('qwen3', (1, 1, 8)),  # 2 key/value heads for 8 devices
  ('qwen3', (1, 2, 4)),
  ('gemma2', (2, 2, 2)),
  ('mixtral', (1, 2, 2)),  # experts over tensor
  ('mixtral', (1, 1, 8)),  # 4 experts for 8 devices: each is split
  ('qwen3_moe', (2, 1, 4)),
]


@pytest.mark.parametrize(
  'truncate, second', [(True, 0.0625), (False, 0.02559525)]
)
def test_yarn_has_transformers_frequencies(truncate, second):
  """Of transformers 5.5; the ends of the ramp lie within the second pair."""
  config = dict(tiny_models.CASES['qwen2_yarn'])
  config['rope_parameters'] = config['rope_parameters'] | {'truncate': truncate}
  rope = read_config(config).layers[0].rope
  expected = [1.0, second, 0.0025, 0.00025]
  np.testing.assert_allclose(rope.frequencies(8), expected, rtol=1e-6)
  assert rope.attention_factor == pytest.approx(1.138629436111989)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """Returns a function: case -> its checkpoint, saved by transformers."""
  root = tmp_path_factory.mktemp('checkpoints')

  @functools.cache
  def make(case: str) -> pathlib.Path:
    directory = tiny_models.write(case, root / case)
    if HAS_TORCH:
      return tiny_models.resave(directory, root / f'{case}_resaved')
    return directory

  return make


@functools.cache
def mesh_of(sizes):
  count = int(np.prod(sizes))
  return sharding.make_mesh(*sizes, devices=jax.devices()[:count])


@functools.partial(jax.jit, static_argnums=0)
def token_logp(graphdef, params, tokens_BT):
  model = nnx.merge(graphdef, params)
  logp = jax.nn.log_softmax(model.logits(model(tokens_BT)))
  logp = sharding.reshard(logp[:, :-1], jax.P())
  return jnp.take_along_axis(logp, tokens_BT[:, 1:, None], 2)[..., 0]


def our_logp(directory, tokens_BT, sizes=ONE, dtype=jnp.float32):
  mesh = mesh_of(sizes)
  model = checkpoint.load(directory, mesh=mesh, dtype=dtype)
  with jax.set_mesh(mesh):
    return np.asarray(token_logp(*nnx.split(model), jnp.asarray(tokens_BT)))


def assert_close(case, got, want, length=tiny_models.LENGTH):
  """Log-probabilities of a case, relative to the largest."""
  near = tolerances.near(read_config(tiny_models.hf_config(case)), length, want)
  np.testing.assert_allclose(got, want, **near)


@functools.cache
def unsharded(folder, case):
  return our_logp(folder(case), tiny_models.tokens(case))


@pytest.mark.parametrize('case', CASES)
def test_matches_transformers(folder, case):
  ours = unsharded(folder, case)
  stored = np.asarray(json.loads(tiny_models.REFERENCE.read_text())[case])
  assert_close(case, ours[:2], stored)
  if HAS_TORCH:
    expected = tiny_models.torch_logp(folder(case), tiny_models.tokens(case))
    assert_close(case, ours, expected)


@pytest.mark.parametrize('case', CASES)
def test_older_files_are_the_same_model(folder, case, tmp_path):
  tiny_models.rewrite_old(case, folder(case), tmp_path / 'old')
  new = checkpoint.load(folder(case), mesh=None)
  old = checkpoint.load(tmp_path / 'old', mesh=None)
  assert new.config == old.config
  jax.tree.map(np.testing.assert_array_equal, nnx.state(new), nnx.state(old))


@pytest.mark.parametrize('case,sizes', MIXES)
def test_sharded_equals_unsharded(folder, case, sizes):
  ours = our_logp(folder(case), tiny_models.tokens(case), sizes)
  assert_close(case, ours, unsharded(folder, case))


@pytest.mark.parametrize('case', ['gemma3', 'llama', 'qwen2'])
def test_long_rows_match(folder, case):
  """2,500 tokens: many blocks of queries, windows far from the row's start."""
  tokens = tiny_models.tokens(case, rows=1, length=2500)
  ours = our_logp(folder(case), tokens)
  # A row's first tokens don't depend on what follows them.
  short = our_logp(folder(case), tokens[:, :700])
  assert_close(case, ours[:, :699], short, 700)
  if HAS_TORCH:
    expected = tiny_models.torch_logp(folder(case), tokens)
    assert_close(case, ours, expected, 2500)
  else:
    stored = np.asarray(
      json.loads(tiny_models.REFERENCE.read_text())[f'{case}_long']
    )
    assert_close(case, ours[0, -400:], stored, 2500)


@pytest.mark.parametrize('case', ['gemma2', 'gpt2', 'qwen3', 'qwen3_moe'])
def test_bfloat16_stays_near(folder, case):
  """bfloat16 rounds weights and activations, never the log-probabilities.

  Measured on all cases: mean absolute deviation 0.012 to 0.044 nats per token,
  largest 0.37, without bias; random weights of these scales are a hard case.
  Where a router is undecided, a token goes to another expert: 0.5% of tokens
  deviate by 0.7 to 2.4 nats.
  """
  exact = unsharded(folder, case)
  rounded = our_logp(folder(case), tiny_models.tokens(case), dtype=jnp.bfloat16)
  difference = rounded - exact
  assert 1e-4 < np.abs(difference).mean() < 0.06
  assert (np.abs(difference) >= 0.7).mean() < (0.01 if 'moe' in case else 1e-9)
  assert np.abs(difference.mean()) < 0.01
