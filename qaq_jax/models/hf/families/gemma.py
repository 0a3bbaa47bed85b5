"""Gemma 1, 2 and 3, also CodeGemma."""

import dataclasses
from collections.abc import Mapping

from qaq_jax.models.config import ModelConfig
from qaq_jax.models.hf.families import llama
from qaq_jax.models.hf.families.family import Family
from qaq_jax.models.hf.families.rope import read_rope, write_rope
from qaq_jax.models.hf.reader import Reader
from qaq_jax.models.hf.transforms import SAME

_WEIGHTS = {
  **llama.WEIGHTS,
  'post_attn_norm_scale': ('post_attention_layernorm.weight', SAME),
  'mlp_norm_scale': ('pre_feedforward_layernorm.weight', SAME),
  'post_mlp_norm_scale': ('post_feedforward_layernorm.weight', SAME),
}


def _read(reader: Reader) -> ModelConfig:
  """Gemma 1, and what the later ones change."""
  reader.refuse('use_bidirectional_attention', False)
  name = reader.activation(
    'hidden_activation', 'hidden_act', default='gelu_tanh'
  )
  config = llama.read(reader, activation=name)
  if config.family == 'gemma' and name == 'gelu':
    name = 'gelu_tanh'  # what 'gelu' always meant in Gemma 1 files
  return dataclasses.replace(
    config,
    norm='rms_plus_one',
    activation=name,
    embed_scale=True,
    tie_embeddings=reader.get('tie_word_embeddings', bool, True),
  )


def _read_gemma2(reader: Reader) -> ModelConfig:
  config = _read(reader)
  return _later(reader, config, config.layers[0].rope, period=2)


def _read_gemma3(reader: Reader) -> ModelConfig:
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
  config = _read(Reader(values, reader.origin))
  period = reader.get('sliding_window_pattern', int, 6)
  config = _later(reader, config, ropes, period=period)
  return dataclasses.replace(config, qk_norm=True)


def _later(reader, config, rope, period: int) -> ModelConfig:
  """What Gemma 2 and 3 share; one layer of each period sees all."""
  types = [llama.layer_type((i + 1) % period) for i in range(config.num_layers)]
  window = reader.get('sliding_window', int)
  return dataclasses.replace(
    llama.with_layers(reader, config, rope, window, types),
    query_scale=reader.need('query_pre_attn_scalar', float) ** -0.5,
    post_norms=True,
    attn_soft_cap=reader.get('attn_logit_softcapping', float),
    final_soft_cap=reader.get('final_logit_softcapping', float),
  )


def _scalar(config: ModelConfig) -> float:
  # transformers wants a whole number where it is one
  value = config.query_scale**-2
  return round(value) if abs(value - round(value)) < 1e-6 else value


def _ropes(config: ModelConfig) -> dict:
  ropes = {
    llama.layer_type(k.window): write_rope(k.rope) for k in config.layers
  }
  # Both must be there, also where all layers are of one type.
  other = next(iter(ropes.values()))
  for name in ('full_attention', 'sliding_attention'):
    ropes.setdefault(name, other)
  return ropes


GEMMA = Family(
  'gemma',
  'GemmaForCausalLM',
  read=_read,
  keys={**llama.RMS, 'attention_bias': 'qkv_bias'},
  weights=llama.WEIGHTS,
  absent={'num_key_value_heads': 16},
)
GEMMA2 = Family(
  'gemma2',
  'Gemma2ForCausalLM',
  read=_read_gemma2,
  keys={
    **llama.RMS,
    **llama.WINDOWS,
    'hidden_activation': llama.RMS['hidden_act'],
    'attention_bias': 'qkv_bias',
    'query_pre_attn_scalar': _scalar,
    'attn_logit_softcapping': 'attn_soft_cap',
    'final_logit_softcapping': 'final_soft_cap',
  },
  weights=_WEIGHTS,
  absent={'num_key_value_heads': 4, 'sliding_window': 4096},
)
GEMMA3 = Family(
  'gemma3_text',
  'Gemma3ForCausalLM',
  read=_read_gemma3,
  keys={**GEMMA2.keys, 'rope_parameters': _ropes},
  weights=_WEIGHTS,
  absent=GEMMA2.absent,
  # The picture half is left aside; the text model is complete. Its section
  # leaves out what equals the configuration class.
  wrapper='gemma3',
  section_absent={
    'vocab_size': 262_208,
    'num_attention_heads': 8,
    'head_dim': 256,
    'max_position_embeddings': 131_072,
    'rms_norm_eps': 1e-6,
    'query_pre_attn_scalar': 256,
  },
  renames=(
    (r'^language_model\.(?=model\.|lm_head\.)', ''),
    (r'^model\.language_model\.', 'model.'),
    *llama.LLAMA.renames,
  ),
  skipped=(
    r'(^|\.)rotary_emb(_local)?\.inv_freq$',
    # the picture half of the multimodal checkpoints
    r'^(model\.)?(vision_tower|multi_modal_projector)\.',
  ),
)
