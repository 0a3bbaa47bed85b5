"""Compiled programs of a batch plan, and the batch size that fits."""

import concurrent.futures
import contextlib
import functools
import os
import time
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from qaq_jax.encoding.sequences import SPANS
from qaq_jax.scoring import head as head_lib
from qaq_jax.scoring import kinds as kinds_lib
from qaq_jax.scoring import likelihood

# Share of a device's memory that the scoring program may take. On a CPU it is
# the host's memory, which the user's other programs want some of.
MEMORY_SHARE = {'cpu': 0.5}
_OTHER_SHARE = 0.9
# Tokens of a batch per device, where they fit. On a CPU a batch is best when
# its activations stay in the cache; beyond, batches only cost padding.
TOKENS = {'cpu': 2048}
_OTHER_TOKENS = 1 << 16


# The head's loop ends where the scored positions do. As part of a CUDA graph
# that is decided on the device; outside of one the host waits for every step,
# and the device then waits for the host to send the next batch.
_LOOPS_IN_GRAPHS: dict[str, str | bool] = {
  'xla_gpu_enable_command_buffer': ','.join(
    (
      'FUSION',
      'CUBLAS',
      'CUBLASLT',
      'CUDNN',
      'CUSTOM_CALL',
      'WHILE',
      'CONDITIONAL',
    )
  ),
}


class OutOfMemory(RuntimeError):
  """The device has not enough memory for a batch."""


def default_tokens(platform: str) -> int:
  """Tokens of a batch per device to begin the search with."""
  return TOKENS.get(platform, _OTHER_TOKENS)


def memory_share(platform: str) -> float:
  """Share of a device's memory that a scoring program may take."""
  return MEMORY_SHARE.get(platform, _OTHER_SHARE)


def is_out_of_memory(error: BaseException) -> bool:
  """Whether a JAX error says that memory ran out."""
  text = str(error)
  return isinstance(error, OutOfMemory) or any(
    word in text
    for word in ('RESOURCE_EXHAUSTED', 'Out of memory', 'out of memory')
  )


def program_bytes(program: jax.stages.Compiled) -> int:
  """Bytes per device that a program needs, arguments included; 0: unknown."""
  stats = program.memory_analysis()
  if stats is None:
    return 0
  return (
    stats.argument_size_in_bytes
    + stats.output_size_in_bytes
    + stats.temp_size_in_bytes
    - stats.alias_size_in_bytes
  )


