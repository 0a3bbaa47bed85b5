"""A family of models is one record: reading, weights and writing follow it."""

import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow.parquet as pq
import pytest
import tiny_models
import tiny_tokenizers
from flax import nnx
from safetensors import safe_open

from qaq_jax import config as config_lib
from qaq_jax import pipeline
from qaq_jax.models.hf import checkpoint, export
from qaq_jax.models.hf.families import FAMILIES, llama
from qaq_jax.models.hf.read_config import read_config
from qaq_jax.models.hf.reader import Reader


def _read_toy(reader: Reader):
  values = dict(reader.values)
  values['hidden_size'] = reader.need('width')
  return llama.read(Reader(values, reader.origin))


# Llama's layers under a name of its own, with another key and other tensors.
TOY = dataclasses.replace(
  llama.LLAMA,
  model_type='toy',
  architecture='ToyForCausalLM',
  read=_read_toy,
  keys={**llama.LLAMA.keys, 'width': 'hidden_size'},
  weights={
    **llama.WEIGHTS,
    'embedding': ('toy.table', llama.VOCAB),
    'down_kernel': ('mlp.back.weight', llama.TRANSPOSE),
  },
  layer='toy.blocks.{}.',
  absent={'num_key_value_heads': 3},
)


@pytest.fixture
def toy(tmp_path, monkeypatch):
  """Two folders with the same model: as Llama, and as the toy family."""
  monkeypatch.setitem(FAMILIES, TOY.model_type, TOY)
  values = tiny_models.hf_config('llama') | {'vocab_size': 448}
  del values['num_key_value_heads']
  model = checkpoint.random_init(
    read_config(values | {'num_key_value_heads': 3}), mesh=None
  )
  folders = {}
  for name in ('llama', 'toy'):
    folder = pathlib.Path(tiny_tokenizers.make(tmp_path / name, 'qwen'))
    model.config = dataclasses.replace(model.config, family=name)
    checkpoint.save_hf(model, folder, dtype=jnp.float32)
    folders[name] = folder
  return folders


def test_the_record_says_what_is_read_and_written(toy, tmp_path):
  written = json.loads((toy['toy'] / 'config.json').read_text())
  assert written['model_type'] == 'toy' and written['width'] == 48
  assert written['architectures'] == ['ToyForCausalLM']
  del written['hidden_size'], written['num_key_value_heads']
  as_llama = checkpoint.read_config(toy['llama'])
  found = read_config(written)
  assert found == dataclasses.replace(as_llama, family='toy')
  with safe_open(toy['toy'] / 'model.safetensors', 'numpy') as tensors:
    names = set(tensors.keys())
  assert 'toy.table' in names and 'toy.blocks.1.mlp.back.weight' in names
  one, two = (
    nnx.state(checkpoint.load(folder, mesh=None)) for folder in toy.values()
  )
  jax.tree.map(np.testing.assert_array_equal, one, two)
  # And back: a training's export has the tokenizer beside it.
  export.save_model(
    checkpoint.load(toy['toy'], mesh=None),
    tmp_path / 'out',
    source=checkpoint.resolve(toy['toy']),
    dtype=jnp.float32,
  )
  for name in ('model.safetensors', 'config.json', 'tokenizer.json'):
    before = (toy['toy'] / name).read_bytes()
    assert (tmp_path / 'out' / name).read_bytes() == before, name


def test_it_is_scored_as_the_same_weights_of_a_known_family(toy, tmp_path):
  data = tmp_path / 'pairs.jsonl'
  data.write_text(
    ''.join(
      json.dumps({'instruction': f'Add {i}', 'output': f'a + {i}'}) + '\n'
      for i in range(8)
    )
  )
  c = config_lib.get_default()
  c.data.path = str(data)
  for name, folder in toy.items():
    config_lib.add_model(
      c, name, str(folder), dtype='float32', chat_template='chatml'
    )
  c.roles.strong, c.roles.weak = 'toy', 'llama'
  c.score.max_length = 256
  c.score.max_shapes = 1
  c.score.mesh.data = -1
  c.score.mesh.fsdp = 1
  c.stages = ('prepare', 'score')
  pipeline.run('run', c, tmp_path / 'work')
  table = pq.read_table(tmp_path / 'work' / 'scores.parquet')
  for term in ('nll_q', 'nll_a_given_q', 'nll_a', 'nll_q_given_a'):
    values = table[f'{term}_toy'].to_numpy()
    assert np.isfinite(values).all() and values.min() > 0
    np.testing.assert_array_equal(values, table[f'{term}_llama'].to_numpy())


def test_an_unknown_family_is_told_those_that_there_are(toy):
  with pytest.raises(
    ValueError, match="'toyy', which is not .*starcoder2, toy"
  ):
    read_config({'model_type': 'toyy'})
