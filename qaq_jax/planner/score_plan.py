"""The plan of scoring with one model on a topology."""

import dataclasses
import math
import time

import jax.numpy as jnp

from qaq_jax.models import sharding
from qaq_jax.models.config import ModelConfig
from qaq_jax.models.hf import checkpoint
from qaq_jax.planner import collectives, footprint, predict
from qaq_jax.planner.footprint import Mesh
from qaq_jax.planner.options import Assumptions
from qaq_jax.planner.topology import Topology
from qaq_jax.scoring import planning
from qaq_jax.scoring import programs as programs_lib
from qaq_jax.scoring.kinds import LIKELIHOODS, ScoreKind
from qaq_jax.scoring.options import ScoreOptions

_ASSUMED_SCORED = 0.5  # of the positions, where no data says how many


@dataclasses.dataclass(frozen=True)
class Request:
  """A model to score with.

  Attributes:
    name: the name of the model.
    config: its sizes.
    dtype: 'bfloat16' or 'float32'.
    max_length: tokens of the longest sequence.
    survey: the survey of the data, see `planning.survey`; None: not known.
    options: the options of scoring.
    kinds: what is computed.
    attention: implementation.
    quantized: a scheme of `models.quantization`.
  """

  name: str
  config: ModelConfig
  dtype: str
  max_length: int
  survey: dict | None
  options: ScoreOptions
  kinds: tuple[ScoreKind, ...] = LIKELIHOODS
  attention: str = 'auto'
  quantized: str = ''

  @property
  def itemsize(self) -> int:
    """Bytes of a number."""
    return jnp.dtype(self.dtype).itemsize

  @property
  def kernel_itemsize(self) -> int | None:
    """Bytes of a number of a quantised kernel; None where they aren't."""
    return 1 if self.quantized else None

  def estimate(self, mesh: Mesh, tokens: int) -> int:
    """Bytes per device by the formula."""
    return footprint.scoring_bytes(
      self.config, mesh, tokens, self.itemsize, self.kernel_itemsize
    )

  @property
  def scored(self) -> float:
    """Share of the tokens that the head runs over."""
    if not self.survey or not self.survey['tokens']:
      return _ASSUMED_SCORED
    return self.survey['scored_tokens'] / self.survey['tokens']

  def batches(self, tokens: int, shards: int, platform: str):
    """The shapes of a batch of so many tokens, and how often each is used.

    Without data: full batches of the longest rows.
    """
    if self.survey:
      plan = planning.plan_batches(
        self.survey, self.options, tokens, shards, platform
      )
      return list(zip(plan.shapes, plan.batches, strict=True)), plan.waste
    rows = max(tokens // self.max_length // shards, 1) * shards
    return [((rows, self.max_length), 1)], 0.0


def limit(topology: Topology) -> int:
  """Bytes of a chip that a program may need: what a run allows itself."""
  return int(
    topology.chip.memory * programs_lib.memory_share(topology.chip.platform)
  )


def plan(
  request: Request, topology: Topology, mesh: Mesh, assumed: Assumptions
) -> dict:
  """Plans scoring with one model.

  Where the topology has devices, the real step is compiled for them and its
  memory and collectives are read off; elsewhere both are estimated.

  Returns:
    JSON-serialisable: sizes, memory per chip, batch, collectives, predicted
    rates and hours. `fits` says whether one row per chip does; if not, there
    is `try`.
  """
  config = request.config
  result = {
    'model': request.name,
    'family': config.family,
    **footprint.parameters(config),
    'dtype': request.dtype,
    'quantization': request.quantized,
    'mesh': mesh.shape,
    'compiled': bool(topology.devices),
    'limit_bytes': limit(topology),
    'param_bytes': footprint.param_bytes(
      config,
      mesh,
      request.itemsize,
      kernel_itemsize=request.kernel_itemsize,
    ),
    'surveyed': request.survey and request.survey.get('surveyed'),
  }
  found = (_compiled if topology.devices else _estimated)(
    request, topology, mesh
  )
  result |= found
  if not found['fits']:
    return result | {'try': alternatives(request, topology, mesh)}
  result |= _rates(request, topology, mesh, assumed, found)
  result['meshes'] = compare_meshes(request, topology, assumed)
  return result


def _compiled(request, topology, mesh):
  """Compiles the largest step that a run would take."""
  device_mesh = sharding.make_mesh(**mesh.shape, devices=topology.devices)
  start = time.perf_counter()
  model = checkpoint.abstract(
    request.config,
    mesh=device_mesh,
    dtype=jnp.dtype(request.dtype),
    attention=request.attention,
    quantized=request.quantized,
  )
  programs = programs_lib.Programs(
    model,
    device_mesh,
    kinds=request.kinds,
    memory_limit=limit(topology),
  )

  def shapes(tokens):
    found, _ = request.batches(tokens, mesh.rows, topology.chip.platform)
    return [shape for shape, _ in found]

  try:
    tokens, need = programs_lib.fit(
      programs, shapes, request.options.tokens_per_batch * mesh.rows
    )
  except programs_lib.OutOfMemory as e:
    return {'fits': False, 'why': str(e)}
  shape = max(shapes(tokens), key=lambda s: (s[0] * s[1], s[1]))
  program = programs.program(shape)
  stats, text = program.memory_analysis(), program.as_text()
  assert stats is not None and text is not None, 'XLA tells both'
  found = collectives.find(text, mesh.number)
  most = _most_rows(programs, shape, mesh.rows, limit(topology))
  return {
    'fits': True,
    'tokens_per_batch': tokens,
    'shape': list(shape),
    'memory_bytes': need,
    'argument_bytes': stats.argument_size_in_bytes,
    'temporary_bytes': stats.temp_size_in_bytes,
    'largest_shape': [most, shape[1]],
    'collectives': [
      dataclasses.asdict(c) | {'wire_bytes': round(c.wire_bytes)} for c in found
    ],
    'wire_bytes_per_token': sum(c.wire_bytes for c in found)
    / (shape[0] * shape[1]),
    'compile_seconds': round(time.perf_counter() - start, 1),
  }


def _most_rows(programs, shape, shards, most):
  """Rows of that length that would fit, on a line through two programs."""
  rows, length = shape
  fewer = max(rows // 2 // shards, 1) * shards
  if fewer == rows:
    return rows
  here, there = programs.memory(shape), programs.memory((fewer, length))
  per_row = max((here - there) / (rows - fewer), 1)
  return rows + int(max(most - here, 0) / per_row) // shards * shards


def _estimated(request, topology, mesh):
  """The same from sizes alone."""
  config, most = request.config, limit(topology)
  tokens = request.options.tokens_per_batch or programs_lib.default_tokens(
    'gpu'
  )
  while True:
    need = request.estimate(mesh, tokens)
    if need <= most or tokens <= request.max_length:
      break
    tokens //= 2
  if need > most:
    return {
      'fits': False,
      'why': f'one row of {request.max_length} tokens per device needs '
      f'{need / 2**30:.2f} GiB, estimated; the limit is '
      f'{most / 2**30:.2f} GiB',
    }
  tokens *= mesh.rows
  shapes, _ = request.batches(tokens, mesh.rows, 'gpu')
  shape = max((s for s, _ in shapes), key=lambda s: (s[0] * s[1], s[1]))
  wire = predict.scoring_wire_bytes(
    config,
    mesh,
    shape[0] * shape[1],
    request.itemsize,
    request.kernel_itemsize,
  )
  return {
    'fits': True,
    'tokens_per_batch': tokens,
    'shape': list(shape),
    'memory_bytes': need,
    'wire_bytes_per_token': wire / (shape[0] * shape[1]),
  }


def _rates(request, topology, mesh, assumed, found):
  """Predicted rates over the shapes of the data, and hours for all of it."""
  shapes, waste = request.batches(
    found['tokens_per_batch'], mesh.rows, topology.chip.platform
  )
  seconds = positions = 0.0
  bounds: dict[str, float] = {}
  for (rows, length), count in shapes:
    step = predict.scoring_step(
      request.config,
      mesh,
      topology.chip,
      (rows, length),
      request.scored,
      assumed,
      found['wire_bytes_per_token'] * rows * length,
      dtype=request.dtype,
      quantized=request.quantized,
    )
    seconds += count * step.seconds
    positions += count * rows * length
    bounds[step.bound] = bounds.get(step.bound, 0) + count * step.seconds
  rate = positions * (1 - waste) / seconds
  result = {
    'padding': waste,
    'tokens_per_second': rate,
    'bound_by': max(bounds, key=bounds.__getitem__),
    'assumed': dataclasses.asdict(assumed),
  }
  if request.survey:
    tokens, rows = request.survey['tokens'], request.survey['rows']
    hours = tokens / rate / 3600
    result |= {
      'rows': rows,
      'tokens': tokens,
      'rows_per_second': rows / (hours * 3600) if hours else 0.0,
      'hours': hours,
      'chip_hours': hours * mesh.number,
    }
  return result


def compare_meshes(
  request: Request, topology: Topology, assumed: Assumptions, most: int = 3
) -> list[dict]:
  """The meshes that are the fastest by estimate, of those that would fit."""
  tokens = request.options.tokens_per_batch or programs_lib.default_tokens(
    'tpu'
  )
  found: list[dict] = []
  for mesh in footprint.meshes(request.config, topology.number):
    here = tokens
    while here > request.max_length and (
      request.estimate(mesh, here) > limit(topology)
    ):
      here //= 2
    if request.estimate(mesh, here) > limit(topology):
      continue
    rows = max(here // request.max_length, 1) * mesh.rows
    step = predict.scoring_step(
      request.config,
      mesh,
      topology.chip,
      (rows, request.max_length),
      request.scored,
      assumed,
      dtype=request.dtype,
      quantized=request.quantized,
    )
    found.append(
      {
        'mesh': mesh.shape,
        'tokens_per_second': rows * request.max_length / step.seconds,
      }
    )
  return sorted(found, key=lambda f: -f['tokens_per_second'])[:most]


def alternatives(
  request: Request, topology: Topology, mesh: Mesh
) -> list[dict]:
  """What would fit by estimate: other meshes here, else more chips."""
  from qaq_jax.planner import topology as topology_lib

  name = topology.name
  for _ in range(8):
    chip, sizes = topology_lib.parse(name)
    there = Topology(name, chip, math.prod(sizes))
    fitting = [
      m
      for m in footprint.meshes(request.config, there.number)
      if m != mesh or name != topology.name
      if request.estimate(m, request.max_length) <= limit(there)
    ]
    if fitting:
      # Of equal memory, the fewest collectives.
      best = min(fitting, key=lambda m: (m.tensor, m.fsdp))
      return [{'topology': name, 'mesh': best.shape}]
    name = topology_lib.larger(there)
  return []
