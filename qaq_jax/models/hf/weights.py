"""Where each parameter of ours stands in the checkpoint of each family.

One table per family: our parameter name -> (tensor name, transform); see
`transforms.py`.
"""

import dataclasses
import re

from qaq_jax.models.config import ModelConfig
from qaq_jax.models.hf.transforms import (
  FROM_HEADS,
  FROM_HEADS_CONV,
  HEAD_BIAS,
  SAME,
  TO_HEADS,
  TRANSPOSE,
  VOCAB,
  Transform,
  fused,
  fused_bias,
)

_LAYER = 'model.layers.{}.'
_LLAMA = {
  'embedding': ('model.embed_tokens.weight', VOCAB),
  'final_norm_scale': ('model.norm.weight', SAME),
  'head': ('lm_head.weight', VOCAB),
  'attn_norm_scale': (_LAYER + 'input_layernorm.weight', SAME),
  'mlp_norm_scale': (_LAYER + 'post_attention_layernorm.weight', SAME),
  'q_norm_scale': (_LAYER + 'self_attn.q_norm.weight', SAME),
  'k_norm_scale': (_LAYER + 'self_attn.k_norm.weight', SAME),
  'o_kernel': (_LAYER + 'self_attn.o_proj.weight', FROM_HEADS),
  'o_bias': (_LAYER + 'self_attn.o_proj.bias', SAME),
  **{
    f'{n}_kernel': (f'{_LAYER}self_attn.{n}_proj.weight', TO_HEADS)
    for n in 'qkv'
  },
  **{
    f'{n}_bias': (f'{_LAYER}self_attn.{n}_proj.bias', HEAD_BIAS) for n in 'qkv'
  },
  **{
    f'{n}_kernel': (f'{_LAYER}mlp.{n}_proj.weight', TRANSPOSE)
    for n in ('gate', 'up', 'down')
  },
  **{
    f'{n}_bias': (f'{_LAYER}mlp.{n}_proj.bias', SAME)
    for n in ('gate', 'up', 'down')
  },
}
_ROUTED = _LAYER + 'mlp.'
_QWEN3_MOE = _LLAMA | {
  'router_kernel': (_ROUTED + 'gate.weight', TRANSPOSE),
  **{
    f'experts_{n}_kernel': (
      f'{_ROUTED}experts.{{expert}}.{n}_proj.weight',
      TRANSPOSE,
    )
    for n in ('gate', 'up', 'down')
  },
}
_BLOCK_SPARSE = _LAYER + 'block_sparse_moe.'
_MIXTRAL = _LLAMA | {
  'router_kernel': (_BLOCK_SPARSE + 'gate.weight', TRANSPOSE),
  **{
    f'experts_{n}_kernel': (
      f'{_BLOCK_SPARSE}experts.{{expert}}.{w}.weight',
      TRANSPOSE,
    )
    for n, w in (('gate', 'w1'), ('up', 'w3'), ('down', 'w2'))
  },
}
_GEMMA2 = _LLAMA | {
  'post_attn_norm_scale': (_LAYER + 'post_attention_layernorm.weight', SAME),
  'mlp_norm_scale': (_LAYER + 'pre_feedforward_layernorm.weight', SAME),
  'post_mlp_norm_scale': (_LAYER + 'post_feedforward_layernorm.weight', SAME),
}
_STARCODER2 = _LLAMA | {
  'final_norm_bias': ('model.norm.bias', SAME),
  'attn_norm_bias': (_LAYER + 'input_layernorm.bias', SAME),
  'mlp_norm_bias': (_LAYER + 'post_attention_layernorm.bias', SAME),
  'up_kernel': (_LAYER + 'mlp.c_fc.weight', TRANSPOSE),
  'up_bias': (_LAYER + 'mlp.c_fc.bias', SAME),
  'down_kernel': (_LAYER + 'mlp.c_proj.weight', TRANSPOSE),
  'down_bias': (_LAYER + 'mlp.c_proj.bias', SAME),
}
_BLOCK = 'transformer.h.{}.'
_GPT2 = {
  'embedding': ('transformer.wte.weight', VOCAB),
  'position_embedding': ('transformer.wpe.weight', SAME),
  'final_norm_scale': ('transformer.ln_f.weight', SAME),
  'final_norm_bias': ('transformer.ln_f.bias', SAME),
  'head': ('lm_head.weight', VOCAB),
  'attn_norm_scale': (_BLOCK + 'ln_1.weight', SAME),
  'attn_norm_bias': (_BLOCK + 'ln_1.bias', SAME),
  'mlp_norm_scale': (_BLOCK + 'ln_2.weight', SAME),
  'mlp_norm_bias': (_BLOCK + 'ln_2.bias', SAME),
  **{
    f'{n}_kernel': (_BLOCK + 'attn.c_attn.weight', fused(i))
    for i, n in enumerate('qkv')
  },
  **{
    f'{n}_bias': (_BLOCK + 'attn.c_attn.bias', fused_bias(i))
    for i, n in enumerate('qkv')
  },
  'o_kernel': (_BLOCK + 'attn.c_proj.weight', FROM_HEADS_CONV),
  'o_bias': (_BLOCK + 'attn.c_proj.bias', SAME),
  'up_kernel': (_BLOCK + 'mlp.c_fc.weight', SAME),
  'up_bias': (_BLOCK + 'mlp.c_fc.bias', SAME),
  'down_kernel': (_BLOCK + 'mlp.c_proj.weight', SAME),
  'down_bias': (_BLOCK + 'mlp.c_proj.bias', SAME),
}


