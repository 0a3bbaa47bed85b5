"""Plans in words."""

from qaq_jax.planner.topology import Topology

_GIB = 2**30
_SMALL = 1 << 20  # bytes sent


def header(topology: Topology) -> str:
  """What the plan is for."""
  chip = topology.chip
  how = (
    'compiled for it'
    if topology.devices
    else 'ESTIMATED from counted operations and bytes, nothing compiled'
  )
  return (
    f'{topology.name}: {topology.number} x {chip.name}, each '
    f'{chip.flops / 1e12:,.0f} TFLOP/s bfloat16, {chip.memory / _GIB:.0f} '
    f'GiB, {chip.bandwidth / 1e9:,.0f} GB/s; {how}'
  )


def describe(plan: dict) -> list[str]:
  """The plan of one model, line by line.

  Args:
    plan: the plan from `score_plan.plan` or `train_plan.plan`.
  """
  whole, active = plan['parameters'], plan['active_parameters']
  size = f'{whole / 1e9:.2f}B parameters'
  if active < whole:
    size += f', {active / 1e9:.2f}B of them for each token'
  dtype = plan['dtype']
  if plan.get('quantization'):
    dtype += f' with {plan["quantization"]} kernels'
  lines = [
    f'{plan["model"]}: {plan["family"]}, {size}, {dtype}, mesh '
    f'{_mesh(plan["mesh"])}'
  ]
  if not plan['fits']:
    return lines + _does_not_fit(plan)
  lines += _memory(plan)
  if plan.get('collectives') is not None:
    lines += _collectives(plan)
  lines += _rates(plan)
  if 'compile_seconds' in plan:
    lines.append(f'  compiled here in {plan["compile_seconds"]:.0f} s')
  return lines


def _mesh(mesh: dict) -> str:
  return ', '.join(f'{k}={n}' for k, n in mesh.items())


def _gib(size) -> str:
  return f'{size / _GIB:.2f} GiB'


def _time(hours: float) -> str:
  if hours < 1 / 60:
    return f'{hours * 3600:.0f} seconds'
  return f'{hours * 60:.0f} minutes' if hours < 2 else f'{hours:,.1f} hours'


def _does_not_fit(plan):
  lines = ['  DOES NOT FIT']
  if plan.get('why'):
    lines.append(f'  {plan["why"]}')
  elif plan.get('memory_bytes'):
    lines.append(
      f'  needs {_gib(plan["memory_bytes"])} per chip of '
      f'{_gib(plan["limit_bytes"])} that a run may take'
    )
  for other in plan['try']:
    batch = ''
    if 'tokens_per_device' in other:
      batch = f' with tokens_per_device={other["tokens_per_device"]}'
    lines.append(
      f'  try: {other["topology"]} with mesh {_mesh(other["mesh"])}{batch} '
      '(fits by estimate)'
    )
  if not plan['try']:
    lines.append(
      '  no mesh of these chips would fit by estimate: take more chips, '
      'ones with more memory, or a smaller model'
    )
  return lines


def _memory(plan):
  rows, length = plan['shape']
  of = f'of {_gib(plan["limit_bytes"])} that a run may take'
  if 'state_bytes' in plan:
    parts = f'weights and optimiser {_gib(plan["state_bytes"])}'
  else:
    parts = f'weights {_gib(plan["param_bytes"])}'
  if 'temporary_bytes' in plan:
    parts += f', temporaries {_gib(plan["temporary_bytes"])}'
  lines = [
    f'  memory per chip: {_gib(plan["memory_bytes"])} {of} ({parts})',
    f'  largest step: {rows:,} rows x {length:,} tokens over all chips',
  ]
  if plan.get('largest_shape'):
    most = plan['largest_shape'][0]
    # A line through two programs; far from both it says little.
    lines[-1] += (
      f'; up to {most:,} rows would fit'
      if most < 8 * rows
      else '; at least 8 times as many rows would fit'
    )
  return lines


def _collectives(plan):
  if sum(c['wire_bytes'] for c in plan['collectives']) < _SMALL:
    return ['  collectives: nothing to speak of']
  lines = ['  collectives of that step, per chip:']
  for c in plan['collectives'][:5]:
    lines.append(
      f'    {c["count"]:>5,} x {c["kind"]:<18} of '
      f'{c["bytes"] / 2**20:10,.1f} MiB over {c["group"]:>4} chips'
    )
  rest = plan['collectives'][5:]
  if rest:
    size = sum(c['wire_bytes'] for c in rest) / 2**20
    lines.append(f'    {len(rest)} smaller kinds, {size:,.1f} MiB sent')
  return lines


def _peak(plan):
  if plan.get('quantization') == 'int8_dynamic':
    return f'int8 and {plan["dtype"]}'
  return plan['dtype']


def _rates(plan):
  assumed = plan['assumed']
  mfu = f', MFU {plan["mfu"]:.0%}' if 'mfu' in plan else ''
  lines = [
    f'  predicted: {plan["tokens_per_second"]:,.0f} tokens/s{mfu}, bound by '
    f'{plan["bound_by"]} (assumed: {assumed["utilisation"]:.0%} of the '
    f"{_peak(plan)} peak, {assumed['bandwidth']:.0%} of the memory's and "
    f"{assumed['links']:.0%} of the links' rate)"
  ]
  if 'padding' in plan:
    lines[-1] += f'; padding {plan["padding"]:.1%}'
  if plan.get('hours') is not None and 'rows' in plan:
    surveyed = plan['surveyed']
    origin = f'lengths of {surveyed:,} of them' if surveyed else 'all lengths'
    lines.append(
      f'  data: {plan["rows"]:,} rows, {plan["tokens"]:,} tokens in its '
      f'sequences ({origin}); {plan["rows_per_second"]:,.0f} rows/s'
    )
  if plan.get('samples') is not None and 'epochs' in plan:
    lines.append(
      f'  data: {plan["samples"]:,} samples, {plan["tokens"]:,} tokens, '
      f'{plan["epochs"]} epochs'
    )
  if plan.get('hours') is not None:
    lines.append(
      f'  {_time(plan["hours"])}, {plan["chip_hours"]:,.2f} chip-hours'
    )
  if plan.get('meshes'):
    best = plan['meshes'][0]
    here = plan['mesh']
    if best['mesh'] != here:
      lines.append(
        f'  by estimate the fastest mesh: {_mesh(best["mesh"])} '
        f'({best["tokens_per_second"]:,.0f} tokens/s at full length)'
      )
  return lines
