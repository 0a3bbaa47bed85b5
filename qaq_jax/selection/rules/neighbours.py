"""RDS+ (arXiv 2503.01807): target examples take turns picking samples.

Each target in turn takes its nearest unused sample by cosine, until the
budget is spent. Embeddings are read block by block, and each target keeps
only its best unused samples between reads, so memory does not grow with
`rows x targets`; the choice is the same as with the full matrix.
"""

import os
import re

import numpy as np

from qaq_jax.selection import budget as budget_lib
from qaq_jax.selection.roles import MissingColumn
from qaq_jax.selection.rules import eligible
from qaq_jax.selection.rules.rule import Candidates, register
from qaq_jax.workdir import checksums, files

_BLOCK_ROWS = 8192
_LIST_BYTES = 512 * 2**20

# Names and task identifiers of public evaluation sets.
_EVALUATION = re.compile(
  r'humaneval|mbpp|evalplus|livecodebench|bigcodebench|multipl-?e|ds-?1000|'
  r'canonical_solution|"test_list"|gsm8k|math-?500|aime',
  re.IGNORECASE,
)


def as_embeddings(value, name: str):
  """An array [rows, D]; a path is opened memory-mapped as .npy.

  Raises:
    ValueError: not two-dimensional, or empty.
    FileNotFoundError: no such file; says how to get it.
  """
  if isinstance(value, (str, os.PathLike)):
    if not os.path.exists(value):
      raise FileNotFoundError(
        f'{os.fspath(value)} does not exist (rds_plus needs it as its {name}): '
        'score with `--config.score.embeddings=True`.'
      )
    value = _open(value)
  if not hasattr(value, 'shape') or len(value.shape) != 2 or not len(value):
    raise ValueError(
      f'rds_plus: {name} must be an array [rows, D] with at least one row, '
      f'not {getattr(value, "shape", type(value).__name__)}.'
    )
  return value


def _open(path):
  back = 'delete it and run the score stage, which joins it again'
  checksums.check(path, back)
  try:
    return np.load(os.fspath(path), mmap_mode='r')
  except (ValueError, EOFError, OSError) as e:
    files.check_readable(path, e)
    raise files.damaged(path, e, back) from e


def evaluation_warning(path) -> str | None:
  """A warning if the target examples look like an evaluation set."""
  if path is None:
    return None
  path = os.fspath(path)
  found = _EVALUATION.search(os.path.basename(path))
  if not found and os.path.isfile(path):
    with open(path, 'rb') as file:
      found = _EVALUATION.search(file.read(2**20).decode('utf-8', 'replace'))
  if not found:
    return None
  return (
    f'WARNING: the target examples look like an evaluation set '
    f'({found.group(0)!r} in {os.path.basename(path)}): choosing training '
    'data by them makes that evaluation worthless.'
  )


def _unit(block):
  block = np.asarray(block, np.float32)
  norm = np.sqrt(np.einsum('nd,nd->n', block, block))
  good = np.isfinite(norm) & (norm > 0)
  return block / np.where(good, norm, 1.0)[:, None], good


def finite_rows(embeddings, block_rows: int = _BLOCK_ROWS):
  """Mask [rows]: the row has an embedding (finite and not zero)."""
  return np.concatenate(
    [
      _unit(embeddings[start : start + block_rows])[1]
      for start in range(0, len(embeddings), block_rows)
    ]
  )


class _Lists:
  """Each target's best unused samples: cosine descending, then the hash."""

  def __init__(self, embeddings, targets, tie_N, length, block_rows):
    self.embeddings, self.targets = embeddings, targets
    self.tie_N, self.length, self.block_rows = tie_N, length, block_rows

  def fill(self, unused_N):
    """Reads all embeddings once and rebuilds every list."""
    none = np.zeros(0, np.float32), np.zeros(0, np.int64)
    lists = [none] * len(self.targets)
    for start in range(0, len(self.embeddings), self.block_rows):
      stop = min(start + self.block_rows, len(self.embeddings))
      index = start + np.flatnonzero(unused_N[start:stop])
      if not len(index):
        continue
      block = _unit(self.embeddings[start:stop])[0][index - start]
      cosine_TN = self.targets @ block.T
      for t, cosine in enumerate(cosine_TN):
        old_cosine, old_index = lists[t]
        if len(old_cosine) == self.length:
          better = np.flatnonzero(cosine >= old_cosine[-1])
          if not len(better):
            continue
          new_cosine, new_index = cosine[better], index[better]
        else:
          new_cosine, new_index = cosine, index
        both = np.concatenate([old_cosine, new_cosine])
        where = np.concatenate([old_index, new_index])
        order = np.lexsort((self.tie_N[where], -both))[: self.length]
        lists[t] = both[order], where[order]
    self.lists = lists
    self.place = np.zeros(len(lists), np.int64)

  def next(self, t, unused_N):
    """(position, cosine) of the nearest unused sample, None = list used up."""
    cosine, index = self.lists[t]
    place = self.place[t]
    while place < len(index) and not unused_N[index[place]]:
      place += 1
    self.place[t] = place
    return None if place == len(index) else (index[place], cosine[place])


