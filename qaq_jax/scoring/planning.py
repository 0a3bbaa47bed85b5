"""The plan of a scoring run: lengths, windows, shapes; in words and as JSON.

`plan.json` beside the parts holds `rows_per_part`, the survey of the first
pass and a list of runs, each with its device layout, options and shapes. A run
that is continued on the same layout takes the shapes of the run before, so its
numbers are the same to the last bit; on another layout it makes its own.
"""

import collections
import dataclasses
from collections.abc import Iterable, Mapping

import numpy as np

from qaq_jax.scoring import batching
from qaq_jax.scoring import programs as programs_lib
from qaq_jax.scoring.options import ScoreOptions

# Rows of a window where the user doesn't say: so many batches that the
# half-full last ones of each shape don't matter, within limits.
_BATCHES_PER_WINDOW = 128
_ROWS_PER_PART = (256, 1 << 16)
_BATCHES_PER_SHAPE = 3  # on average, at least


def survey(windows: Iterable) -> dict:
  """First pass over all rows: counts of lengths and statuses.

  Args:
    windows: lists of `Encoded`; only counts are kept.

  Returns:
    JSON-serialisable: `lengths` (length -> sequences), `statuses`, `rows`,
    `sequences`, `tokens`, `scored_tokens`, `merge_rate` (share of measured
    rows with a boundary merge; None if none was measured).
  """
  lengths: collections.Counter[int] = collections.Counter()
  statuses: collections.Counter[str] = collections.Counter()
  scored, merged, measured = 0, 0, 0
  for encoded in windows:
    for row in encoded:
      statuses[row.status] += 1
      if row.merged is not None:
        measured += 1
        merged += bool(row.merged)
      for sequence in row.sequences:
        lengths[len(sequence.ids)] += 1
        scored += sum(stop - start for _, start, stop in sequence.spans)
  return {
    'rows': sum(statuses.values()),
    'statuses': dict(sorted(statuses.items())),
    'sequences': sum(lengths.values()),
    'tokens': sum(n * count for n, count in lengths.items()),
    'scored_tokens': scored,
    'lengths': {str(n): lengths[n] for n in sorted(lengths)},
    'merge_rate': merged / measured if measured else None,
  }


@dataclasses.dataclass(frozen=True)
class RunPlan:
  """Shapes of one run on one device layout.

  Attributes:
    layout: platform, devices and mesh, see `compiled.Programs.layout`.
    wanted: the options that it was made with.
    tokens: the number of tokens of a batch, over all devices.
    batches: the shapes.
    memory: bytes per device of the largest program; 0 if unknown.
    origin: why this plan: 'first', 'other devices', 'out of memory', ...
  """

  layout: Mapping
  wanted: Mapping
  tokens: int
  batches: batching.BatchPlan
  memory: int
  origin: str

  @property
  def shapes(self) -> list[tuple[int, int]]:
    """(rows, length) of every program."""
    return [(rows, length) for rows, length in self.batches.shapes]

  def to_json(self) -> dict:
    """For plan.json."""
    return {
      'layout': dict(self.layout),
      'wanted': dict(self.wanted),
      'tokens_per_batch': self.tokens,
      'batches': self.batches.to_json(),
      'memory_bytes': self.memory,
      'origin': self.origin,
    }

  @classmethod
  def from_json(cls, value: Mapping) -> 'RunPlan':
    """From plan.json."""
    return cls(
      value['layout'],
      value['wanted'],
      value['tokens_per_batch'],
      batching.BatchPlan.from_json(value['batches']),
      value['memory_bytes'],
      value['origin'],
    )


