"""Mixtures of experts: Mixtral and Qwen3-MoE."""

import dataclasses

from qaq_jax.models.config import ModelConfig
from qaq_jax.models.hf.families import llama
from qaq_jax.models.hf.families.family import Family
from qaq_jax.models.hf.reader import Reader
from qaq_jax.models.hf.transforms import TRANSPOSE


def _read_mixtral(reader: Reader) -> ModelConfig:
  """Mistral with experts, whose weights sum to one."""
  config = llama.read_mistral(reader)
  return dataclasses.replace(
    config,
    **_experts(reader, 'num_local_experts', config.intermediate_size),
    normalized_routing=True,
  )


def _read_qwen3_moe(reader: Reader) -> ModelConfig:
  """Qwen3 with experts in every layer, also Qwen3-Coder-30B-A3B."""
  # Layers with one plain MLP among the others would need parameters of their
  # own; no published model has any.
  reader.refuse('decoder_sparse_step', 1)
  reader.refuse('mlp_only_layers', [])
  number_key = 'num_experts'
  if number_key not in reader.values:  # as transformers 5 writes it
    number_key = 'num_local_experts'
  config = llama.read(reader)
  config = llama.with_window(config, _window(reader, config.num_layers))
  return dataclasses.replace(
    config,
    **_experts(reader, number_key, reader.need('moe_intermediate_size')),
    normalized_routing=reader.get('norm_topk_prob', bool, False),
    qk_norm=True,
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
  kind = llama.layer_type(window)
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


def _layout(block: str, names: tuple[str, str, str]) -> dict:
  """Returns `weights` with experts in `block` of a layer, and `merged`.

  Args:
    block: where the router and the experts are.
    names: names of the gate, up and down projection.
  """
  gate, up, down = (f'{{expert}}.{name}.weight' for name in names)
  return {
    'weights': {
      **llama.WEIGHTS,
      'router_kernel': (f'{block}.gate.weight', TRANSPOSE),
      **{
        f'experts_{ours}_kernel': (f'{block}.experts.{name}', TRANSPOSE)
        for ours, name in zip(llama.MLP, (gate, up, down), strict=True)
      },
    },
    'merged': (
      (r'^(.*experts)\.gate_up_proj$', (rf'\1.{gate}', rf'\1.{up}')),
      (r'^(.*experts)\.down_proj$', (rf'\1.{down}',)),
    ),
  }


MIXTRAL = Family(
  'mixtral',
  'MixtralForCausalLM',
  read=_read_mixtral,
  keys={
    **llama.MISTRAL.keys,
    'num_local_experts': 'num_experts',
    'num_experts_per_tok': 'experts_per_token',
  },
  **_layout('block_sparse_moe', ('w1', 'w3', 'w2')),
  absent={'num_key_value_heads': 8},
  renames=(
    *llama.LLAMA.renames,
    (r'(layers\.\d+\.)mlp\.', r'\1block_sparse_moe.'),
  ),
)
QWEN3_MOE = Family(
  'qwen3_moe',
  'Qwen3MoeForCausalLM',
  read=_read_qwen3_moe,
  keys={
    **llama.QWEN3.keys,
    'num_experts': 'num_experts',
    'num_experts_per_tok': 'experts_per_token',
    'moe_intermediate_size': 'intermediate_size',
    'norm_topk_prob': 'normalized_routing',
    'decoder_sparse_step': lambda c: 1,
    'mlp_only_layers': lambda c: [],
  },
  **_layout('mlp', ('gate_proj', 'up_proj', 'down_proj')),
  absent={'num_key_value_heads': 4, 'sliding_window': 4096},
)
