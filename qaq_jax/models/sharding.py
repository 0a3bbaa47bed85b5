"""The mesh, and one object that says which array dimension lives where.

All three mesh axes are Explicit: the sharding of every intermediate is part of
its type, so a wrong one is an error on CPU already, before any pod is paid for.

Functions that use the model run with the mesh as context:

  mesh = make_mesh()
  with jax.set_mesh(mesh):
    hidden_BTD = decode(graphdef, params, tokens_BT)

Letters of dimensions: see `decoder.py`.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Protocol

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from qaq_jax.models.options import MeshOptions

MESH_AXES = ('data', 'fsdp', 'tensor')


class Sizes(Protocol):
  """What rules are resolved by: a mesh, or one that is only planned."""

  @property
  def shape(self) -> Mapping[str, int]:
    """Axis -> size."""


def mesh_sizes(
  number: int, data: int, fsdp: int, tensor: int
) -> tuple[int, int, int]:
  """Returns the sizes of the mesh axes on `number` devices, -1 filled in.

  Raises:
    ValueError: the sizes don't multiply to the number of devices.
  """
  sizes = [data, fsdp, tensor]
  wrong = [n for n in sizes if n < 1 and n != -1]
  if wrong or sizes.count(-1) > 1:
    raise ValueError(
      f'mesh sizes {dict(zip(MESH_AXES, sizes, strict=True))}: each is a'
      ' positive number, at most one may be -1 (the rest)'
    )
  if -1 in sizes:
    known = -math.prod(sizes)
    sizes[sizes.index(-1)] = max(number // known, 1)
  if math.prod(sizes) != number:
    raise ValueError(
      f'mesh {dict(zip(MESH_AXES, sizes, strict=True))} needs'
      f' {math.prod(sizes)} devices, there are {number}: choose sizes whose'
      f' product is {number}'
    )
  data, fsdp, tensor = sizes
  return data, fsdp, tensor


def make_mesh(
  data: int = MeshOptions.data,
  fsdp: int = MeshOptions.fsdp,
  tensor: int = MeshOptions.tensor,
  devices: Sequence[jax.Device] | None = None,
) -> Mesh:
  """Returns a mesh of Explicit axes `data`, `fsdp`, `tensor`.

  Args:
    data: number of groups that each hold a copy of the model; -1 is the rest.
    fsdp: devices that share one copy and gather it layer by layer; -1 likewise.
    tensor: devices that split every head and matrix product; -1 likewise.
    devices: the devices to use; all of `jax.devices()` when None.

  Raises:
    ValueError: the sizes don't multiply to the number of devices.
  """
  devices = list(jax.devices() if devices is None else devices)
  sizes = mesh_sizes(len(devices), data, fsdp, tensor)
  return jax.make_mesh(
    sizes, MESH_AXES, (AxisType.Explicit,) * 3, devices=devices
  )


@dataclasses.dataclass(frozen=True)
class ShardingRules:
  """Mesh axes of each logical dimension; None means not split.

  The defaults are for full parameter sharding along `fsdp` with batch split
  over both `data` and `fsdp`, and Megatron-style splits along `tensor`.
  `resolve` adapts them to the sizes of one model on one mesh.
  """

  batch: tuple[str, ...] | str | None = ('data', 'fsdp')
  length: str | None = None
  vocab: str | None = 'tensor'
  embed: str | None = 'fsdp'
  heads: str | None = 'tensor'
  kv_heads: str | None = 'tensor'
  head_dim: str | None = None
  mlp: str | None = 'tensor'
  experts: str | None = 'tensor'
  expert_mlp: str | None = None

  def spec(self, *axes: str | None) -> PartitionSpec:
    """Returns the partition of an array whose dimensions are `axes`."""
    entries = [None if a is None else getattr(self, a) for a in axes]
    used = [
      name
      for entry in entries
      if entry is not None
      for name in ((entry,) if isinstance(entry, str) else entry)
    ]
    if len(set(used)) != len(used):
      raise ValueError(
        f'dimensions {axes} would use a mesh axis twice: {entries}'
      )
    return PartitionSpec(*entries)

  def gathered(self, *axes: str | None) -> PartitionSpec:
    """As `spec`, with the parameter's fsdp split undone."""
    return self.spec(*(None if a == 'embed' else a for a in axes))

  @property
  def batch_axes(self) -> tuple[str, ...]:
    """Mesh axes that rows are split over."""
    entry = self.batch
    return (entry,) if isinstance(entry, str) else tuple(entry or ())

  def batch_shards(self, mesh: Mesh | None) -> int:
    """Returns how many parts rows are split into; 1 without a mesh."""
    if mesh is None:
      return 1
    return math.prod(mesh.shape[axis] for axis in self.batch_axes)

  def resolve(self, config, mesh: 'Sizes') -> 'ShardingRules':
    """Returns the rules with every split that doesn't divide taken out.

    Key/value heads, the MLP and the hidden size are kept whole where they
    don't divide: that costs memory, never correctness. Query heads carry the
    work of attention, so they must divide. Where experts don't divide, each is
    split inside.

    Args:
      config: a ModelConfig.
      mesh: the mesh, or its sizes alone; its axis names are the rules'
        vocabulary.

    Raises:
      ValueError: query heads or padded vocabulary don't divide.
    """
    shape = dict(mesh.shape)

    def size(axis):
      return 1 if axis is None else shape[axis]

    heads = size(self.heads)
    if config.num_heads % heads:
      fits = [
        n for n in range(1, config.num_heads + 1) if config.num_heads % n == 0
      ]
      raise ValueError(
        f'{config.num_heads} query heads cannot be split over the mesh axis'
        f' {self.heads!r} of size {heads}; sizes that can: {fits}'
      )
    if config.padded_vocab_size % size(self.vocab):
      raise ValueError(
        f'the vocabulary, padded to {config.padded_vocab_size}, cannot be'
        f' split over {self.vocab!r} of size {size(self.vocab)}'
      )

    def kept(axis, length):
      return None if length % size(axis) else axis

    experts, expert_mlp = self.experts, self.expert_mlp
    if config.num_experts % size(experts):
      experts, expert_mlp = None, experts

    return dataclasses.replace(
      self,
      experts=experts,
      expert_mlp=kept(expert_mlp, config.intermediate_size),
      embed=kept(self.embed, config.hidden_size),
      kv_heads=kept(self.kv_heads, config.num_kv_heads),
      mlp=kept(self.mlp, config.intermediate_size),
    )


def current_mesh():
  """Returns the mesh of `jax.set_mesh`, or None outside of it."""
  mesh = jax.sharding.get_abstract_mesh()
  return None if mesh.empty else mesh


def reshard(x: jax.Array, spec: PartitionSpec) -> jax.Array:
  """Moves `x` to `spec` on the current mesh; nothing to do without a mesh."""
  return x if current_mesh() is None else jax.sharding.reshard(x, spec)


def named(mesh: Mesh | None, spec: PartitionSpec) -> NamedSharding | None:
  """Returns the sharding on `mesh`, or None without a mesh."""
  return None if mesh is None else NamedSharding(mesh, spec)
