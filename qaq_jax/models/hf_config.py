"""Reads config.json of every supported family into a ModelConfig.

Where a key is optional here, real files leave it out and the value is that of
the family's own configuration class; all else must be in the file.
"""

import dataclasses
from collections.abc import Mapping

from qaq_jax.models.config import LayerKind, ModelConfig
from qaq_jax.models.config_reader import Reader, read_rope
from qaq_jax.models.rope import Rope

_GEMMA3_DEFAULTS = {
    'vocab_size': 262_208,
    'num_attention_heads': 8,
    'num_key_value_heads': 4,
    'head_dim': 256,
    'max_position_embeddings': 131_072,
    'rms_norm_eps': 1e-6,
    'query_pre_attn_scalar': 256,
    'sliding_window': 4096,
}

# What a key that is not in the file at all means; null in the file stays null
# (no window; as many key-value heads as query heads).
_ABSENT = {
    'gemma': {'num_key_value_heads': 16},
    'gemma2': {'num_key_value_heads': 4, 'sliding_window': 4096},
    'gemma3_text': {'num_key_value_heads': 4, 'sliding_window': 4096},
    'mistral': {'num_key_value_heads': 8, 'sliding_window': 4096},
    'qwen2': {'num_key_value_heads': 32, 'sliding_window': 4096},
    'qwen3': {'num_key_value_heads': 32, 'sliding_window': 4096},
    'starcoder2': {'num_key_value_heads': 2},
}


def read_config(config: Mapping, origin: str) -> ModelConfig:
  """See `config.from_hf`."""
  family = config.get('model_type')
  if family == 'gemma3' and isinstance(config.get('text_config'), Mapping):
    # The picture half of Gemma 3 is left aside; its text model is complete.
    # Its section leaves out what equals the configuration class.
    outer, config = config, _GEMMA3_DEFAULTS | dict(config['text_config'])
    config['model_type'] = family = 'gemma3_text'
    for key in ('eos_token_id', 'bos_token_id', 'pad_token_id',
                'quantization_config'):
      if key not in config and key in outer:
        config[key] = outer[key]
  if family not in FAMILIES:
    raise ValueError(
        f"{origin}: 'model_type' is {family!r}, which is not supported;"
        f' supported families: {", ".join(sorted(FAMILIES))}'
    )
  config = _ABSENT.get(family, {}) | dict(config)
  reader = Reader(config, origin)
  if config.get('quantization_config') is not None:
    method = dict(config['quantization_config']).get('quant_method', 'unknown')
    raise reader.error(
        'quantization_config',
        f'says the weights are quantised ({method}): use the original'
        ' checkpoint in bfloat16, float16 or float32 instead',
    )
  result = FAMILIES[family](reader)
  _check(result, reader)
  return result


def _check(config: ModelConfig, reader: Reader) -> None:
  if config.num_kv_heads < 1 or config.num_heads % config.num_kv_heads:
    raise reader.error(
        'num_key_value_heads',
        f'is {config.num_kv_heads}, which does not divide the'
        f' {config.num_heads} query heads',
    )
  if config.head_dim % 2 and any(k.rope for k in config.layers):
    raise reader.error('head_dim', f'is {config.head_dim}: rotary needs pairs')
  for name, size in (
      ('vocab_size', config.vocab_size),
      ('hidden_size', config.hidden_size),
      ('num_hidden_layers', config.num_layers),
  ):
    if size < 1:
      raise reader.error(name, f'is {size}, expected at least 1')


def _tokens(reader: Reader) -> dict:
  eos = reader.values.get('eos_token_id')
  return {
      'bos_token_id': reader.values.get('bos_token_id'),
      'eos_token_id': tuple(eos) if isinstance(eos, list) else eos,
      'pad_token_id': reader.values.get('pad_token_id'),
  }


def _one_rope(reader: Reader, max_positions: int) -> Rope:
  values = reader.values
  scaling = values.get('rope_parameters') or values.get('rope_scaling')
  return read_rope(
      reader, scaling, reader.get('rope_theta', float, 10000.0), max_positions
  )


