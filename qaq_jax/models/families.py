"""Where each parameter of ours stands in the checkpoint of each family.

One table per family: our parameter name -> (tensor name, transform). A
transform knows the tensor's shape, how to read any block of our parameter from
the file without touching the rest, and how to write it back.
"""

import dataclasses
import re
from collections.abc import Callable

import numpy as np

from qaq_jax.models.config import ModelConfig

Index = tuple[slice, ...]


def _bounds(piece: slice, size: int) -> tuple[int, int]:
  return piece.start or 0, size if piece.stop is None else piece.stop


@dataclasses.dataclass(frozen=True)
class Transform:
  """A named, invertible change of layout between a tensor and our parameter.

  Attributes:
    name: for messages.
    shape: (our shape, config) -> the tensor's shape.
    read: (tensor slicer, index into ours, our shape) -> that block of ours.
    write: ours -> the tensor, or this part of it.
    part: which third of a fused tensor this is; None where it isn't fused.
  """

  name: str
  shape: Callable
  read: Callable
  write: Callable
  part: int | None = None


SAME = Transform(
    'same',
    shape=lambda ours, config: ours,
    read=lambda tensor, index, ours: tensor[index],
    write=lambda x: x,
)

TRANSPOSE = Transform(
    'transpose',
    shape=lambda ours, config: ours[::-1],
    read=lambda tensor, index, ours: tensor[index[::-1]].T,
    write=lambda x: x.T,
)


def _read_vocab(tensor, index, ours):
  first, last = _bounds(index[0], ours[0])
  known = tensor.get_shape()[0]
  if first >= known:  # all padding, and safetensors refuses empty slices
    left, right = _bounds(index[1], ours[1])
    return np.zeros((last - first, right - left), np.float32)
  block = tensor[slice(first, min(last, known)), index[1]]
  return np.pad(block, ((0, last - first - len(block)), (0, 0)))


# Rows beyond the vocabulary are padding: zero here, masked in the logits.
VOCAB = Transform(
    'pad_vocabulary',
    shape=lambda ours, config: (config.vocab_size, ours[1]),
    read=_read_vocab,
    write=lambda x: x,  # the caller cuts the padding off
)


def _heads(piece: slice, ours_heads: int, size: int) -> slice:
  first, last = _bounds(piece, ours_heads)
  return slice(first * size, last * size)


def _read_from_rows(tensor, index, ours):
  _, heads, size = ours
  block = tensor[_heads(index[1], heads, size), index[0]]
  return block.reshape(-1, size, block.shape[1]).transpose(2, 0, 1)


# [H K, D] of a linear layer to heads -> [D, H, K].
TO_HEADS = Transform(
    'to_heads',
    shape=lambda ours, config: (ours[1] * ours[2], ours[0]),
    read=_read_from_rows,
    write=lambda x: x.transpose(1, 2, 0).reshape(-1, x.shape[0]),
)


def _read_from_columns(tensor, index, ours):
  heads, size, _ = ours
  block = tensor[index[2], _heads(index[0], heads, size)]
  return block.reshape(block.shape[0], -1, size).transpose(1, 2, 0)


# [D, N K] of the output projection -> [N, K, D].
FROM_HEADS = Transform(
    'from_heads',
    shape=lambda ours, config: (ours[2], ours[0] * ours[1]),
    read=_read_from_columns,
    write=lambda x: x.reshape(-1, x.shape[2]).T,
)

# [N K, D]: GPT-2 stores its matrices input first (Conv1D).
FROM_HEADS_CONV = Transform(
    'from_heads_conv1d',
    shape=lambda ours, config: (ours[0] * ours[1], ours[2]),
    read=lambda tensor, index, ours: tensor[
        _heads(index[0], ours[0], ours[1]), index[2]
    ].reshape(-1, ours[1], _bounds(index[2], ours[2])[1]
              - _bounds(index[2], ours[2])[0]),
    write=lambda x: x.reshape(-1, x.shape[2]),
)

HEAD_BIAS = Transform(
    'bias_of_heads',
    shape=lambda ours, config: (ours[0] * ours[1],),
    read=lambda tensor, index, ours: tensor[
        (_heads(index[0], ours[0], ours[1]),)
    ].reshape(-1, ours[1]),
    write=lambda x: x.reshape(-1),
)


def _fused(part: int) -> Transform:
  """[D, 3 N K], query then key then value, one third of it -> [D, N, K]."""

  def read(tensor, index, ours):
    _, heads, size = ours
    piece = _heads(index[1], heads, size)
    offset = part * heads * size
    block = tensor[index[0], slice(piece.start + offset, piece.stop + offset)]
    return block.reshape(block.shape[0], -1, size)

  return Transform(
      f'third_{part}_to_heads_conv1d',
      shape=lambda ours, config: (ours[0], 3 * ours[1] * ours[2]),
      read=read,
      write=lambda x: x.reshape(x.shape[0], -1),
      part=part,
  )


def _fused_bias(part: int) -> Transform:
  def read(tensor, index, ours):
    heads, size = ours
    piece = _heads(index[0], heads, size)
    offset = part * heads * size
    block = tensor[(slice(piece.start + offset, piece.stop + offset),)]
    return block.reshape(-1, size)

  return Transform(
      f'third_{part}_bias_of_heads',
      shape=lambda ours, config: (3 * ours[0] * ours[1],),
      read=read,
      write=lambda x: x.reshape(-1),
      part=part,
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
        f'{n}_bias': (f'{_LAYER}self_attn.{n}_proj.bias', HEAD_BIAS)
        for n in 'qkv'
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
            f'{_ROUTED}experts.{{expert}}.{n}_proj.weight', TRANSPOSE
        )
        for n in ('gate', 'up', 'down')
    },
}
_BLOCK_SPARSE = _LAYER + 'block_sparse_moe.'
_MIXTRAL = _LLAMA | {
    'router_kernel': (_BLOCK_SPARSE + 'gate.weight', TRANSPOSE),
    **{
        f'experts_{n}_kernel': (
            f'{_BLOCK_SPARSE}experts.{{expert}}.{w}.weight', TRANSPOSE
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
        f'{n}_kernel': (_BLOCK + 'attn.c_attn.weight', _fused(i))
        for i, n in enumerate('qkv')
    },
    **{
        f'{n}_bias': (_BLOCK + 'attn.c_attn.bias', _fused_bias(i))
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
    skipped: patterns of tensors that are no parameters of the language model.
  """

  weights: dict[str, tuple[str, Transform]]
  architecture: str
  renames: tuple[tuple[str, str], ...] = (
      (r'^(?=layers\.|embed_tokens\.|norm\.)', 'model.'),
  )
  skipped: tuple[str, ...] = (r'(^|\.)rotary_emb\.inv_freq$',)

  def canonical(self, name: str) -> str:
    """Returns the name that the table uses for a tensor of a file."""
    for pattern, replacement in self.renames:
      name = re.sub(pattern, replacement, name)
    return name

  def is_skipped(self, name: str) -> bool:
    """Whether the tensor is a known buffer."""
    return any(re.search(pattern, name) for pattern in self.skipped)


FAMILIES = {
    'llama': Family(_LLAMA, 'LlamaForCausalLM'),
    'mistral': Family(_LLAMA, 'MistralForCausalLM'),
    'qwen2': Family(_LLAMA, 'Qwen2ForCausalLM'),
    'mixtral': Family(_MIXTRAL, 'MixtralForCausalLM'),
    'qwen3': Family(_LLAMA, 'Qwen3ForCausalLM'),
    'qwen3_moe': Family(_QWEN3_MOE, 'Qwen3MoeForCausalLM'),
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
