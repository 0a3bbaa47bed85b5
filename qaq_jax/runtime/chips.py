"""Accelerator chips as their makers' data sheets describe them."""

import dataclasses

_GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
  """One accelerator chip.

  Attributes:
    name: short name, as in a topology's.
    kinds: parts of `jax.Device.device_kind` that tell it, lower case.
    platform: 'tpu' or 'gpu'.
    flops: peak of dense bfloat16 products, operations per second.
    int8_flops: peak of dense int8 products; that of bfloat16 where the chip
      has no faster ones.
    float32_flops: the rate of exact float32 products, precision HIGHEST: on a
      TPU six passes of bfloat16.
    memory: high-bandwidth memory, bytes.
    bandwidth: the rate of that memory, bytes per second.
    links: bytes per second that the chip can send to its neighbours in the
      pod or host, all links together, one direction.
  """

  name: str
  kinds: tuple[str, ...]
  platform: str
  flops: float
  int8_flops: float
  float32_flops: float
  memory: float
  bandwidth: float
  links: float


# TPU: Google Cloud's "system architecture" page of each generation (peak,
# HBM capacity and bandwidth, interchip bandwidth, given there in bits per
# second both ways); GPU: NVIDIA's data sheets (SXM, dense, NVLink both ways).
CHIPS = (
  Chip(
    'v6e',
    ('v6 lite', 'v6e'),
    'tpu',
    918e12,
    1836e12,
    153e12,
    32 * _GIB,
    1638e9,
    448e9,
  ),
  Chip(
    'v5e',
    ('v5 lite', 'v5e'),
    'tpu',
    197e12,
    394e12,
    32.8e12,
    16 * _GIB,
    819e9,
    200e9,
  ),
  Chip(
    'v5p',
    ('v5p', 'v5'),
    'tpu',
    459e12,
    918e12,
    76.5e12,
    95 * _GIB,
    2765e9,
    600e9,
  ),
  Chip('v4', ('v4',), 'tpu', 275e12, 275e12, 45.8e12, 32 * _GIB, 1228e9, 300e9),
  Chip('h200', ('h200',), 'gpu', 989e12, 1979e12, 67e12, 141e9, 4.8e12, 450e9),
  Chip('h100', ('h100',), 'gpu', 989e12, 1979e12, 67e12, 80e9, 3.35e12, 450e9),
  Chip('a100', ('a100',), 'gpu', 312e12, 624e12, 19.5e12, 80e9, 2.0e12, 300e9),
)


def of_kind(device_kind: str) -> Chip | None:
  """The chip of a `jax.Device.device_kind`; None for an unknown one."""
  kind = device_kind.lower()
  for chip in CHIPS:
    if any(name in kind for name in chip.kinds):
      return chip
  return None


def named(name: str) -> Chip:
  """The chip of that short name.

  Raises:
    ValueError: there is none; lists those there are.
  """
  for chip in CHIPS:
    if chip.name == name.lower():
      return chip
  raise ValueError(
    f'chip {name!r} is not known; there are: '
    + ', '.join(chip.name for chip in CHIPS)
  )
