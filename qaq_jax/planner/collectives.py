"""The collectives of a compiled program, read off its text.

A collective inside a loop is counted as often as the loop runs where the
compiler knows that (the layers), and once where it doesn't (chunks of the head,
whose number is found on the device). One that the compiler for TPUs spreads
over several fusions, to hide it behind products, appears in each of them with
the same channel and source: it is one. A reduce-scatter is an all-reduce there
whose parts are taken in the same fusion, called `all-reduce-scatter`.
"""

import collections
import dataclasses
import math
import re

_KINDS = (
  'all-reduce',
  'all-gather',
  'reduce-scatter',
  'collective-permute',
  'all-to-all',
  'ragged-all-to-all',
)
_BITS = {
  'pred': 8,
  's4': 4,
  'u4': 4,
  's8': 8,
  'u8': 8,
  's16': 16,
  'u16': 16,
  'bf16': 16,
  'f16': 16,
  's32': 32,
  'u32': 32,
  'f32': 32,
  's64': 64,
  'u64': 64,
  'f64': 64,
  'f8e4m3fn': 8,
  'f8e5m2': 8,
}
_HEAD = re.compile(r'^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$')
_OP = re.compile(
  r'= (?P<shape>\(.*?\)|\S+) (?P<kind>'
  + '|'.join(_KINDS)
  + r')(?P<start>-start)?\('
)
_ARRAY = re.compile(r'\b([a-z]\w*)\[([\d,]*)\]')
_CALL = re.compile(
  r'(?:calls|to_apply|body|true_computation|'
  r'false_computation)=%?([\w.\-]+)'
)
_BRANCHES = re.compile(r'branch_computations=\{([^}]*)\}')
_KNOWN_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_WHILE = re.compile(r' while\(.*condition=%?([\w.\-]+)')
_SAME = re.compile(r'channel_id=\d+|metadata=\{[^}]*\}')
_CONSTANT = re.compile(r'%?([\w.\-]+) = s32\[\]\S* constant\((\d+)\)')
_LESS = re.compile(
  r'ROOT .* compare\(.*?, (?:\S+ )?%?([\w.\-]+)\), direction=LT'
)


@dataclasses.dataclass(frozen=True)
class Collective:
  """Equal collectives of a program.

  Attributes:
    kind: 'all-reduce', 'all-gather', ...
    count: how many the program runs; those in a loop of unknown length once.
    bytes: the size of one of them, its result on one device.
    group: devices that take part in one.
  """

  kind: str
  count: int
  bytes: int
  group: int

  @property
  def wire_bytes(self) -> float:
    """Bytes that each device sends, for all of them, around a ring."""
    share = (self.group - 1) / self.group
    factor = {
      'all-reduce': 2 * share,
      'all-gather': share,
      'reduce-scatter': self.group - 1,  # `bytes` is the scattered result
      'all-to-all': share,
    }.get(self.kind, 1.0)
    return self.count * self.bytes * factor


def find(text: str, devices: int) -> list[Collective]:
  """Returns the collectives of a program, those that move most first.

  Args:
    text: `compiled.as_text()`, optimised HLO.
    devices: the devices that the program runs on.
  """
  bodies, entry = _computations(text)
  channels: dict[tuple, tuple[int, str, int, int]] = {}

  def walk(name, times):
    for line in bodies.get(name, []):
      op = _OP.search(line)
      if op:
        kind, group = op['kind'], _group(line, devices)
        size = _size(op['shape'], kind, bool(op['start']))
        if kind == 'all-reduce' and name.startswith('all-reduce-scatter'):
          kind, size = 'reduce-scatter', size // group
        # Those of a shard_map share a channel: the place in the source, too.
        key = kind, size, tuple(_SAME.findall(line)) or (name, line)
        channels[key] = max(
          channels.get(key, (0, '', 0, 0)), (times, kind, size, group)
        )
      loop = _WHILE.search(line)
      inner = times
      if loop:
        inner *= _trips(line, bodies.get(loop.group(1), []))
      if op is None:  # the reduction of an all-reduce is no call
        for callee in _CALL.findall(line):
          walk(callee, inner)
        for branches in _BRANCHES.findall(line):
          for callee in re.findall(r'[\w.\-]+', branches):
            walk(callee, inner)

  walk(entry, 1)
  found: collections.Counter[tuple[str, int, int]] = collections.Counter()
  for times, kind, size, group in channels.values():
    found[kind, size, group] += times
  collectives = [
    Collective(kind, count, size, group)
    for (kind, size, group), count in found.items()
    if group > 1
  ]
  return sorted(collectives, key=lambda c: -c.wire_bytes)


def _computations(text) -> tuple[dict[str, list[str]], str]:
  """Lines of each computation, and the name of the first to run."""
  bodies: dict[str, list[str]] = {}
  entry, lines = '', None
  for line in text.splitlines():
    head = _HEAD.match(line)
    if head:
      lines = bodies.setdefault(head.group(2), [])
      entry = head.group(2) if head.group(1) else entry
    elif line == '}':  # lines within a kernel's own text may begin with one
      lines = None
    elif lines is not None:
      lines.append(line)
  return bodies, entry


def _trips(line: str, condition: list[str]) -> int:
  """How often a loop runs, where the text tells; else 1.

  Compilers for CPU and GPU write it down; that for TPU doesn't, and its loops
  count from 0 to a constant.
  """
  known = _KNOWN_TRIPS.search(line)
  if known:
    return int(known.group(1))
  found = [m for m in map(_CONSTANT.search, condition) if m]
  constants = {m.group(1): m.group(2) for m in found}
  for line in condition:
    less = _LESS.search(line)
    if less and less.group(1) in constants:
      return int(constants[less.group(1)])
  return 1


def _size(shape: str, kind: str, start: bool) -> int:
  """Bytes of a result; of a tuple that starts a transfer, of its result."""
  sizes = [
    math.prod(int(n) for n in dims.split(',') if n) * _BITS[dtype] // 8
    for dtype, dims in _ARRAY.findall(shape)
    if dtype in _BITS
  ]
  if not sizes:
    return 0
  if start and kind != 'all-reduce':  # (operand, result, ...)
    return sizes[1] if len(sizes) > 1 else sizes[0]
  return sum(sizes)


def _group(line: str, devices: int) -> int:
  """Devices per group, of any of the ways that replica_groups is written."""
  listed = re.search(r'replica_groups=\{\{([\d,]*)\}', line)
  if listed:
    return len(listed.group(1).split(','))
  tiled = re.search(r'replica_groups=\[(\d+),(\d+)\]', line)
  if tiled:
    return int(tiled.group(2))
  mesh = re.search(
    r'replica_groups=mesh\[([^\]]*)\](?:, device_ids=\S+)? \{([^}]*)\}', line
  )
  if mesh:
    sizes = dict(re.findall(r"'(\w+)'=(\d+)", mesh.group(1)))
    axes = re.findall(r"'(\w+)'", mesh.group(2))
    return math.prod(int(sizes[axis]) for axis in axes)
  return devices
