"""Bytes per chip, estimated from sizes alone: for chips without a compiler
here, and to propose meshes before one is compiled.

The working set of a step is what lives at its fullest moment: the residual
stream, one layer's intermediate arrays, one layer's gathered weights, one chunk
of logits. Against the compiled programs of the shipped recipes it is within a
third (docs/planning.md), so what it proposes is compiled before it is believed.
"""

import dataclasses
import math

from qaq_jax.models import params as params_lib
from qaq_jax.models import sharding
from qaq_jax.models.config import ModelConfig
from qaq_jax.models.hf import stacking
from qaq_jax.models.options import LoraOptions
from qaq_jax.scoring import head as head_lib


@dataclasses.dataclass(frozen=True)
class Mesh:
  """Sizes of the mesh axes."""

  data: int = 1
  fsdp: int = 1
  tensor: int = 1

  @property
  def shape(self) -> dict[str, int]:
    """Axis -> size, as of a jax mesh."""
    return dataclasses.asdict(self)

  @property
  def rows(self) -> int:
    """Parts that rows are split into."""
    return self.data * self.fsdp

  @property
  def number(self) -> int:
    """Devices."""
    return self.data * self.fsdp * self.tensor

  def __str__(self):
    sizes = [f'{k}={n}' for k, n in self.shape.items() if n > 1]
    return ', '.join(sizes) or 'one device'


def meshes(config: ModelConfig, number: int) -> list[Mesh]:
  """Every mesh of that many devices that the model can be split over."""
  out = []
  for tensor in _divisors(number):
    for fsdp in _divisors(number // tensor):
      mesh = Mesh(number // tensor // fsdp, fsdp, tensor)
      try:
        sharding.ShardingRules().resolve(config, mesh)
      except ValueError:  # query heads don't divide
        continue
      out.append(mesh)
  return out


def _divisors(n):
  return [i for i in range(1, n + 1) if n % i == 0]


def parameters(config: ModelConfig) -> dict[str, int]:
  """Numbers in the checkpoint, and of those the ones that a token meets.

  No padding, a tied head once; of the experts, as many as a token goes to.
  """
  shapes = stacking.expected_tensors(config)
  whole = sum(math.prod(shape) for shape in shapes.values())
  idle = sum(
    math.prod(spec.shape)
    // config.num_experts
    * (config.num_experts - config.experts_per_token)
    for path, spec in params_lib.param_specs(config).items()
    if params_lib.is_expert(path[-1])
  )
  return {'parameters': whole, 'active_parameters': whole - idle}


def param_bytes(
  config: ModelConfig,
  mesh: Mesh,
  itemsize: int,
  gathered: bool = False,
  kernel_itemsize: int | None = None,
  lora: LoraOptions | None = None,
) -> int:
  """Bytes of the parameters on one device.

  Args:
    config: the config of the model.
    mesh: it is split over.
    itemsize: bytes of a number.
    gathered: count one layer alone, with its split along fsdp undone.
    kernel_itemsize: the bytes of a number of the layers' kernels, where they
      are quantised.
    lora: adapters besides, in float32.
  """
  rules = sharding.ShardingRules().resolve(config, mesh)
  total = 0
  for path, spec in params_lib.param_specs(config, lora).items():
    size = math.prod(spec.shape)
    if gathered:
      if path[0] != 'stacks':
        continue
      size //= config.num_layers
    for axis in spec.axes:
      name = None if axis is None else getattr(rules, axis)
      if name is not None and not (gathered and axis == 'embed'):
        size //= mesh.shape[name]
    own = kernel_itemsize if path[-1].endswith('_kernel') else None
    if '_lora_' in path[-1]:
      own = 4
    total += size * (own or itemsize)
  return total


def scoring_bytes(
  config: ModelConfig,
  mesh: Mesh,
  tokens: int,
  itemsize: int = 2,
  kernel_itemsize: int | None = None,
) -> int:
  """Bytes per device of scoring with `tokens` on each part of the rows."""
  chunk = head_lib.HeadChunks.for_platform('gpu')
  logits = (
    4
    * min(chunk.rows, tokens)
    * min(chunk.vocab, config.padded_vocab_size // mesh.tensor)
  )
  return (
    param_bytes(config, mesh, itemsize, kernel_itemsize=kernel_itemsize)
    + tokens * token_bytes(config, mesh, itemsize)
    + logits
    + (_gathered(config, mesh, itemsize) if mesh.fsdp > 1 else 0)
  )


def training_bytes(
  config: ModelConfig,
  mesh: Mesh,
  tokens: int,
  itemsize: int = 2,
  lora: LoraOptions | None = None,
) -> int:
  """Bytes per device of an AdamW update, float32 masters.

  Of what is trained: masters, two moments, the summed and the new gradient;
  what is frozen once. With recomputation the residual stream before every layer
  and one layer's intermediates twice.
  """
  frozen = param_bytes(config, mesh, itemsize) if lora else 0
  stream = tokens * config.num_layers * config.hidden_size * itemsize
  return (
    frozen
    + 5 * trained_bytes(config, mesh, lora)
    + stream
    + 3 * tokens * token_bytes(config, mesh, itemsize)
    + 2 * _gathered(config, mesh, itemsize)
  )


def trained_bytes(
  config: ModelConfig, mesh: Mesh, lora: LoraOptions | None
) -> int:
  """Bytes on one device of the float32 masters of what is trained."""
  if lora is None:
    return param_bytes(config, mesh, 4)
  return param_bytes(config, mesh, 4, lora=lora) - param_bytes(config, mesh, 4)


def adapters(config: ModelConfig, lora: LoraOptions | None) -> int:
  """Parameters of the adapters, over all devices; 0 where there are none."""
  return trained_bytes(config, Mesh(), lora) // 4 if lora else 0


def token_bytes(config: ModelConfig, mesh: Mesh, itemsize: int) -> int:
  """Bytes on one device of a token's arrays within a layer."""
  heads = config.num_heads + 2 * config.num_kv_heads
  if config.num_experts:  # a copy of the token for each of its experts
    mlp = 2 * (config.hidden_size + config.intermediate_size)
    mlp *= config.experts_per_token
  else:
    mlp = 2 * config.intermediate_size // mesh.tensor
  return itemsize * (
    4 * config.hidden_size + heads * config.head_dim // mesh.tensor + mlp
  )


def _gathered(config, mesh, itemsize):
  """One layer, and the largest table, whole along fsdp."""
  table = config.padded_vocab_size * config.hidden_size // mesh.tensor
  return param_bytes(config, mesh, itemsize, gathered=True) + table * itemsize
