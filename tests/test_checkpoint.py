"""Checkpoint files: every error its own, own bytes only, round trips."""

import functools
import json
import math
import os
import tracemalloc

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import tiny_models
from flax import nnx
from safetensors.numpy import load_file, save_file

from qaq_jax.models import sharding
from qaq_jax.models.hf import checkpoint, tensors
from qaq_jax.models.hf.families import family_of
from qaq_jax.models.hf.read_config import read_config
from qaq_jax.models.params import is_expert, param_specs


def rewrite(directory, change):
  """Applies `change` to a checkpoint's tensors."""
  data = load_file(directory / 'model.safetensors')
  change(data)
  save_file(data, directory / 'model.safetensors')


@pytest.fixture
def llama(tmp_path):
  return tiny_models.write('llama', tmp_path / 'llama')


@pytest.fixture
def qwen3(tmp_path):
  return tiny_models.write('qwen3', tmp_path / 'qwen3')


Q = 'model.layers.1.self_attn.q_proj.weight'


def test_unknown_tensor(llama):
  rewrite(llama, lambda d: d.update({'model.layers.2.x': np.ones(3)}))
  with pytest.raises(
    tensors.UnknownTensorError, match=r'model.layers.2.x.*model.safetensors'
  ):
    checkpoint.load(llama, mesh=None)


def test_missing_tensor(llama):
  rewrite(llama, lambda d: d.pop(Q))
  with pytest.raises(tensors.MissingTensorError, match=f'{Q}.*{llama}'):
    checkpoint.load(llama, mesh=None)


def test_missing_head_hints_at_tying(llama):
  rewrite(llama, lambda d: d.pop('lm_head.weight'))
  with pytest.raises(tensors.MissingTensorError, match='tie_word_embeddings'):
    checkpoint.load(llama, mesh=None)


EXPERTS = [
  ('mixtral', 'block_sparse_moe.experts.{}.w{}.weight', (1, 3, 2)),
  ('qwen3_moe', 'mlp.experts.{}.{}_proj.weight', ('gate', 'up', 'down')),
]


@pytest.mark.parametrize('case,template,parts', EXPERTS)
def test_a_missing_expert_is_named(case, template, parts, tmp_path):
  directory = tiny_models.write(case, tmp_path / case)
  name = f'model.layers.1.{template.format(2, parts[1])}'
  rewrite(directory, lambda d: d.pop(name))
  with pytest.raises(tensors.MissingTensorError, match=f'{name}.*(1 such)'):
    checkpoint.load(directory, mesh=None)


def merge_experts(data, template, parts):
  """As transformers saves with save_original_format=False."""
  for layer in range(2):
    prefix = f'model.layers.{layer}.'
    first = f'{prefix}{template}'
    number = sum(first.format(e, parts[0]) in data for e in range(len(data)))
    gate, up, down = (
      np.stack([data.pop(first.format(e, part)) for e in range(number)])
      for part in parts
    )
    data[f'{prefix}mlp.experts.gate_up_proj'] = np.concatenate([gate, up], 1)
    data[f'{prefix}mlp.experts.down_proj'] = down
    gate_name = f'{prefix}{template.split(".")[0]}.gate.weight'
    data[f'{prefix}mlp.gate.weight'] = data.pop(gate_name)


@pytest.mark.parametrize('case,template,parts', EXPERTS)
def test_merged_experts_are_the_same_model(case, template, parts, tmp_path):
  directory = tiny_models.write(case, tmp_path / case)
  meshes = None, sharding.make_mesh(2, 2, 2), sharding.make_mesh(1, 1, 8)
  before = checkpoint.load(directory, mesh=None)
  rewrite(directory, lambda d: merge_experts(d, template, parts))
  for mesh in meshes:
    after = checkpoint.load(directory, mesh=mesh)
    jax.tree.map(
      np.testing.assert_array_equal, nnx.state(before), nnx.state(after)
    )


def test_merged_experts_that_are_wrong(tmp_path):
  _, template, parts = EXPERTS[1]
  directory = tiny_models.write('qwen3_moe', tmp_path / 'model')
  name = f'model.layers.0.{template.format(3, "down")}'
  down = load_file(directory / 'model.safetensors')[name]
  rewrite(directory, lambda d: merge_experts(d, template, parts))
  rewrite(directory, lambda d: d.update({name: down}))
  with pytest.raises(
    tensors.DuplicateTensorError,
    match=f'experts.down_proj.*{name}|{name}.*experts.down_proj',
  ):
    checkpoint.load(directory, mesh=None)
  merged = 'model.layers.1.mlp.experts.gate_up_proj'
  rewrite(directory, lambda d: d.pop(name))
  rewrite(directory, lambda d: d.update({merged: d[merged][:, 1:]}))
  with pytest.raises(tensors.TensorShapeError, match=r'up_proj.*24, 39, 48'):
    checkpoint.load(directory, mesh=None)
  rewrite(directory, lambda d: d.update({merged: d[merged][:, 1:]}))
  with pytest.raises(tensors.TensorShapeError, match=r'up_proj.*19, 48.*20'):
    checkpoint.load(directory, mesh=None)
  rewrite(directory, lambda d: d.update({merged: np.zeros((23, 40, 48))}))
  with pytest.raises(tensors.MissingTensorError, match=r'experts.23.gate_proj'):
    checkpoint.load(directory, mesh=None)


