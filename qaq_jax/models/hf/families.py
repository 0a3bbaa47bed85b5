"""What each family's config.json says, as a ModelConfig."""

import dataclasses
from collections.abc import Mapping

from qaq_jax.models.config import LayerKind, ModelConfig
from qaq_jax.models.hf.reader import Reader, read_rope
from qaq_jax.models.rope import Rope


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


def _layers(
  reader: Reader,
  number: int,
  rope: Rope | Mapping[str, Rope],
  window: int | None,
  default_types: list[str],
):
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


def llama(reader: Reader, activation: str | None = None) -> ModelConfig:
  """Llama, and what others change."""
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


def mistral(reader: Reader) -> ModelConfig:
  """Mistral: one window for all layers, or none."""
  config = llama(reader)
  window = reader.get('sliding_window', int)
  kinds = tuple(dataclasses.replace(k, window=window) for k in config.layers)
  return dataclasses.replace(config, layers=kinds)


def _qwen(reader: Reader) -> ModelConfig:
  config = llama(reader)
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


def qwen2(reader: Reader) -> ModelConfig:
  """Qwen2 and Qwen2.5."""
  return dataclasses.replace(_qwen(reader), qkv_bias=True, out_bias=False)


def qwen3(reader: Reader) -> ModelConfig:
  """Qwen3, dense."""
  reader.need('head_dim')  # 128 by default, whatever hidden_size / heads is
  return dataclasses.replace(_qwen(reader), qk_norm=True)


def gemma(reader: Reader) -> ModelConfig:
  """Gemma 1, and what the later ones change."""
  reader.refuse('use_bidirectional_attention', False)
  name = reader.activation(
    'hidden_activation', 'hidden_act', default='gelu_tanh'
  )
  config = llama(reader, activation=name)
  if config.family == 'gemma' and name == 'gelu':
    name = 'gelu_tanh'  # what 'gelu' always meant in Gemma 1 files
  return dataclasses.replace(
    config,
    norm='rms_plus_one',
    activation=name,
    embed_scale=True,
    tie_embeddings=reader.get('tie_word_embeddings', bool, True),
  )


def gemma2(reader: Reader) -> ModelConfig:
  """Gemma 2."""
  config = gemma(reader)
  number = config.num_layers
  types = [
    'full_attention' if i % 2 else 'sliding_attention' for i in range(number)
  ]
  return dataclasses.replace(
    config,
    layers=_layers(
      reader,
      number,
      config.layers[0].rope,
      reader.get('sliding_window', int),
      types,
    ),
    query_scale=reader.need('query_pre_attn_scalar', float) ** -0.5,
    post_norms=True,
    attn_soft_cap=reader.get('attn_logit_softcapping', float),
    final_soft_cap=reader.get('final_logit_softcapping', float),
  )


def gemma3(reader: Reader) -> ModelConfig:
  """Gemma 3, its text model: two rotary embeddings."""
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
      reader,
      sliding,
      reader.get('rope_local_base_freq', float, 1e4),
      longest,
    ),
  }
  values = dict(reader.values, rope_parameters=None, rope_scaling=None)
  config = gemma(Reader(values, reader.origin))
  number = config.num_layers
  period = reader.get('sliding_window_pattern', int, 6)
  types = [
    'sliding_attention' if (i + 1) % period else 'full_attention'
    for i in range(number)
  ]
  return dataclasses.replace(
    config,
    layers=_layers(
      reader, number, ropes, reader.get('sliding_window', int), types
    ),
    query_scale=reader.need('query_pre_attn_scalar', float) ** -0.5,
    post_norms=True,
    qk_norm=True,
    attn_soft_cap=reader.get('attn_logit_softcapping', float),
    final_soft_cap=reader.get('final_logit_softcapping', float),
  )


def starcoder2(reader: Reader) -> ModelConfig:
  """StarCoder2."""
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


def gpt2(reader: Reader) -> ModelConfig:
  """GPT-2, whose keys have names of their own."""
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
