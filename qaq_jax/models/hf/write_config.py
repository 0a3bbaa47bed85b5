"""Writes a ModelConfig as config.json of the current generation."""

import numpy as np

from qaq_jax.models.config import ModelConfig
from qaq_jax.models.hf.weights import FAMILIES
from qaq_jax.models.rope import Rope

_ACTIVATIONS = {
  'silu': 'silu',
  'gelu': 'gelu',
  'gelu_tanh': 'gelu_pytorch_tanh',
}


def write_config(config: ModelConfig, dtype) -> dict:
  """Returns config.json as transformers 5 writes it, weights in `dtype`."""
  eos = config.eos_token_id
  common = {
    'architectures': [FAMILIES[config.family].architecture],
    'model_type': config.family,
    'dtype': np.dtype(dtype).name,
    'vocab_size': config.vocab_size,
    'tie_word_embeddings': config.tie_embeddings,
    'bos_token_id': config.bos_token_id,
    'eos_token_id': list(eos) if isinstance(eos, tuple) else eos,
    'pad_token_id': config.pad_token_id,
  }
  if config.family == 'gpt2':
    return common | {
      'n_embd': config.hidden_size,
      'n_inner': config.intermediate_size,
      'n_layer': config.num_layers,
      'n_head': config.num_heads,
      'n_positions': config.max_positions,
      'layer_norm_epsilon': config.norm_eps,
      'activation_function': {'gelu_tanh': 'gelu_new'}.get(
        config.activation, config.activation
      ),
      'scale_attn_weights': config.query_scale != 1.0,
    }
  common |= {
    'hidden_size': config.hidden_size,
    'intermediate_size': config.intermediate_size,
    'num_hidden_layers': config.num_layers,
    'num_attention_heads': config.num_heads,
    'num_key_value_heads': config.num_kv_heads,
    'head_dim': config.head_dim,
    'max_position_embeddings': config.max_positions,
    'rope_parameters': _rope(config.layers[0].rope),
  }
  activation = _ACTIVATIONS[config.activation]
  if config.family == 'starcoder2':
    return common | {
      'hidden_act': activation,
      'norm_epsilon': config.norm_eps,
      'use_bias': config.qkv_bias,
      'sliding_window': config.layers[0].window,
    }
  common |= {'hidden_act': activation, 'rms_norm_eps': config.norm_eps}
  return common | _OWN_KEYS[config.family](config)


def _rope(rope: Rope) -> dict:
  out = {'rope_type': rope.kind, 'rope_theta': rope.theta}
  if rope.kind != 'default':
    out['factor'] = rope.factor
  if rope.kind in ('llama3', 'yarn'):
    out['original_max_position_embeddings'] = rope.original_max_positions
  if rope.kind == 'llama3':
    out['low_freq_factor'] = rope.low_freq_factor
    out['high_freq_factor'] = rope.high_freq_factor
  if rope.kind == 'yarn':
    out |= {
      'beta_fast': rope.beta_fast,
      'beta_slow': rope.beta_slow,
      'truncate': rope.truncate,
      'attention_factor': rope.attention_factor,
    }
  return out


def _types(config: ModelConfig) -> dict:
  windows = [kind.window for kind in config.layers]
  return {
    'layer_types': [
      'sliding_attention' if w else 'full_attention' for w in windows
    ],
    'sliding_window': max((w for w in windows if w), default=None),
  }


def _llama(config):
  return {'attention_bias': config.qkv_bias, 'mlp_bias': config.mlp_bias}


def _mistral(config):
  return {'sliding_window': config.layers[0].window}


def _qwen2(config):
  types = _types(config)
  return types | {
    'use_sliding_window': types['sliding_window'] is not None,
    'max_window_layers': types['layer_types'].count('full_attention'),
  }


def _qwen3(config):
  return _qwen2(config) | {'attention_bias': config.qkv_bias}


def _mixtral(config):
  return _mistral(config) | {
    'num_local_experts': config.num_experts,
    'num_experts_per_tok': config.experts_per_token,
  }


def _qwen3_moe(config):
  return _qwen3(config) | {
    'num_experts': config.num_experts,
    'num_experts_per_tok': config.experts_per_token,
    'moe_intermediate_size': config.intermediate_size,
    'norm_topk_prob': config.normalized_routing,
    'decoder_sparse_step': 1,
    'mlp_only_layers': [],
  }


def _gemma(config):
  return {'attention_bias': config.qkv_bias}


def _gemma2(config):
  return _types(config) | {
    'hidden_activation': _ACTIVATIONS[config.activation],
    'attention_bias': config.qkv_bias,
    'query_pre_attn_scalar': _scalar(config),
    'attn_logit_softcapping': config.attn_soft_cap,
    'final_logit_softcapping': config.final_soft_cap,
  }


def _scalar(config):
  # transformers wants a whole number where it is one
  value = config.query_scale**-2
  return round(value) if abs(value - round(value)) < 1e-6 else value


def _gemma3(config):
  ropes = {
    'sliding_attention' if k.window else 'full_attention': _rope(k.rope)
    for k in config.layers
  }
  # Both must be there, also where all layers are of one type.
  other = next(iter(ropes.values()))
  for name in ('full_attention', 'sliding_attention'):
    ropes.setdefault(name, other)
  return _gemma2(config) | {'rope_parameters': ropes}


_OWN_KEYS = {
  'llama': _llama,
  'mistral': _mistral,
  'mixtral': _mixtral,
  'qwen2': _qwen2,
  'qwen3': _qwen3,
  'qwen3_moe': _qwen3_moe,
  'gemma': _gemma,
  'gemma2': _gemma2,
  'gemma3_text': _gemma3,
}