@pytest.mark.parametrize('case', ['mixtral', 'qwen3_moe'])
def test_what_transformers_merges_is_read(case, tmp_path):
  pytest.importorskip('torch')
  transformers = pytest.importorskip('transformers')
  source = tiny_models.write(case, tmp_path / 'source')
  model = transformers.AutoModelForCausalLM.from_pretrained(source)
  model.save_pretrained(tmp_path / 'merged', save_original_format=False)
  names = load_file(tmp_path / 'merged' / 'model.safetensors')
  assert 'model.layers.0.mlp.experts.gate_up_proj' in names
  jax.tree.map(
    np.testing.assert_array_equal,
    nnx.state(checkpoint.load(source, mesh=None)),
    nnx.state(checkpoint.load(tmp_path / 'merged', mesh=None)),
  )


def test_misshaped_tensor(llama):
  rewrite(llama, lambda d: d.update({Q: d[Q].T.copy()[:, :40]}))
  with pytest.raises(
    tensors.TensorShapeError, match=rf'{Q}.*\[48, 40\].*\[48, 48\]'
  ):
    checkpoint.load(llama, mesh=None)


def test_tensor_set_twice(tmp_path):
  gpt2 = tiny_models.write('gpt2', tmp_path / 'gpt2')
  rewrite(gpt2, lambda d: d.update({'wpe.weight': np.ones((300, 48))}))
  with pytest.raises(
    tensors.DuplicateTensorError, match=r"'(transformer\.)?wpe.*same param"
  ):
    checkpoint.load(gpt2, mesh=None)


def test_tied_head_that_differs(qwen3):
  def add(data, by):
    data['lm_head.weight'] = data['model.embed_tokens.weight'] + np.float32(by)

  rewrite(qwen3, functools.partial(add, by=0))
  checkpoint.load(qwen3, mesh=None)  # equal: dropped
  rewrite(qwen3, functools.partial(add, by=0.1))
  with pytest.raises(tensors.CheckpointError, match='lm_head.weight.*differs'):
    checkpoint.load(qwen3, mesh=None)


def test_quantised_weights(llama):
  rewrite(llama, lambda d: d.update({Q: d[Q].astype(ml_dtypes.float8_e4m3fn)}))
  with pytest.raises(tensors.CheckpointError, match=f'{Q}.*F8_E4M3.*quantised'):
    checkpoint.load(llama, mesh=None)


@pytest.mark.parametrize(
  'file,message',
  [
    ('pytorch_model.bin', 'save_pretrained'),
    ('model-Q4_K_M.gguf', 'GGUF.*safetensors checkpoint'),
    ('consolidated.safetensors', 'Found consolidated.safetensors: rename'),
    ('notes.txt', 'Found: config.json, notes.txt'),
  ],
)
def test_other_formats(llama, file, message):
  (llama / 'model.safetensors').unlink()
  (llama / file).write_bytes(b'x')
  with pytest.raises(tensors.CheckpointError, match=message):
    checkpoint.load(llama, mesh=None)


def test_missing_shard(llama):
  index = {'weight_map': {Q: 'model-00002-of-00002.safetensors'}}
  (llama / 'model.safetensors.index.json').write_text(json.dumps(index))
  with pytest.raises(tensors.MissingTensorError, match='00002-of-00002'):
    checkpoint.load(llama, mesh=None)


@pytest.mark.parametrize(
  'change',
  [
    lambda data: b'',
    lambda data: data[:5],
    lambda data: data[:200],  # within the header
    lambda data: data[:-1],
    lambda data: b'<html>Not found</html>',  # a failed download
  ],
  ids=['empty', 'stub', 'header', 'tail', 'junk'],
)
def test_damaged_file_is_named(llama, change):
  path = llama / 'model.safetensors'
  path.write_bytes(change(path.read_bytes()))
  with pytest.raises(
    tensors.CheckpointError,
    match=f'{path}: damaged or incomplete.*download or save it again',
  ):
    checkpoint.load(llama, mesh=None)


class Recorder:
  """A tensor that counts the numbers read from it."""

  def __init__(self, values):
    self.values, self.read = values, 0

  def get_shape(self):
    return list(self.values.shape)

  def __getitem__(self, index):
    block = self.values[index]
    self.read += block.size
    return block


