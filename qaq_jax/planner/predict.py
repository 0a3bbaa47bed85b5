"""Seconds of a step, predicted from counted operations and bytes.

A roofline (Williams, Waterman and Patterson, 2009): a chip computes or reads
its memory, whichever takes longer, and waits for its collectives besides, since
none is assumed to overlap with the computation. What is assumed is in
`Assumptions`; docs/planning.md says how far predictions were off where that
could be checked.
"""

import dataclasses

import jax.numpy as jnp

from qaq_jax.models import flops
from qaq_jax.models.config import ModelConfig
from qaq_jax.models.options import LoraOptions
from qaq_jax.planner import footprint
from qaq_jax.planner.footprint import Mesh
from qaq_jax.planner.options import Assumptions
from qaq_jax.runtime.chips import Chip


@dataclasses.dataclass(frozen=True)
class Step:
  """What one step takes on every chip.

  Attributes:
    compute: seconds of products.
    memory: seconds of reading and writing memory.
    links: seconds of collectives.
  """

  compute: float
  memory: float
  links: float

  @property
  def seconds(self) -> float:
    """All of it."""
    return max(self.compute, self.memory) + self.links

  @property
  def bound(self) -> str:
    """What most of it waits for."""
    if self.links > max(self.compute, self.memory):
      return 'collectives'
    return 'products' if self.compute >= self.memory else 'memory'


def scoring_step(
  config: ModelConfig,
  mesh: Mesh,
  chip: Chip,
  shape: tuple[int, int],
  scored: float,
  assumed: Assumptions,
  wire_bytes: float | None = None,
  *,
  dtype: str,
  quantized: str = '',
) -> Step:
  """Predicts one batch of scoring.

  Args:
    config: the config of the model.
    mesh: the mesh that it runs on.
    chip: the chip of the mesh.
    shape: (rows, length) of the batch over all chips, padding included: a
      device computes that too.
    scored: share of the positions that the head runs over.
    assumed: see Assumptions.
    wire_bytes: sent by each chip; None estimates them.
    dtype: the dtype of weights and computation.
    quantized: scheme of the layers' kernels, see `models.quantization`; their
      products alone are of int8 under int8_dynamic.
  """
  rows, length = shape
  tokens = rows * length
  itemsize = jnp.dtype(dtype).itemsize
  kernel_itemsize = 1 if quantized else None
  layers, attention = flops.forward_flops(config, tokens, rows * length**2, 0)
  head = flops.forward_flops(config, 0, 0, scored * tokens)[0]
  rate = _rate(chip, dtype)
  kernels = chip.int8_flops if quantized == 'int8_dynamic' else rate
  if wire_bytes is None:
    wire_bytes = scoring_wire_bytes(
      config, mesh, tokens, itemsize, kernel_itemsize
    )
  traffic = footprint.param_bytes(
    config,
    dataclasses.replace(mesh, fsdp=1),
    itemsize,
    kernel_itemsize=kernel_itemsize,
  ) + _activation_traffic(config, mesh, tokens, itemsize)
  return Step(
    (layers / kernels + (head + attention) / rate)
    / mesh.number
    / assumed.utilisation,
    traffic / (chip.bandwidth * assumed.bandwidth),
    wire_bytes / (chip.links * assumed.links),
  )


def training_step(
  config: ModelConfig,
  mesh: Mesh,
  chip: Chip,
  shape: tuple[int, int],
  assumed: Assumptions,
  remat: bool,
  wire_bytes: float,
  dtype: str,
  lora: LoraOptions | None = None,
) -> Step:
  """Predicts one micro-batch of fine-tuning.

  Args:
    config: the config of the model.
    mesh: the mesh that it runs on.
    chip: the chip of the mesh.
    shape: (rows, length) of the micro-batch over all chips.
    assumed: see Assumptions.
    remat: layers are computed once more in the backward pass.
    wire_bytes: sent by each chip.
    dtype: the dtype of the computation.
    lora: adapters; None trains all parameters.
  """
  rows, length = shape
  tokens, attended = rows * length, rows * length**2
  itemsize = jnp.dtype(dtype).itemsize
  operations = flops.training_flops(
    config, tokens, attended, footprint.adapters(config, lora)
  )
  if remat:
    operations += sum(flops.forward_flops(config, tokens, attended, 0))
  passes = 4 if remat else 3
  traffic = passes * (
    footprint.param_bytes(config, dataclasses.replace(mesh, fsdp=1), itemsize)
    + _activation_traffic(config, mesh, tokens, itemsize)
  ) + 3 * footprint.trained_bytes(config, mesh, lora)
  return Step(
    operations / mesh.number / (_rate(chip, dtype) * assumed.utilisation),
    traffic / (chip.bandwidth * assumed.bandwidth),
    wire_bytes / (chip.links * assumed.links),
  )


def _rate(chip, dtype):
  """Peak of the products of a dtype."""
  return chip.float32_flops if dtype == 'float32' else chip.flops


def scoring_wire_bytes(
  config: ModelConfig,
  mesh: Mesh,
  tokens: int,
  itemsize: int = 2,
  kernel_itemsize: int | None = None,
) -> float:
  """Bytes that each chip sends in a batch of `tokens`.

  Over `tensor` two sums of the residual stream per layer and one for the
  embedding; over `fsdp` every weight once.
  """
  stream = tokens / mesh.rows * config.hidden_size * itemsize
  sums = 2 * config.num_layers + 1
  around = 2 * (mesh.tensor - 1) / mesh.tensor
  weights = footprint.param_bytes(
    config,
    dataclasses.replace(mesh, fsdp=1),
    itemsize,
    kernel_itemsize=kernel_itemsize,
  )
  return sums * around * stream + weights * (mesh.fsdp - 1) / mesh.fsdp


def _activation_traffic(config, mesh, tokens, itemsize):
  """Bytes of activations read and written, for all layers.

  Each array of the working set is written once and read once or twice;
  attention's scores stay on the chip.
  """
  per_token = footprint.token_bytes(config, mesh, itemsize)
  return 2.5 * config.num_layers * per_token * tokens / mesh.rows
