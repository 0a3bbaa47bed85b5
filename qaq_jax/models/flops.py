"""Operations that a model needs, counted from its sizes, never measured.

Products only, real tokens only (padding, and recomputation under `remat`, are
not useful work), causal attention as half of the square. A multiplication and
an addition are two operations. The compiler's own count is not used: XLA's
`cost_analysis` counts the body of a scan once, whatever its length.
"""

import math

from qaq_jax.models import params as params_lib
from qaq_jax.models.config import ModelConfig


def forward_flops(
  config: ModelConfig,
  tokens: int,
  attended: int,
  head_tokens: float | None = None,
) -> tuple[float, float]:
  """Operations of a forward pass: in products with weights, in attention.

  Args:
    config: the config of the model.
    tokens: real tokens.
    attended: sum over sequences of their tokens squared.
    head_tokens: tokens that the head runs over; None: all.

  Returns:
    2 x parameters x tokens, the embedding counting once, as the head; and
    2 products of 2 x heads x head_dim per query and key, half of the square. A
    window lowers the keys of a query to its size.
  """
  specs = params_lib.param_specs(config)
  weights = sum(
    math.prod(spec.shape) * _share_used(config, path[-1])
    for path, spec in specs.items()
    if path[-1].endswith('_kernel')
  )
  head = config.padded_vocab_size * config.hidden_size
  head_tokens = tokens if head_tokens is None else head_tokens
  mean = attended / max(tokens, 1)  # length seen by the average token
  keys = sum(_keys_per_query(mean, kind.window) for kind in config.layers)
  width = config.num_heads * config.head_dim
  products = 2.0 * (weights * tokens + head * head_tokens)
  return products, 4.0 * width * keys * tokens


def _share_used(config, name):
  """Part of a kernel that a token meets: of the experts, those chosen."""
  if params_lib.is_expert(name):
    return config.experts_per_token / config.num_experts
  return 1


def _keys_per_query(length, window):
  """Mean over a sequence's queries; causal, with a window or without."""
  if window is None or window >= length:
    return length / 2
  return window - window * window / (2 * length)


def training_flops(
  config: ModelConfig, tokens: int, attended: int, lora_params: int = 0
) -> float:
  """Operations of forward and backward pass.

  Full: three forward passes' worth, 6 per parameter and token. LoRA: no
  gradient of the frozen weights, 4 per parameter and token (and 6 per adapter
  parameter); attention has no weights and costs three in both cases.

  Args:
    config: the config of the model.
    tokens: real tokens.
    attended: sum over sequences of their tokens squared.
    lora_params: parameters of the adapters; 0: all weights are trained.
  """
  products, attention = forward_flops(config, tokens, attended)
  if lora_params:
    return 2 * products + 6.0 * lora_params * tokens + 3 * attention
  return 3 * (products + attention)