def plan_batches(
  survey_: Mapping,
  options: ScoreOptions,
  tokens: int,
  shards: int,
  platform: str,
  rows_per_part: int | None = None,
) -> batching.BatchPlan:
  """Shapes for the surveyed lengths; `tokens` is over all devices."""
  rows = rows_per_part or options.rows_per_part
  rows = rows or _rows_per_part(survey_, tokens)
  per_row = survey_['sequences'] / max(survey_['rows'], 1)
  # A shape that is used once or twice costs more to compile than it saves.
  few = max(survey_['tokens'] // (tokens * _BATCHES_PER_SHAPE), 4)
  plan = batching.plan_shapes(
    {int(n): count for n, count in survey_['lengths'].items()},
    max_shapes=min(options.max_shapes, few),
    tokens_per_batch=tokens,
    multiple=options.multiple(platform),
    rows_multiple=shards,
    window=max(round(rows * per_row), 1),
  )
  if rows < survey_['rows']:
    return plan
  # A single window: the planner has seen the very batches.
  used = [i for i, n in enumerate(plan.batches) if n or not i]
  return dataclasses.replace(
    plan,
    shapes=tuple(plan.shapes[i] for i in used),
    batches=tuple(plan.batches[i] for i in used),
  )


def choose(
  parts,
  programs: programs_lib.Programs,
  options: ScoreOptions,
  survey_: Mapping,
) -> RunPlan:
  """Takes the plan of the run before or makes one; compiles; saves it.

  Args:
    parts: the `ScoreStore`.
    programs: the programs of the model; all shapes are compiled on return.
    options: how to score.
    survey_: the survey of the rows.

  Returns:
    The plan; `parts.rows_per_part` is set.
  """
  wanted = {
    'tokens_per_batch': options.tokens_per_batch,
    'max_shapes': options.max_shapes,
    'length_multiple': options.multiple(programs.platform),
  }
  runs = parts.plan.get('runs', [])
  if runs:
    last = RunPlan.from_json(runs[-1])
    if last.layout == programs.layout and last.wanted == wanted:
      programs.compile(last.shapes)
      return last

  def batches(tokens):
    return plan_batches(
      survey_,
      options,
      tokens,
      programs.shards,
      programs.platform,
      parts.rows_per_part,
    )

  tokens, memory = programs_lib.fit(
    programs,
    lambda tokens: batches(tokens).shapes,
    options.tokens_per_batch * programs.shards,
  )
  origin = 'first' if not runs else 'devices or options changed'
  plan = RunPlan(
    programs.layout, wanted, tokens, batches(tokens), memory, origin
  )
  programs.compile(plan.shapes)
  save(parts, plan, survey_, options)
  return plan


def save(parts, plan: RunPlan, survey_, options: ScoreOptions) -> None:
  """Appends a run to plan.json."""
  rows = parts.rows_per_part or options.rows_per_part
  rows = rows or _rows_per_part(survey_, plan.tokens)
  runs = [*parts.plan.get('runs', []), plan.to_json()]
  parts.save_plan({'rows_per_part': rows, 'survey': survey_, 'runs': runs})


def _rows_per_part(survey_, tokens_per_batch) -> int:
  """Rows of a window with enough batches to keep padding small."""
  tokens = max(survey_['tokens'], 1) / max(survey_['rows'], 1)
  rows = max(_BATCHES_PER_WINDOW * tokens_per_batch / tokens, 1.0)
  low, high = _ROWS_PER_PART
  return int(np.clip(2 ** round(np.log2(rows)), low, high))


def halve(
  parts, programs, options, survey_, plan: RunPlan, shape: tuple[int, int]
) -> RunPlan:
  """The plan after `shape` did not fit: half of its tokens per batch.

  Raises:
    compiled.OutOfMemory: the shape has one row per device already.
  """
  rows, length = shape
  if rows <= programs.shards:
    raise programs_lib.OutOfMemory(
      f'one row of {length} tokens per device does not fit'
    )
  tokens = min(plan.tokens, rows * length) // 2
  batches = plan_batches(
    survey_,
    options,
    tokens,
    programs.shards,
    programs.platform,
    parts.rows_per_part,
  )
  smaller = dataclasses.replace(
    plan, tokens=tokens, batches=batches, origin='out of memory', memory=0
  )
  programs.forget()
  programs.compile(smaller.shapes)
  save(parts, smaller, survey_, options)
  return smaller


def describe(
  name: str, survey_: Mapping, batches: batching.BatchPlan, tokens: int
) -> list[str]:
  """The plan in words: statuses, shapes, padding."""
  statuses = ', '.join(f'{k} {n:,}' for k, n in survey_['statuses'].items())
  lines = [
    f'{name}: {survey_["rows"]:,} rows ({statuses or "none"}); '
    f'{survey_["sequences"]:,} sequences, {survey_["tokens"]:,} tokens, '
    f'{survey_["scored_tokens"]:,} of them scored',
  ]
  if survey_['merge_rate'] is not None:
    lines.append(
      f'{name}: boundary merges in {survey_["merge_rate"]:.1%} of the rows '
      'measured'
    )
  if not batches.shapes:
    return [*lines, f'{name}: nothing to score']
  lines.append(
    f'{name}: {len(batches.shapes)} shapes of about {tokens:,} tokens, '
    f'predicted padding {batches.waste:.1%}'
  )
  cells = [
    f'{rows}x{length}: {count:,}'
    for (rows, length), count in zip(
      batches.shapes, batches.batches, strict=True
    )
  ]
  lines.append('  rows x length: batches (of a sample of windows)')
  for start in range(0, len(cells), 4):
    lines.append('  ' + ''.join(f'{c:<19}' for c in cells[start : start + 4]))
  return [line.rstrip() for line in lines]
