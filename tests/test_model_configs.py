"""Published configs resolve to the right model, wrong ones say what is so."""

import dataclasses
import json
import math
import pathlib

import jax
import numpy as np
import pytest
import tiny_models
from flax import nnx

from qaq_jax.models import config as config_lib
from qaq_jax.models import flops
from qaq_jax.models.hf import checkpoint, write_config
from qaq_jax.models.hf.read_config import read_config
from qaq_jax.models.rope import Rope

FIXTURES = pathlib.Path(__file__).parent / 'fixtures' / 'hf_configs'

# Published counts of the language model's parameters, a tied head counted once.
PUBLISHED = {
  'Qwen--Qwen2.5-Coder-0.5B': 494_032_768,
  'Qwen--Qwen2.5-Coder-1.5B': 1_543_714_304,
  'Qwen--Qwen2.5-Coder-7B': 7_615_616_512,
  'Qwen--Qwen2.5-Coder-7B-Instruct': 7_615_616_512,
  'Qwen--Qwen2.5-Coder-32B': 32_763_876_352,
  'Qwen--Qwen2.5-Math-1.5B-Instruct': 1_543_714_304,
  'Qwen--Qwen2.5-Math-7B-Instruct': 7_615_616_512,
  'Qwen--Qwen3-0.6B': 596_049_920,
  'Qwen--Qwen3-Coder-30B-A3B-Instruct': 30_532_122_624,
  'bigcode--starcoder2-3b': 3_030_371_328,
  'codellama--CodeLlama-7b-hf': 6_738_546_688,
  'deepseek-ai--deepseek-coder-6.7b-base': 6_740_512_768,
  'google--codegemma-2b': 2_506_172_416,
  'google--codegemma-7b': 8_537_680_896,
  'google--gemma-2-2b': 2_614_341_888,
  'google--gemma-3-1b-it': 999_885_952,
  # 4,300,079,472 less the vision tower and projector, 419,816,304
  'google--gemma-3-4b-it': 3_880_263_168,
  'meta-llama--Llama-3.1-8B': 8_030_261_248,
  'mistralai--Mistral-7B-v0.1': 7_241_732_096,
  'mistralai--Mistral-7B-v0.3': 7_248_023_552,
  'mistralai--Mixtral-8x7B-v0.1': 46_702_792_704,
  'openai-community--gpt2': 124_439_808,
}


def load(name: str) -> config_lib.ModelConfig:
  path = FIXTURES / f'{name}.json'
  return read_config(json.loads(path.read_text()), str(path))


def test_every_fixture_has_a_published_count():
  assert {p.stem for p in FIXTURES.glob('*.json')} == set(PUBLISHED)


@pytest.mark.parametrize('name', sorted(PUBLISHED))
def test_published_models_resolve(name):
  config = load(name)
  count = sum(map(math.prod, checkpoint.expected_tensors(config).values()))
  assert count == PUBLISHED[name]
  # The abstract decoder has the same, and nothing else but padding.
  model = checkpoint.abstract(config, mesh=None)
  leaves = jax.tree.leaves(nnx.state(model))
  padding = config.padded_vocab_size - config.vocab_size
  tables = 1 if config.tie_embeddings else 2
  assert (
    sum(math.prod(x.shape) for x in leaves)
    == count + tables * padding * config.hidden_size
  )


