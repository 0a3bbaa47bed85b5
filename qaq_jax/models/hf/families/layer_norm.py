"""Families with layer norms, biases and an MLP without a gate.

StarCoder2, and GPT-2, whose keys and tensors have names of their own.
"""

from qaq_jax.models.config import LayerKind, ModelConfig
from qaq_jax.models.hf.families import llama
from qaq_jax.models.hf.families.family import Family
from qaq_jax.models.hf.reader import Reader
from qaq_jax.models.hf.transforms import (
  FROM_HEADS_CONV,
  SAME,
  TRANSPOSE,
  VOCAB,
  fused,
  fused_bias,
)

_STARCODER2 = {
  **llama.WEIGHTS,
  'final_norm_bias': ('model.norm.bias', SAME),
  'attn_norm_bias': ('input_layernorm.bias', SAME),
  'mlp_norm_bias': ('post_attention_layernorm.bias', SAME),
  'up_kernel': ('mlp.c_fc.weight', TRANSPOSE),
  'up_bias': ('mlp.c_fc.bias', SAME),
  'down_kernel': ('mlp.c_proj.weight', TRANSPOSE),
  'down_bias': ('mlp.c_proj.bias', SAME),
}
_PARTS = tuple(enumerate('qkv'))
_GPT2 = {
  'embedding': ('transformer.wte.weight', VOCAB),
  'position_embedding': ('transformer.wpe.weight', SAME),
  'final_norm_scale': ('transformer.ln_f.weight', SAME),
  'final_norm_bias': ('transformer.ln_f.bias', SAME),
  'head': ('lm_head.weight', VOCAB),
  'attn_norm_scale': ('ln_1.weight', SAME),
  'attn_norm_bias': ('ln_1.bias', SAME),
  'mlp_norm_scale': ('ln_2.weight', SAME),
  'mlp_norm_bias': ('ln_2.bias', SAME),
  **{f'{n}_kernel': ('attn.c_attn.weight', fused(i)) for i, n in _PARTS},
  **{f'{n}_bias': ('attn.c_attn.bias', fused_bias(i)) for i, n in _PARTS},
  'o_kernel': ('attn.c_proj.weight', FROM_HEADS_CONV),
  'o_bias': ('attn.c_proj.bias', SAME),
  'up_kernel': ('mlp.c_fc.weight', SAME),
  'up_bias': ('mlp.c_fc.bias', SAME),
  'down_kernel': ('mlp.c_proj.weight', SAME),
  'down_bias': ('mlp.c_proj.bias', SAME),
}


def _read_starcoder2(reader: Reader) -> ModelConfig:
  reader.refuse('norm_type', 'layer_norm')
  reader.refuse('mlp_type', 'default')
  bias = reader.get('use_bias', bool, True)
  config = ModelConfig(
    **llama.read_sizes(reader),
    norm='layer',
    norm_eps=reader.need('norm_epsilon', float),
    activation=reader.activation('hidden_act'),
    gated_mlp=False,
    qkv_bias=bias,
    out_bias=bias,
    mlp_bias=bias,
    tie_embeddings=reader.get('tie_word_embeddings', bool, True),
  )
  return llama.with_window(config, reader.get('sliding_window', int))


def _read_gpt2(reader: Reader) -> ModelConfig:
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
    **llama.read_tokens(reader),
  )


STARCODER2 = Family(
  'starcoder2',
  'Starcoder2ForCausalLM',
  read=_read_starcoder2,
  keys={
    **llama.SIZES,
    'norm_epsilon': 'norm_eps',
    'use_bias': 'qkv_bias',
    **llama.WINDOW,
  },
  weights=_STARCODER2,
  absent={'num_key_value_heads': 2},
)
GPT2 = Family(
  'gpt2',
  'GPT2LMHeadModel',
  read=_read_gpt2,
  keys={
    'n_embd': 'hidden_size',
    'n_inner': 'intermediate_size',
    'n_layer': 'num_layers',
    'n_head': 'num_heads',
    'n_positions': 'max_positions',
    'layer_norm_epsilon': 'norm_eps',
    'activation_function': lambda c: c.activation.replace('_tanh', '_new'),
    'scale_attn_weights': lambda c: c.query_scale != 1.0,
  },
  weights=_GPT2,
  layer='transformer.h.{}.',
  renames=((r'^(?=(h\.\d+|wte|wpe|ln_f)\.)', 'transformer.'),),
  skipped=(r'(^|\.)h\.\d+\.attn\.(bias|masked_bias)$',),
)