class Programs:
  """One compiled scoring program per shape, for one model on one mesh.

  Attributes:
    shards: number of devices a batch is split over; rows divide by it.
    platform: 'cpu', 'gpu' or 'tpu'.
    compile_seconds: spent so far on tracing and compiling.
  """

  def __init__(
    self,
    model,
    mesh: jax.sharding.Mesh | None,
    *,
    kinds: Sequence[kinds_lib.ScoreKind] = kinds_lib.LIKELIHOODS,
    memory_limit: int = 0,
  ):
    """Splits the model; compiles nothing yet.

    Args:
      model: a `Decoder`. Of an abstract one, on a mesh of devices that are
        elsewhere, programs can be compiled and their memory told, not run.
      mesh: the mesh it lives on; None is one device.
      kinds: what the programs compute.
      memory_limit: bytes per device that a program may need; 0 asks the
        device.
    """
    self._mesh = mesh
    self._graphdef, self._params = nnx.split(model)
    self._compiled: dict[tuple[int, int], jax.stages.Compiled] = {}
    self._memory_limit = memory_limit
    self.compile_seconds = 0.0
    axes = model.rules.batch if mesh is not None else None
    self._batch = axes
    self.shards = model.rules.batch_shards(mesh)
    devices = mesh.devices.flat if mesh is not None else jax.devices()[:1]
    self._devices = list(devices)
    self.platform = self._devices[0].platform
    one_gpu = self.platform == 'gpu' and len(self._devices) == 1
    self._compiler_options = _LOOPS_IN_GRAPHS if one_gpu else None
    function = functools.partial(
      likelihood.batch_likelihood,
      self._graphdef,
      chunks=head_lib.HeadChunks.for_platform(self.platform),
      kinds=tuple(kinds),
    )
    self._jitted = jax.jit(function)

  def __len__(self):
    return len(self._compiled)

  @property
  def layout(self) -> dict:
    """What a plan depends on besides the data: platform, devices, mesh."""
    return {
      'platform': self.platform,
      'device': self._devices[0].device_kind,
      'processes': jax.process_count(),
      'mesh': {k: int(v) for k, v in self._mesh.shape.items()}
      if self._mesh is not None
      else {},
    }

  def _context(self):
    if self._mesh is None:
      return contextlib.nullcontext()
    return jax.set_mesh(self._mesh)

  def _sharding(self, rank):
    if self._mesh is None:
      return None
    return NamedSharding(
      self._mesh, PartitionSpec(self._batch, *[None] * (rank - 1))
    )

  def compile(self, shapes: Sequence[tuple[int, int]]) -> None:
    """Compiles the program of each (rows, length) that isn't yet.

    Raises:
      OutOfMemory: the compiler says that a shape can't fit.
    """
    start = time.perf_counter()
    todo = [s for s in dict.fromkeys(shapes) if s not in self._compiled]
    # The compiler runs outside of Python's lock; tracing doesn't.
    workers = max(1, min(8, os.cpu_count() or 1, len(todo)))
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
      for shape, program in zip(
        todo, pool.map(self._compile, todo), strict=True
      ):
        self._compiled[shape] = program
    self.compile_seconds += time.perf_counter() - start

  def _compile(self, shape):
    rows, length = shape
    arguments = [
      jax.ShapeDtypeStruct(s, jnp.int32, sharding=self._sharding(len(s)))
      for s in ((rows, length), (rows, SPANS, 2), (rows,))
    ]
    try:
      with self._context():
        return self._jitted.lower(self._params, *arguments).compile(
          self._compiler_options
        )
    except jax.errors.JaxRuntimeError as e:
      if is_out_of_memory(e):
        raise OutOfMemory(f'{rows} rows of {length} tokens: {e}') from e
      raise

  def program(self, shape: tuple[int, int]) -> jax.stages.Compiled:
    """The compiled program of a shape."""
    self.compile([shape])
    return self._compiled[shape]

  def memory(self, shape: tuple[int, int]) -> int:
    """Bytes per device that the shape's program needs, parameters included.

    0 where the platform doesn't say.
    """
    return program_bytes(self.program(shape))

  def memory_limit(self) -> int:
    """Bytes per device that a program may need; 0 if unknown."""
    if self._memory_limit:
      return self._memory_limit
    share = memory_share(self.platform)
    if self.platform == 'cpu':
      total = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
      return int(share * total / len(self._devices))
    stats = self._devices[0].memory_stats() or {}
    return int(share * stats.get('bytes_limit', 0))

  def forget(self) -> None:
    """Drops the compiled programs, so that their memory can be used."""
    self._compiled.clear()

  def run(self, tokens_BT, spans_BS2, lengths_B) -> dict[str, jax.Array]:
    """Starts a batch; its results are futures.

    Every process passes the same whole batch and places its own part.
    """
    program = self._compiled[tokens_BT.shape]
    arguments = []
    for value in (tokens_BT, spans_BS2, lengths_B):
      value = np.asarray(value, np.int32)
      sharding = self._sharding(value.ndim)
      if sharding is None:
        arguments.append(jnp.asarray(value))
      elif jax.process_count() == 1:
        arguments.append(jax.device_put(value, sharding))
      else:
        arguments.append(
          jax.make_array_from_callback(value.shape, sharding, value.__getitem__)
        )
    return program(self._params, *arguments)


def fit(
  programs: Programs,
  shapes_for: Callable[[int], Sequence[tuple[int, int]]],
  tokens: int = 0,
) -> tuple[int, int]:
  """Finds the largest batch that fits.

  Compiles the largest shape and reads the compiled program's memory; halves
  the tokens until it is within the limit.

  Args:
    programs: the programs of the model.
    shapes_for: tokens per batch -> shapes (rows, length).
    tokens: tokens per batch over all devices; 0 begins at the platform's
      default.

  Returns:
    Tokens per batch, and bytes per device of the largest program.

  Raises:
    OutOfMemory: not even one row per device of the longest length fits.
  """
  tokens = tokens or default_tokens(programs.platform) * programs.shards
  limit = programs.memory_limit()
  while True:
    shapes = [(rows, length) for rows, length in shapes_for(tokens)]
    if not shapes:
      return tokens, 0
    # Attention grows with the square of the length, the rest with the tokens.
    largest = {max(shapes), max(shapes, key=lambda s: (s[0] * s[1], s[1]))}
    largest.add(max(shapes, key=lambda s: s[1]))
    try:
      programs.compile(sorted(largest))  # several at a time
      need = max(programs.memory(s) for s in largest)
    except OutOfMemory:
      need = None
    if need is not None and (not limit or need <= limit):
      return tokens, need
    rows, length = max(shapes, key=lambda s: (s[0] * s[1], s[1]))
    if rows <= programs.shards:
      needed = 'more' if need is None else f'{need / 2**30:.2f} GiB'
      raise OutOfMemory(
        f'one row of {length} tokens per device needs {needed}; the limit is '
        f'{limit / 2**30:.2f} GiB per device. Lower score.max_length, split '
        'the model over more devices (score.mesh.fsdp or .tensor), or use '
        'dtype bfloat16'
      )
    tokens //= 2