def take_turns(
  embeddings,
  targets,
  candidate_N,
  row_N,
  *,
  count: int,
  seed: int = 0,
  block_rows: int = _BLOCK_ROWS,
  list_bytes: int = _LIST_BYTES,
):
  """Targets pick their nearest unused candidate in turn.

  Args:
    embeddings: [N, D], any float dtype; read block by block.
    targets: [T, D]; their order is the order of the turns.
    candidate_N: bool, who may be picked (finite embeddings only).
    row_N: int64 keys; equal cosines go by the seeded hash of the row.
    count: how many to pick; fewer if there are fewer candidates.
    seed: the seed of the hash.
    block_rows: rows read at a time.
    list_bytes: bound on the targets' lists.

  Returns:
    (int64 positions in the order of picking, float32 cosine of each pick).

  Raises:
    ValueError: the widths differ, or a target has no finite embedding.
  """
  if embeddings.shape[1] != targets.shape[1]:
    raise ValueError(
      f'rds_plus: samples have {embeddings.shape[1]} dimensions, targets '
      f'{targets.shape[1]}: score both with the same model.'
    )
  targets, good = _unit(targets)
  if not good.all():
    raise ValueError(
      f'rds_plus: target {np.flatnonzero(~good)[0]} has no finite embedding.'
    )
  unused = np.array(candidate_N, bool)
  count = min(count, int(unused.sum()))
  tie = np.empty(len(row_N), np.int64)
  order = np.lexsort((row_N, budget_lib.row_hash(row_N, seed)))
  tie[order] = np.arange(len(row_N))
  num_targets = len(targets)
  length = 1024 + 16 * -(-count // num_targets)
  length = max(1, min(length, list_bytes // (12 * num_targets)))
  lists = _Lists(embeddings, targets, tie, length, block_rows)
  picks = np.empty(count, np.int64)
  cosines = np.empty(count, np.float32)
  if count:
    lists.fill(unused)
  for turn in range(count):
    t = turn % num_targets
    found = lists.next(t, unused)
    if found is None:
      lists.fill(unused)
      found = lists.next(t, unused)
    picks[turn], cosines[turn] = found
    unused[found[0]] = False
  return picks, cosines


@register(
  'rds_plus',
  keeps='target examples take turns picking their nearest unused sample',
  source='RDS+, arXiv 2503.01807',
  needs=('embeddings of select.model (config.score.embeddings=True)',),
  score='best cosine',
  models=eligible.chosen_model,
  options={
    'model': eligible.MODEL,
    'embeddings': (None, 'array [rows, D] or .npy path, row by row'),
    'targets': (None, 'array [T, D] or .npy path: the target examples'),
    'targets_path': (None, 'where the target examples came from'),
  },
  inputs={
    'embeddings': lambda run, options: run.embeddings(options['model']),
    'targets': lambda run, options: run.embeddings(options['model'], 'targets'),
    'targets_path': lambda run, options: run.targets_path,
  },
  threshold=False,
)
def _rds_plus(columns, options, context):
  lacking = [n for n in ('embeddings', 'targets') if options[n] is None]
  if lacking:
    how = (
      ' and `--config.score.targets_path=FILE` of examples of what the model '
      'should learn'
      if 'targets' in lacking
      else ''
    )
    raise MissingColumn(
      f'rds_plus needs {" and ".join(lacking)}: score with '
      f'`--config.score.embeddings=True`{how}.'
    )
  embeddings = as_embeddings(options['embeddings'], 'embeddings')
  targets = as_embeddings(options['targets'], 'targets')
  if len(embeddings) != columns.num_rows:
    raise ValueError(
      f'rds_plus: {len(embeddings)} embeddings for {columns.num_rows} rows of '
      'the score table; they must belong to the same run.'
    )
  notes = []
  warning = evaluation_warning(options['targets_path'])
  if warning:
    notes.append(warning)
  candidate = context.eligible_N & finite_rows(embeddings)
  picks, cosine = take_turns(
    embeddings,
    targets,
    candidate,
    columns.row,
    count=context.max_picks(),
    seed=context.seed,
  )
  score = np.full(columns.num_rows, np.nan)
  score[picks] = cosine
  notes.append(f'{len(targets):,} target examples took turns')
  missing = {'no embedding': context.eligible_N & ~candidate}
  return Candidates(score, dropped=missing, picks=picks, notes=notes)
