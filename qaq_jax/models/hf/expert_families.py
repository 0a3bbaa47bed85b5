"""What config.json of a mixture of experts says, as a ModelConfig."""

import dataclasses

from qaq_jax.models.config import ModelConfig
from qaq_jax.models.hf import families
from qaq_jax.models.hf.reader import Reader


def mixtral(reader: Reader) -> ModelConfig:
  """Mixtral: Mistral with experts, whose weights sum to one."""
  config = families.mistral(reader)
  return dataclasses.replace(
    config,
    **_experts(reader, 'num_local_experts', config.intermediate_size),
    normalized_routing=True,
  )


def qwen3_moe(reader: Reader) -> ModelConfig:
  """Qwen3-MoE, also Qwen3-Coder-30B-A3B: Qwen3 with experts in every layer."""
  # Layers with one plain MLP among the others would need parameters of their
  # own; no published model has any.
  reader.refuse('decoder_sparse_step', 1)
  reader.refuse('mlp_only_layers', [])
  number_key = 'num_experts'
  if number_key not in reader.values:  # as transformers 5 writes it
    number_key = 'num_local_experts'
  config = families.llama(reader)
  window = _window(reader, config.num_layers)
  return dataclasses.replace(
    config,
    **_experts(reader, number_key, reader.need('moe_intermediate_size')),
    normalized_routing=reader.get('norm_topk_prob', bool, False),
    qk_norm=True,
    layers=tuple(dataclasses.replace(k, window=window) for k in config.layers),
  )


def _window(reader: Reader, number: int) -> int | None:
  """Returns the window of Qwen3-MoE, which all layers have, or none.

  Unlike the dense Qwen families, transformers reads neither
  `max_window_layers` nor `layer_types` for it: a file whose `layer_types` mean
  something else is refused.
  """
  window = None
  if reader.get('use_sliding_window', bool, False):
    window = reader.get('sliding_window', int)
  kind = 'sliding_attention' if window else 'full_attention'
  if reader.values.get('layer_types') not in (None, [kind] * number):
    raise reader.error(
      'layer_types',
      f'is not {kind!r} {number} times: all layers of this'
      " family have the window that 'sliding_window' says where"
      " 'use_sliding_window' is true",
    )
  return window


def _experts(reader: Reader, number_key: str, width: int) -> dict:
  """Returns the fields of a mixture of experts."""
  reader.refuse('mlp_bias', False)
  number = reader.need(number_key)
  chosen = reader.need('num_experts_per_tok')
  if not 1 <= chosen <= number:
    raise reader.error(
      'num_experts_per_tok', f'is {chosen}, of {number} experts'
    )
  return {
    'num_experts': number,
    'experts_per_token': chosen,
    'intermediate_size': width,
  }