def test_details_of_published_models():
  deepseek = load('deepseek-ai--deepseek-coder-6.7b-base')
  assert deepseek.layers[0].rope == Rope(100000.0, 'linear', 4.0)
  llama = load('meta-llama--Llama-3.1-8B').layers[0].rope
  assert (llama.kind, llama.factor, llama.theta) == ('llama3', 8.0, 500000.0)
  # the window that the file names is switched off
  assert load('Qwen--Qwen2.5-Coder-7B').layers[-1].window is None
  assert load('mistralai--Mistral-7B-v0.1').layers[0].window == 4096
  qwen3 = load('Qwen--Qwen3-0.6B')
  assert qwen3.head_dim == 128 and qwen3.qk_norm and not qwen3.qkv_bias
  coder = load('Qwen--Qwen3-Coder-30B-A3B-Instruct')
  assert (coder.num_experts, coder.experts_per_token) == (128, 8)
  assert coder.intermediate_size == 768 and coder.normalized_routing
  # 3.3 billion parameters meet a token, the head included.
  products, _ = flops.forward_flops(coder, 1000, 0)
  assert 3.0e9 < products / 2000 < 3.3e9
  gemma2 = load('google--gemma-2-2b')
  assert [k.window for k in gemma2.layers[:3]] == [4096, None, 4096]
  assert (gemma2.attn_soft_cap, gemma2.final_soft_cap) == (50.0, 30.0)
  gemma3 = load('google--gemma-3-4b-it')
  windows = [k.window for k in gemma3.layers]
  assert windows[:6] == [1024] * 5 + [None] and windows[-1] == 1024
  assert gemma3.layers[5].rope == Rope(1e6, 'linear', 8.0)
  assert gemma3.layers[0].rope == Rope(1e4)
  assert load('google--codegemma-7b').activation == 'gelu_tanh'
  assert load('openai-community--gpt2').tie_embeddings


def without(case, *keys, **changes):
  config = tiny_models.hf_config(case) | changes
  return read_config(
    {k: v for k, v in config.items() if k not in (*keys, 'layer_types')}
  )


def test_an_absent_key_is_the_familys_default_and_null_is_not():
  """Expected values: the configuration classes of transformers."""
  heads = {'num_attention_heads': 32, 'head_dim': 8}
  for case, default in (
    ('gemma', 16),
    ('gemma2', 4),
    ('llama', 32),
    ('mistral', 8),
    ('qwen2', 32),
    ('qwen3', 32),
    ('starcoder2', 2),
    ('mixtral', 8),
    ('qwen3_moe', 4),
  ):
    got = without(case, **heads, num_key_value_heads=None)
    assert got.num_kv_heads == 32, case
    got = without(case, 'num_key_value_heads', **heads)
    assert got.num_kv_heads == default, case
  windows = {'use_sliding_window': True, 'max_window_layers': 0}
  for case, default in (
    ('mistral', 4096),
    ('qwen2', 4096),
    ('qwen3', 4096),
    ('qwen3_moe', 4096),
    ('mixtral', None),
    ('starcoder2', None),
  ):
    got = without(case, 'sliding_window', **windows)
    assert {k.window for k in got.layers} == {default}, case
    got = without(case, **windows, sliding_window=None)
    assert {k.window for k in got.layers} == {None}, case
  got = without('gemma2', 'sliding_window')
  assert got.layers[0].window == 4096
  off = without('qwen2', 'sliding_window', use_sliding_window=False)
  assert off.layers[0].window is None


@pytest.mark.parametrize('case', sorted(tiny_models.CASES))
def test_written_configs_read_back(case):
  config = read_config(tiny_models.hf_config(case))
  written = write_config.write_config(config, np.float32)
  assert read_config(json.loads(json.dumps(written))) == config


@pytest.mark.parametrize(
  'change,message',
  [
    ({'model_type': 'mamba'}, "'model_type' is 'mamba'.*gemma2.*qwen3"),
    ({'hidden_size': None}, "my.json: 'hidden_size' is missing"),
    ({'num_hidden_layers': '2'}, "'num_hidden_layers' is '2', expected"),
    ({'num_key_value_heads': 4}, "'num_key_value_heads' is 4.*6 query"),
    ({'hidden_act': 'relu6'}, "'hidden_act' is 'relu6'; supported"),
    ({'layer_types': ['full_attention']}, "'layer_types' has 1 entries"),
    ({'layer_types': ['full_attention', 'x']}, "'layer_types' has .'x'."),
    (
      {
        'layer_types': ['full_attention', 'sliding_attention'],
        'sliding_window': None,
      },
      "'sliding_window' is missing for sliding layers",
    ),
    ({'hidden_size': 50}, "'hidden_size' is 50, not a multiple of 6 heads"),
    ({'vocab_size': 0}, "'vocab_size' is 0, expected at least 1"),
    ({'rms_norm_eps': -1e-6}, "'rms_norm_eps' is -1e-06, .* from 0 up"),
    (
      {'rope_parameters': {'rope_type': 'dynamic', 'factor': 2.0}},
      "'rope_parameters' asks for 'dynamic'; supported: default, linear",
    ),
    (
      {'rope_parameters': {'rope_type': 'linear'}},
      "my.json \\(rope scaling\\): 'factor' is missing",
    ),
    (
      {'quantization_config': {'quant_method': 'gptq', 'bits': 4}},
      "'quantization_config'.*gptq.*use the original checkpoint",
    ),
  ],
)
def test_wrong_configs_name_key_and_file(change, message):
  config = tiny_models.hf_config('qwen2') | {
    'num_attention_heads': 6,
    'hidden_size': 48,
  }
  with pytest.raises(ValueError, match=message):
    read_config(config | change, 'my.json')


