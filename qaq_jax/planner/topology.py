"""Names of machines, and devices to compile for that are not here.

JAX compiles for a TPU topology on any Linux machine that has libtpu: the
devices of `Topology.devices` hold no arrays and run nothing, but a program
lowered for a mesh of them is the program of a pod. For GPUs there is no such
compiler without a GPU; their plans are estimates.
"""

import dataclasses
import importlib.util
import math
import os
import re
from collections.abc import Sequence

import jax

from qaq_jax.runtime import chips

EXAMPLES = (
  'v4:2x2x4',
  'v5e:4x4',
  'v5p:2x2x4',
  'v6e:2x4',
  'h100:8',
  'h200:8',
  'a100:8',
)
# libtpu asks a TPU machine's metadata server who it is, and complains at
# length where there is none. Set only where the machine doesn't.
_QUIET = {
  'TPU_SKIP_MDS_QUERY': '1',
  'TPU_ACCELERATOR_TYPE': 'v5litepod-1',
  'TPU_WORKER_HOSTNAMES': 'localhost',
  'TF_CPP_MIN_LOG_LEVEL': '3',
  # Two processes may plan at the same time; neither drives a chip.
  'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
}


@dataclasses.dataclass(frozen=True)
class Topology:
  """Some chips of one kind.

  Attributes:
    name: the name as given.
    chip: what each of them is.
    number: how many there are.
    devices: the devices to compile for, one per chip; empty where nothing
      compiles.
  """

  name: str
  chip: chips.Chip
  number: int
  devices: Sequence[jax.Device] = ()


def parse(name: str) -> tuple[chips.Chip, tuple[int, ...]]:
  """Returns the chip and the sizes of a name such as 'v5e:4x4' or 'h100:8'.

  Raises:
    ValueError: it is no such name; shows examples.
  """
  match = re.fullmatch(r'(\w+):(\d+(?:x\d+)*)', name.strip().lower())
  if not match:
    raise ValueError(
      f'topology {name!r}: a chip, a colon and sizes, as in '
      + ', '.join(EXAMPLES)
    )
  chip = chips.named(match.group(1))
  sizes = tuple(int(n) for n in match.group(2).split('x'))
  if min(sizes) < 1:
    raise ValueError(f'topology {name!r}: sizes are at least 1')
  wanted = {'v4': 3, 'v5p': 3, 'v5e': 2, 'v6e': 2}.get(chip.name, 1)
  if len(sizes) != wanted:
    example = next(e for e in EXAMPLES if e.startswith(chip.name))
    raise ValueError(
      f'topology {name!r}: {chip.name} has {wanted} dimension'
      f'{"s" if wanted > 1 else ""}, as in {example}'
    )
  return chip, sizes


def describe(name: str) -> Topology:
  """Returns the topology of a name, with devices to compile for (TPU).

  Raises:
    ValueError: it is not known, or there is no such slice.
    ModuleNotFoundError: libtpu is not installed; says how to get it.
  """
  chip, sizes = parse(name)
  number = math.prod(sizes)
  if chip.platform != 'tpu':
    return Topology(name, chip, number)
  if importlib.util.find_spec('libtpu') is None:
    raise ModuleNotFoundError(
      f"topology {name!r} needs libtpu, on Linux: pip install '.[tpu]' (no "
      'TPU is needed)'
    )
  for variable, value in _QUIET.items():
    os.environ.setdefault(variable, value)
  from jax.experimental import topologies

  text = f'{chip.name}:{"x".join(map(str, sizes))}'
  # A v4 chip's two cores work as one device, as they do on Cloud TPU.
  options = {'chip_config_name': 'megacore'} if chip.name == 'v4' else {}
  try:
    found = topologies.get_topology_desc(
      platform='tpu', topology_name=text, **options
    )
  except (jax.errors.JaxRuntimeError, ValueError) as e:
    raise ValueError(
      f'topology {name!r}: libtpu knows no such slice '
      f'({str(e).splitlines()[0]}); examples: {", ".join(EXAMPLES)}'
    ) from e
  return Topology(name, chip, number, tuple(found.devices))


def larger(topology: Topology) -> str:
  """Name of a topology of the same chip with twice as many."""
  _, sizes = parse(topology.name)
  smallest = sizes.index(min(sizes))
  doubled = [n * 2 if i == smallest else n for i, n in enumerate(sizes)]
  if topology.chip.name in ('v5e', 'v6e'):
    doubled.sort()
  return f'{topology.chip.name}:{"x".join(map(str, doubled))}'
