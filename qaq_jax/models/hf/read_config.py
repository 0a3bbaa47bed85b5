"""Reads config.json of every supported family into a ModelConfig.

Where a key is optional here, real files leave it out and the value is that of
the family's own configuration class; all else must be in the file.
"""

from collections.abc import Mapping

from qaq_jax.models.config import ModelConfig
from qaq_jax.models.hf import expert_families, families
from qaq_jax.models.hf.reader import Reader

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
  'mixtral': {'num_key_value_heads': 8},
  'qwen2': {'num_key_value_heads': 32, 'sliding_window': 4096},
  'qwen3': {'num_key_value_heads': 32, 'sliding_window': 4096},
  'qwen3_moe': {'num_key_value_heads': 4, 'sliding_window': 4096},
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
    for key in (
      'eos_token_id',
      'bos_token_id',
      'pad_token_id',
      'quantization_config',
    ):
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


FAMILIES = {
  'gemma': families.gemma,
  'gemma2': families.gemma2,
  'gemma3_text': families.gemma3,
  'gpt2': families.gpt2,
  'llama': families.llama,
  'mistral': families.mistral,
  'mixtral': expert_families.mixtral,
  'qwen2': families.qwen2,
  'qwen3': families.qwen3,
  'qwen3_moe': expert_families.qwen3_moe,
  'starcoder2': families.starcoder2,
}