def test_heads_that_do_not_divide_the_stream_are_told():
  config = tiny_models.hf_config('gpt2') | {'n_embd': 50, 'n_head': 4}
  with pytest.raises(ValueError, match="'n_embd' is 50, not a multiple of n_h"):
    read_config(config, 'my.json')


def test_heads_without_pairs_to_rotate_are_told():
  config = tiny_models.hf_config('qwen3') | {'head_dim': 9}
  with pytest.raises(ValueError, match="'head_dim' is 9: rotary needs pairs"):
    read_config(config, 'my.json')


def test_a_file_without_a_model_type_is_no_family_wrapped():
  section = {'model_type': 'llama', 'hidden_size': 8}
  with pytest.raises(ValueError, match="my.json: 'model_type' is ''"):
    read_config({'model_type': '', 'text_config': section}, 'my.json')


@pytest.mark.parametrize(
  'case,change,message',
  [
    (
      'qwen3_moe',
      {'decoder_sparse_step': 2},
      "my.json: 'decoder_sparse_step' is 2, which is not supported",
    ),
    ('qwen3_moe', {'mlp_only_layers': [0]}, "'mlp_only_layers' is .0., which"),
    (
      'qwen3_moe',
      {'num_experts_per_tok': 25},
      "'num_experts_per_tok' is 25, of 24 experts",
    ),
    (
      'qwen3_moe',
      {'moe_intermediate_size': None},
      "'moe_intermediate_size' is missing",
    ),
    (
      'qwen3_moe',
      {'layer_types': ['full_attention', 'sliding_attention']},
      "'layer_types' is not 'full_attention' 2 times",
    ),
    ('qwen3_moe', {'mlp_bias': True}, "'mlp_bias' is True, which"),
    ('mixtral', {'num_local_experts': None}, "'num_local_experts' is missing"),
    ('mixtral', {'num_experts_per_tok': 0}, 'is 0, of 4 experts'),
  ],
)
def test_wrong_experts_are_told(case, change, message):
  with pytest.raises(ValueError, match=message):
    read_config(tiny_models.hf_config(case) | change, 'my.json')


def test_experts_under_the_newer_key():
  config = tiny_models.hf_config('qwen3_moe')
  newer = config | {'num_local_experts': config['num_experts']}
  del newer['num_experts']
  assert read_config(newer) == read_config(config)


def test_layers_are_grouped_into_few_scans():
  full, slide = config_lib.LayerKind(), config_lib.LayerKind(window=4)
  base = read_config(tiny_models.hf_config('llama'))

  def shape(layers):
    config = dataclasses.replace(base, layers=tuple(layers))
    stacked = sorted(i for stack in config.stacks for i in stack)
    assert stacked == list(range(len(layers)))  # each layer once
    return [(len(s.pattern), s.repeats) for s in config.segments]

  assert shape([full] * 24) == [(1, 24)]
  assert shape([slide, full] * 13) == [(2, 13)]
  assert shape(([slide] * 5 + [full]) * 4 + [slide] * 2) == [(6, 4), (1, 2)]
  assert shape([full] * 20 + [slide] * 8) == [(1, 20), (1, 8)]