@pytest.mark.parametrize('case', ['gpt2', 'qwen2', 'qwen3_moe'])
def test_a_block_reads_its_own_bytes_only(case):
  """Any block of any parameter: the right numbers, and no others read."""
  config = read_config(tiny_models.hf_config(case))
  weights = tiny_models.weights(case)
  rng = np.random.default_rng(0)
  seen = set()
  for path, spec in param_specs(config).items():
    template, transform = family_of(config).tensor(path)
    seen.add(transform.name)
    shape = spec.shape[1:] if path[0] == 'stacks' else spec.shape
    shape = shape[1:] if is_expert(path[-1]) else shape
    values = weights[template.format(0, expert=0)]
    full = transform.read(Recorder(values), (slice(None),) * len(shape), shape)
    assert full.shape == shape
    for _ in range(5):
      index = []
      for axis, size in zip(spec.axes[-len(shape) :], shape, strict=True):
        low = int(rng.integers(0, size)) if axis else 0
        high = int(rng.integers(low + 1, size + 1)) if axis else size
        index.append(slice(low, high))
      recorder = Recorder(values)
      block = transform.read(recorder, tuple(index), shape)
      np.testing.assert_array_equal(block, full[tuple(index)])
      assert recorder.read <= block.size
  assert len(seen) >= 4


def test_extra_memory_is_one_stacked_parameter(tmp_path):
  """Host memory beyond the model itself, while reading, by tracemalloc."""
  config = read_config(
    tiny_models.hf_config('llama')
    | {
      'num_hidden_layers': 12,
      'hidden_size': 192,
      'intermediate_size': 768,
      'vocab_size': 1000,
    }
  )
  mesh = sharding.make_mesh(2, 2, 2)
  model = checkpoint.random_init(config, mesh=mesh)
  checkpoint.save_hf(model, tmp_path, dtype=jnp.bfloat16)
  largest = max(math.prod(s.shape) for s in param_specs(config).values()) * 4
  del model
  tracemalloc.start()
  loaded = checkpoint.load(tmp_path, mesh=mesh)
  after, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  total = sum(x.nbytes for x in jax.tree.leaves(nnx.state(loaded)))
  assert total > 3 * largest
  # One parameter, one layer of it on the way, and what Python itself takes.
  assert peak - after < 1.3 * largest + 2**20


@pytest.mark.parametrize('case', ['gpt2', 'gemma3', 'qwen2', 'qwen3_moe'])
def test_save_and_load_round_trip(case, tmp_path):
  config = read_config(tiny_models.hf_config(case))
  model = checkpoint.random_init(
    config, mesh=sharding.make_mesh(2, 2, 2), seed=1
  )
  checkpoint.save_hf(model, tmp_path, dtype=jnp.float32, shard_bytes=100_000)
  assert (tmp_path / tensors.INDEX).exists()
  again = checkpoint.load(tmp_path, mesh=None)
  assert again.config == config
  jax.tree.map(
    np.testing.assert_array_equal, nnx.state(model), nnx.state(again)
  )
  # A smaller save replaces the parts of the larger one.
  checkpoint.save_hf(again, tmp_path, dtype=jnp.bfloat16)
  assert sorted(p.name for p in tmp_path.iterdir()) == [
    'config.json',
    'model.safetensors',
  ]
  half = checkpoint.load(tmp_path, mesh=None, dtype=jnp.bfloat16)
  np.testing.assert_array_equal(
    half.embedding[...], again.embedding[...].astype(jnp.bfloat16)
  )


@pytest.mark.parametrize(
  'case', ['gemma3', 'gpt2', 'llama', 'mixtral', 'qwen3_moe']
)
def test_saved_files_are_those_that_transformers_reads(case, tmp_path):
  """Same names, shapes and numbers as the file that transformers accepted."""
  source = tiny_models.write(case, tmp_path / 'source')
  model = checkpoint.load(source, mesh=None)
  checkpoint.save_hf(model, tmp_path / 'saved', dtype=jnp.float32)
  before = load_file(source / 'model.safetensors')
  after = load_file(tmp_path / 'saved' / 'model.safetensors')
  assert set(before) == set(after)
  for name, value in before.items():
    np.testing.assert_array_equal(value, after[name])
  try:
    import torch  # noqa: F401
  except ImportError:
    return  # what follows checks that config.json means the same to torch
  tokens = tiny_models.tokens(case)[:2]
  np.testing.assert_allclose(
    tiny_models.torch_logp(tmp_path / 'saved', tokens),
    tiny_models.torch_logp(source, tokens),
    atol=1e-6,
  )


def test_fingerprint_follows_contents(llama, tmp_path):
  first = checkpoint.fingerprint(checkpoint.resolve(llama))
  assert [f['name'] for f in first['files']] == [
    'config.json',
    'model.safetensors',
  ]
  twin = checkpoint.fingerprint(
    checkpoint.resolve(tiny_models.write('llama', tmp_path / 'twin'))
  )
  assert twin['files'] == first['files']
  rewrite(llama, lambda d: d[Q].__setitem__((0, 0), 1.0))
  changed = checkpoint.fingerprint(checkpoint.resolve(llama))
  assert changed['files'] != first['files']
  path = llama / 'model.safetensors'  # now in place, of the same size, later
  before, data = path.stat(), bytearray(path.read_bytes())
  data[-1] ^= 1
  path.write_bytes(data)
  assert (path.stat().st_ino, path.stat().st_size) == (
    before.st_ino,
    before.st_size,
  )
  os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 10**9))
  again = checkpoint.fingerprint(checkpoint.resolve(llama))
  assert again['files'] != changed['files']