@dataclasses.dataclass(frozen=True)
class Family:
  """How a family's checkpoints are laid out.

  Attributes:
    weights: our parameter name -> (tensor name, transform); `{}` is the layer,
      `{expert}` the expert, each of which has a tensor of its own.
    architecture: class name that transformers wants in config.json.
    renames: (pattern, replacement) from other published layouts to this one.
    merged: (pattern, replacements) of tensors [E, parts x rows, columns] that
      hold all experts of a layer: a replacement for each part, with the expert
      as `{expert}`. transformers 5 saves such where it is told to.
    skipped: patterns of tensors that are no parameters of the language model.
  """

  weights: dict[str, tuple[str, Transform]]
  architecture: str
  renames: tuple[tuple[str, str], ...] = (
    (r'^(?=layers\.|embed_tokens\.|norm\.)', 'model.'),
  )
  skipped: tuple[str, ...] = (r'(^|\.)rotary_emb\.inv_freq$',)
  merged: tuple[tuple[str, tuple[str, ...]], ...] = ()

  def canonical(self, name: str) -> str:
    """Returns the name that the table uses for a tensor of a file."""
    for pattern, replacement in self.renames:
      name = re.sub(pattern, replacement, name)
    return name

  def parts(self, canonical: str) -> tuple[str, ...]:
    """Returns the templates of the tensors that one of all experts stands for.

    Each has an `{expert}`; () if the tensor is a single one.
    """
    for pattern, replacements in self.merged:
      match = re.search(pattern, canonical)
      if match:
        return tuple(match.expand(r) for r in replacements)
    return ()

  def is_skipped(self, name: str) -> bool:
    """Whether the tensor is a known buffer."""
    return any(re.search(pattern, name) for pattern in self.skipped)


FAMILIES = {
  'llama': Family(_LLAMA, 'LlamaForCausalLM'),
  'mistral': Family(_LLAMA, 'MistralForCausalLM'),
  'qwen2': Family(_LLAMA, 'Qwen2ForCausalLM'),
  'mixtral': Family(
    _MIXTRAL,
    'MixtralForCausalLM',
    renames=(
      (r'^(?=layers\.|embed_tokens\.|norm\.)', 'model.'),
      (r'(layers\.\d+\.)mlp\.', r'\1block_sparse_moe.'),
    ),
    merged=(
      (
        r'^(.*experts)\.gate_up_proj$',
        (r'\1.{expert}.w1.weight', r'\1.{expert}.w3.weight'),
      ),
      (r'^(.*experts)\.down_proj$', (r'\1.{expert}.w2.weight',)),
    ),
  ),
  'qwen3': Family(_LLAMA, 'Qwen3ForCausalLM'),
  'qwen3_moe': Family(
    _QWEN3_MOE,
    'Qwen3MoeForCausalLM',
    merged=(
      (
        r'^(.*experts)\.gate_up_proj$',
        (r'\1.{expert}.gate_proj.weight', r'\1.{expert}.up_proj.weight'),
      ),
      (r'^(.*experts)\.down_proj$', (r'\1.{expert}.down_proj.weight',)),
    ),
  ),
  'gemma': Family(_LLAMA, 'GemmaForCausalLM'),
  'gemma2': Family(_GEMMA2, 'Gemma2ForCausalLM'),
  'gemma3_text': Family(
    _GEMMA2,
    'Gemma3ForCausalLM',
    renames=(
      (r'^language_model\.(?=model\.|lm_head\.)', ''),
      (r'^model\.language_model\.', 'model.'),
      (r'^(?=layers\.|embed_tokens\.|norm\.)', 'model.'),
    ),
    skipped=(
      r'(^|\.)rotary_emb(_local)?\.inv_freq$',
      # the picture half of the multimodal checkpoints
      r'^(model\.)?(vision_tower|multi_modal_projector)\.',
    ),
  ),
  'starcoder2': Family(_STARCODER2, 'Starcoder2ForCausalLM'),
  'gpt2': Family(
    _GPT2,
    'GPT2LMHeadModel',
    renames=((r'^(?=(h\.\d+|wte|wpe|ln_f)\.)', 'transformer.'),),
    skipped=(r'(^|\.)h\.\d+\.attn\.(bias|masked_bias)$',),
  ),
}


def tensor_of(config: ModelConfig, path: tuple) -> tuple[str, Transform]:
  """Returns (tensor name template, transform) of a parameter path."""
  return FAMILIES[config.family].weights[path[-1]]
