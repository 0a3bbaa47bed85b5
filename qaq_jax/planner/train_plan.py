"""The plan of fine-tuning on a topology."""

import dataclasses
import math
import time

import jax
import jax.numpy as jnp

from qaq_jax.finetune import batches, optimizer, step
from qaq_jax.finetune import lora as lora_lib
from qaq_jax.finetune.options import JobOptions
from qaq_jax.models import flops, sharding
from qaq_jax.models.config import ModelConfig
from qaq_jax.models.hf import checkpoint
from qaq_jax.planner import collectives, footprint, predict, score_plan
from qaq_jax.planner.footprint import Mesh
from qaq_jax.planner.options import Assumptions
from qaq_jax.planner.topology import Topology
from qaq_jax.scoring import programs as programs_lib


@dataclasses.dataclass(frozen=True)
class Request:
  """A fine-tuning run.

  Attributes:
    name: the name of the model that it starts from.
    config: its sizes.
    options: how it is trained.
    layout: shapes of micro-batches; `shards` is the mesh's.
    samples: the samples to train on; None: not known.
    tokens: the number of tokens of these samples together.
  """

  name: str
  config: ModelConfig
  options: JobOptions
  layout: batches.Layout
  samples: int | None = None
  tokens: int | None = None

  @property
  def itemsize(self) -> int:
    """Bytes of a number of the computation."""
    return jnp.dtype(self.options.dtype).itemsize

  def estimate(self, mesh: Mesh, tokens: int) -> int:
    """Bytes per device by the formula."""
    return footprint.training_bytes(
      self.config, mesh, tokens, self.itemsize, self.options.adapters
    )


def plan(
  request: Request, topology: Topology, mesh: Mesh, assumed: Assumptions
) -> dict:
  """Plans a run; see `score_plan.plan`."""
  config = request.config
  shape = max(request.layout.shapes, key=lambda s: s[0] * s[1])
  limit = score_plan.limit(topology)
  result = {
    'model': request.name,
    'family': config.family,
    **footprint.parameters(config),
    'dtype': request.options.dtype,
    'mesh': mesh.shape,
    'compiled': bool(topology.devices),
    'limit_bytes': limit,
    'shape': list(shape),
  }
  found = (_compiled if topology.devices else _estimated)(
    request, topology, mesh, shape
  )
  result |= found
  result['fits'] = found['memory_bytes'] is not None and (
    found['memory_bytes'] <= limit
  )
  if not result['fits']:
    return result | {'try': _alternatives(request, topology, mesh)}
  made = predict.training_step(
    config,
    mesh,
    topology.chip,
    shape,
    assumed,
    request.options.step.remat,
    found['wire_bytes'],
    request.options.dtype,
    request.options.adapters,
  )
  rate = shape[0] * shape[1] / made.seconds
  useful = flops.training_flops(
    config,
    shape[0] * shape[1],
    shape[0] * shape[1] ** 2,
    footprint.adapters(config, request.options.adapters),
  )
  result |= {
    'tokens_per_second': rate,
    'bound_by': made.bound,
    'mfu': useful / made.seconds / (topology.chip.flops * mesh.number),
    'assumed': dataclasses.asdict(assumed),
  }
  if request.tokens:
    hours = request.tokens * request.options.fit.epochs / rate / 3600
    result |= {
      'samples': request.samples,
      'tokens': request.tokens,
      'epochs': request.options.fit.epochs,
      'hours': hours,
      'chip_hours': hours * mesh.number,
    }
  return result


def _compiled(request, topology, mesh, shape):
  device_mesh = sharding.make_mesh(**mesh.shape, devices=topology.devices)
  start = time.perf_counter()
  options, adapters = request.options, request.options.adapters
  model = checkpoint.abstract(
    request.config,
    mesh=device_mesh,
    dtype=jnp.dtype(options.dtype),
    param_dtype=jnp.dtype(options.dtype) if adapters else jnp.float32,
    attention=options.attention,
  )
  if adapters:
    model = lora_lib.add(model, adapters)
  trainer = step.Trainer(model, optimizer.make(options.optimizer), options.step)
  try:
    programs = trainer.compile(*shape)
  except Exception as e:
    if not programs_lib.is_out_of_memory(e):
      raise
    return {'memory_bytes': None, 'why': str(e).splitlines()[0]}
  gradient, apply = programs['gradient'], programs['apply']
  # Adam's moments are no argument of the gradient, but they stay.
  moments = _device_bytes(trainer.state.opt_state)
  need = max(
    programs_lib.program_bytes(gradient) + moments,
    programs_lib.program_bytes(apply),
  )
  stats, text = gradient.memory_analysis(), gradient.as_text()
  assert stats is not None and text is not None, 'XLA tells both'
  found = collectives.find(text, mesh.number)
  return {
    'memory_bytes': need,
    'state_bytes': _device_bytes(trainer.state),
    'temporary_bytes': stats.temp_size_in_bytes,
    'collectives': [
      dataclasses.asdict(c) | {'wire_bytes': round(c.wire_bytes)} for c in found
    ],
    'wire_bytes': sum(c.wire_bytes for c in found),
    'compile_seconds': round(time.perf_counter() - start, 1),
  }


def _device_bytes(tree) -> int:
  """Bytes on one device of a tree of abstract arrays."""
  return sum(
    math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
    for x in jax.tree.leaves(tree)
  )


def _estimated(request, topology, mesh, shape):
  config, lora = request.config, request.options.adapters
  frozen = footprint.param_bytes(config, mesh, request.itemsize) if lora else 0
  # Gathered twice, and where all is trained two more for the gradient. Rough:
  # it is scattered once, and sums over `data` are not counted.
  passes = 2 if lora else 4
  return {
    'memory_bytes': request.estimate(mesh, shape[0] * shape[1] // mesh.rows),
    'state_bytes': frozen + 3 * footprint.trained_bytes(config, mesh, lora),
    'wire_bytes': passes
    * predict.scoring_wire_bytes(
      config, mesh, shape[0] * shape[1], request.itemsize
    ),
  }


def _alternatives(request, topology, mesh):
  """Meshes here that would fit with one row per device, by estimate."""
  length = request.layout.max_length
  fitting = [
    m
    for m in footprint.meshes(request.config, topology.number)
    if request.estimate(m, length) <= score_plan.limit(topology)
  ]
  if not fitting:
    return []
  best = min(fitting, key=lambda m: (m.tensor, m.data))
  return [
    {'topology': topology.name, 'mesh': best.shape, 'tokens_per_device': length}
  ]
