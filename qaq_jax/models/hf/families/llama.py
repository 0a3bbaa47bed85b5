"""Llama, Mistral, Qwen2, Qwen2.5 and Qwen3, and what others share with them."""

import dataclasses
from collections.abc import Mapping

from qaq_jax.models.config import LayerKind, ModelConfig
from qaq_jax.models.hf.families.family import Family, Keys, Weights
from qaq_jax.models.hf.families.rope import read_rope, write_rope
from qaq_jax.models.hf.reader import Reader
from qaq_jax.models.hf.transforms import (
  FROM_HEADS,
  HEAD_BIAS,
  SAME,
  TO_HEADS,
  TRANSPOSE,
  VOCAB,
)
from qaq_jax.models.rope import Rope

MLP = ('gate', 'up', 'down')
WEIGHTS: Weights = {
  'embedding': ('model.embed_tokens.weight', VOCAB),
  'final_norm_scale': ('model.norm.weight', SAME),
  'head': ('lm_head.weight', VOCAB),
  'attn_norm_scale': ('input_layernorm.weight', SAME),
  'mlp_norm_scale': ('post_attention_layernorm.weight', SAME),
  'q_norm_scale': ('self_attn.q_norm.weight', SAME),
  'k_norm_scale': ('self_attn.k_norm.weight', SAME),
  'o_kernel': ('self_attn.o_proj.weight', FROM_HEADS),
  'o_bias': ('self_attn.o_proj.bias', SAME),
  **{f'{n}_kernel': (f'self_attn.{n}_proj.weight', TO_HEADS) for n in 'qkv'},
  **{f'{n}_bias': (f'self_attn.{n}_proj.bias', HEAD_BIAS) for n in 'qkv'},
  **{f'{n}_kernel': (f'mlp.{n}_proj.weight', TRANSPOSE) for n in MLP},
  **{f'{n}_bias': (f'mlp.{n}_proj.bias', SAME) for n in MLP},
}
SIZES: Keys = {
  'hidden_size': 'hidden_size',
  'intermediate_size': 'intermediate_size',
  'num_hidden_layers': 'num_layers',
  'num_attention_heads': 'num_heads',
  'num_key_value_heads': 'num_kv_heads',
  'head_dim': 'head_dim',
  'max_position_embeddings': 'max_positions',
  'rope_parameters': lambda c: write_rope(c.layers[0].rope),
  'hidden_act': lambda c: c.activation.replace('_tanh', '_pytorch_tanh'),
}
RMS: Keys = {**SIZES, 'rms_norm_eps': 'norm_eps'}
WINDOW: Keys = {'sliding_window': lambda c: c.layers[0].window}
# Where layers differ.
WINDOWS: Keys = {
  'layer_types': lambda c: [layer_type(k.window) for k in c.layers],
  'sliding_window': lambda c: max(k.window or 0 for k in c.layers) or None,
}
QWEN: Keys = {
  **RMS,
  **WINDOWS,
  'use_sliding_window': lambda c: any(k.window for k in c.layers),
  'max_window_layers': lambda c: sum(not k.window for k in c.layers),
}


def layer_type(window) -> str:
  """Returns what config.json calls a layer with a window, or without."""
  return 'sliding_attention' if window else 'full_attention'


def with_window(config: ModelConfig, window: int | None) -> ModelConfig:
  """Returns the model with the same window in all layers."""
  kinds = tuple(dataclasses.replace(k, window=window) for k in config.layers)
  return dataclasses.replace(config, layers=kinds)


def read_tokens(reader: Reader) -> dict:
  """Returns the fields of special tokens."""
  eos = reader.values.get('eos_token_id')
  return {
    'bos_token_id': reader.values.get('bos_token_id'),
    'eos_token_id': tuple(eos) if isinstance(eos, list) else eos,
    'pad_token_id': reader.values.get('pad_token_id'),
  }


def with_layers(
  reader: Reader,
  config: ModelConfig,
  rope: Rope | None | Mapping[str, Rope],
  window: int | None,
  default_types: list[str],
) -> ModelConfig:
  """Returns the model with layers of `layer_types`, or of the default."""
  types = reader.values.get('layer_types') or default_types
  if len(types) != config.num_layers:
    raise reader.error(
      'layer_types',
      f'has {len(types)} entries for {config.num_layers} layers',
    )
  kinds = {
    name: LayerKind(size, rope[name] if isinstance(rope, Mapping) else rope)
    for name, size in (('full_attention', None), ('sliding_attention', window))
  }
  unknown = sorted(set(types) - set(kinds))
  if unknown:
    raise reader.error('layer_types', f'has {unknown}, not supported')
  if 'sliding_attention' in types and not window:
    raise reader.error('sliding_window', 'is missing for sliding layers')
  layers = tuple(kinds[t] for t in types)
  return dataclasses.replace(config, layers=layers)