def _layers(reader: Reader, number: int, rope: Rope | Mapping[str, Rope],
            window: int | None, default_types: list[str]):
  """Returns a LayerKind per layer, from `layer_types` or the default."""
  types = reader.values.get('layer_types') or default_types
  if len(types) != number:
    raise reader.error(
        'layer_types', f'has {len(types)} entries for {number} layers'
    )
  kinds = {}
  for name in ('full_attention', 'sliding_attention'):
    kinds[name] = LayerKind(
        window=window if name == 'sliding_attention' else None,
        rope=rope[name] if isinstance(rope, Mapping) else rope,
    )
  unknown = sorted(set(types) - set(kinds))
  if unknown:
    raise reader.error('layer_types', f'has {unknown}, not supported')
  if 'sliding_attention' in types and not window:
    raise reader.error('sliding_window', 'is missing for sliding layers')
  return tuple(kinds[t] for t in types)


def _sizes(reader: Reader) -> dict:
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
  return {
      'family': reader.values['model_type'],
      'vocab_size': reader.need('vocab_size'),
      'hidden_size': hidden,
      'intermediate_size': reader.need('intermediate_size'),
      'num_heads': heads,
      'num_kv_heads': reader.get('num_key_value_heads', int, heads),
      'head_dim': head_dim,
      'max_positions': reader.need('max_position_embeddings'),
      'query_scale': head_dim**-0.5,
      **_tokens(reader),
  }


def _llama(reader: Reader, activation: str | None = None) -> ModelConfig:
  sizes = _sizes(reader)
  number = reader.need('num_hidden_layers')
  rope = _one_rope(reader, sizes['max_positions'])
  bias = reader.get('attention_bias', bool, False)
  return ModelConfig(
      **sizes,
      layers=(LayerKind(rope=rope),) * number,
      norm_eps=reader.need('rms_norm_eps', float),
      activation=activation or reader.activation('hidden_act'),
      qkv_bias=bias,
      out_bias=bias,
      mlp_bias=reader.get('mlp_bias', bool, False),
      tie_embeddings=reader.get('tie_word_embeddings', bool, False),
  )


def _mistral(reader: Reader) -> ModelConfig:
  config = _llama(reader)
  window = reader.get('sliding_window', int)
  kinds = tuple(dataclasses.replace(k, window=window) for k in config.layers)
  return dataclasses.replace(config, layers=kinds)


def _qwen(reader: Reader) -> ModelConfig:
  config = _llama(reader)
  number = config.num_layers
  # The file keeps sliding_window and max_window_layers when they are off.
  window = None
  if reader.get('use_sliding_window', bool, False):
    window = reader.get('sliding_window', int)
  first = number
  if window is not None and not reader.values.get('layer_types'):
    first = reader.need('max_window_layers')
  types = [
      'full_attention' if i < first else 'sliding_attention'
      for i in range(number)
  ]
  layers = _layers(reader, number, config.layers[0].rope, window, types)
  return dataclasses.replace(config, layers=layers)


def _qwen2(reader: Reader) -> ModelConfig:
  return dataclasses.replace(_qwen(reader), qkv_bias=True, out_bias=False)


def _qwen3(reader: Reader) -> ModelConfig:
  reader.need('head_dim')  # 128 by default, whatever hidden_size / heads is
  return dataclasses.replace(_qwen(reader), qk_norm=True)


def _gemma(reader: Reader) -> ModelConfig:
  reader.refuse('use_bidirectional_attention', False)
  name = reader.activation('hidden_activation', 'hidden_act',
                           default='gelu_tanh')
  config = _llama(reader, activation=name)
  if config.family == 'gemma' and name == 'gelu':
    name = 'gelu_tanh'  # what 'gelu' always meant in Gemma 1 files
  return dataclasses.replace(
      config,
      norm='rms_plus_one',
      activation=name,
      embed_scale=True,
      tie_embeddings=reader.get('tie_word_embeddings', bool, True),
  )


def _gemma2(reader: Reader) -> ModelConfig:
  config = _gemma(reader)
  number = config.num_layers
  types = ['full_attention' if i % 2 else 'sliding_attention'
           for i in range(number)]
  return dataclasses.replace(
      config,
      layers=_layers(reader, number, config.layers[0].rope,
                     reader.get('sliding_window', int), types),
      query_scale=reader.need('query_pre_attn_scalar', float) ** -0.5,
      post_norms=True,
      attn_soft_cap=reader.get('attn_logit_softcapping', float),
      final_soft_cap=reader.get('final_logit_softcapping', float),
  )