def read_sizes(reader: Reader) -> dict:
  """Returns the fields that the llama-like families share."""
  heads = reader.need('num_attention_heads')
  hidden = reader.need('hidden_size')
  head_dim = reader.get('head_dim', int)
  if head_dim is None:
    if hidden % heads:
      raise reader.error(
        'hidden_size', f'is {hidden}, not a multiple of {heads} heads'
      )
    head_dim = hidden // heads
  longest = reader.need('max_position_embeddings')
  values, theta = reader.values, reader.get('rope_theta', float, 10000.0)
  scaling = values.get('rope_parameters') or values.get('rope_scaling')
  rope = read_rope(reader, scaling, theta, longest)
  return {
    'family': values['model_type'],
    'vocab_size': reader.need('vocab_size'),
    'hidden_size': hidden,
    'intermediate_size': reader.need('intermediate_size'),
    'num_heads': heads,
    'num_kv_heads': reader.get('num_key_value_heads', int, heads),
    'head_dim': head_dim,
    'max_positions': longest,
    'layers': (LayerKind(rope=rope),) * reader.need('num_hidden_layers'),
    'query_scale': head_dim**-0.5,
    **read_tokens(reader),
  }


def read(reader: Reader, activation: str | None = None) -> ModelConfig:
  """Llama, and what others change."""
  bias = reader.get('attention_bias', bool, False)
  return ModelConfig(
    **read_sizes(reader),
    norm_eps=reader.need('rms_norm_eps', float),
    activation=activation or reader.activation('hidden_act'),
    qkv_bias=bias,
    out_bias=bias,
    mlp_bias=reader.get('mlp_bias', bool, False),
    tie_embeddings=reader.get('tie_word_embeddings', bool, False),
  )


def read_mistral(reader: Reader) -> ModelConfig:
  """Mistral: one window for all layers, or none."""
  return with_window(read(reader), reader.get('sliding_window', int))


def _read_qwen(reader: Reader) -> ModelConfig:
  config = read(reader)
  number = config.num_layers
  # The file keeps sliding_window and max_window_layers when they are off.
  window = None
  if reader.get('use_sliding_window', bool, False):
    window = reader.get('sliding_window', int)
  first = number
  if window is not None and not reader.values.get('layer_types'):
    first = reader.need('max_window_layers')
  types = [layer_type(i >= first) for i in range(number)]
  return with_layers(reader, config, config.layers[0].rope, window, types)


def _read_qwen2(reader: Reader) -> ModelConfig:
  return dataclasses.replace(_read_qwen(reader), qkv_bias=True, out_bias=False)


def _read_qwen3(reader: Reader) -> ModelConfig:
  reader.need('head_dim')  # 128 by default, whatever hidden_size / heads is
  return dataclasses.replace(_read_qwen(reader), qk_norm=True)


LLAMA = Family(
  'llama',
  'LlamaForCausalLM',
  read=read,
  keys={**RMS, 'attention_bias': 'qkv_bias', 'mlp_bias': 'mlp_bias'},
  weights=WEIGHTS,
)
MISTRAL = Family(
  'mistral',
  'MistralForCausalLM',
  read=read_mistral,
  keys={**RMS, **WINDOW},
  weights=WEIGHTS,
  absent={'num_key_value_heads': 8, 'sliding_window': 4096},
)
_QWEN_ABSENT = {'num_key_value_heads': 32, 'sliding_window': 4096}
QWEN2 = Family(
  'qwen2',
  'Qwen2ForCausalLM',
  read=_read_qwen2,
  keys=QWEN,
  weights=WEIGHTS,
  absent=_QWEN_ABSENT,
)
QWEN3 = Family(
  'qwen3',
  'Qwen3ForCausalLM',
  read=_read_qwen3,
  keys={**QWEN, 'attention_bias': 'qkv_bias'},
  weights=WEIGHTS,
  absent=_QWEN_ABSENT,
)