def _gemma3(reader: Reader) -> ModelConfig:
  scaling = reader.values.get('rope_parameters')
  if isinstance(scaling, Mapping) and 'full_attention' in scaling:
    full, sliding = scaling['full_attention'], scaling.get('sliding_attention')
  else:  # the older generation scales the full layers only
    full, sliding = reader.values.get('rope_scaling'), None
  longest = reader.need('max_position_embeddings')
  ropes = {
      'full_attention': read_rope(
          reader, full, reader.get('rope_theta', float, 1e6), longest
      ),
      'sliding_attention': read_rope(
          reader, sliding, reader.get('rope_local_base_freq', float, 1e4),
          longest,
      ),
  }
  values = dict(reader.values, rope_parameters=None, rope_scaling=None)
  config = _gemma(Reader(values, reader.origin))
  number = config.num_layers
  period = reader.get('sliding_window_pattern', int, 6)
  types = ['sliding_attention' if (i + 1) % period else 'full_attention'
           for i in range(number)]
  return dataclasses.replace(
      config,
      layers=_layers(reader, number, ropes,
                     reader.get('sliding_window', int), types),
      query_scale=reader.need('query_pre_attn_scalar', float) ** -0.5,
      post_norms=True,
      qk_norm=True,
      attn_soft_cap=reader.get('attn_logit_softcapping', float),
      final_soft_cap=reader.get('final_logit_softcapping', float),
  )


def _starcoder2(reader: Reader) -> ModelConfig:
  sizes = _sizes(reader)
  reader.refuse('norm_type', 'layer_norm')
  reader.refuse('mlp_type', 'default')
  rope = _one_rope(reader, sizes['max_positions'])
  kind = LayerKind(reader.get('sliding_window', int), rope)
  bias = reader.get('use_bias', bool, True)
  return ModelConfig(
      **sizes,
      layers=(kind,) * reader.need('num_hidden_layers'),
      norm='layer',
      norm_eps=reader.need('norm_epsilon', float),
      activation=reader.activation('hidden_act'),
      gated_mlp=False,
      qkv_bias=bias,
      out_bias=bias,
      mlp_bias=bias,
      tie_embeddings=reader.get('tie_word_embeddings', bool, True),
  )


def _gpt2(reader: Reader) -> ModelConfig:
  reader.refuse('scale_attn_by_inverse_layer_idx', False)
  reader.refuse('add_cross_attention', False)
  hidden, heads = reader.need('n_embd'), reader.need('n_head')
  if hidden % heads:
    raise reader.error('n_embd', f'is {hidden}, not a multiple of n_head')
  scaled = reader.get('scale_attn_weights', bool, True)
  return ModelConfig(
      family='gpt2',
      vocab_size=reader.need('vocab_size'),
      hidden_size=hidden,
      intermediate_size=reader.get('n_inner', int, 4 * hidden),
      num_heads=heads,
      num_kv_heads=heads,
      head_dim=hidden // heads,
      max_positions=reader.need('n_positions'),
      layers=(LayerKind(),) * reader.need('n_layer'),
      norm='layer',
      norm_eps=reader.need('layer_norm_epsilon', float),
      activation=reader.activation('activation_function'),
      gated_mlp=False,
      query_scale=(hidden // heads) ** -0.5 if scaled else 1.0,
      qkv_bias=True,
      out_bias=True,
      mlp_bias=True,
      learned_positions=reader.need('n_positions'),
      tie_embeddings=reader.get('tie_word_embeddings', bool, True),
      **_tokens(reader),
  )


FAMILIES = {
    'gemma': _gemma,
    'gemma2': _gemma2,
    'gemma3_text': _gemma3,
    'gpt2': _gpt2,
    'llama': _llama,
    'mistral': _mistral,
    'qwen2': _qwen2,
    'qwen3': _qwen3,
    'starcoder2': _starcoder2,
}
