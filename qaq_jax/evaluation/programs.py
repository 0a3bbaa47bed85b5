"""Samples files in EvalPlus's format: JSON lines, or a folder of programs.

A line is {"task_id", "solution"} with a whole program, or {"task_id",
"completion"} with what follows the task's prompt. A folder holds
TASK_ID/NUMBER.py, with `_` for the task id's `/`.
"""

import dataclasses
import gzip
import hashlib
import json
import os
import pathlib
from collections.abc import Iterable

from qaq_jax.evaluation.benchmarks import Benchmark
from qaq_jax.workdir import files


@dataclasses.dataclass(frozen=True)
class Sample:
  """One program for one task.

  Attributes:
    task_id: the id of the task.
    number: 0, 1, ... within the task, in the file's order.
    program: complete source text.
  """

  task_id: str
  number: int
  program: str

  @property
  def digest(self) -> str:
    """Names the program's text."""
    text = self.program.encode('utf-8', 'surrogatepass')
    return hashlib.sha256(text).hexdigest()[:16]


def read(
  path: str, benchmark: Benchmark, *, allow_missing: bool = False
) -> list[Sample]:
  """Reads the samples of a benchmark.

  Args:
    path: a .jsonl or .jsonl.gz file, or a folder.
    benchmark: whose tasks they are for.
    allow_missing: tasks without a sample, and samples of other tasks, are
      left out instead of refused.

  Raises:
    ValueError: names file, line and field.
    OSError: the file cannot be read.
  """
  found, counts = [], dict.fromkeys(benchmark.tasks, 0)
  for where, task_id, program in _programs(pathlib.Path(path), benchmark):
    if task_id not in benchmark.tasks:
      if allow_missing:
        continue
      raise ValueError(f'{where}: {benchmark.name} has no task {task_id!r}')
    found.append(Sample(task_id, counts[task_id], program))
    counts[task_id] += 1
  missing = [task_id for task_id, count in counts.items() if not count]
  if missing and not allow_missing:
    raise ValueError(
      f'{path}: no sample of {len(missing)} tasks of {benchmark.name}, the '
      f'first is {missing[0]!r}; a figure over the others would not be the '
      "benchmark's (--allow-missing measures them all the same)"
    )
  if not found:
    raise ValueError(f'{path}: no sample of {benchmark.name}')
  return found


def write(path: str | os.PathLike, samples: Iterable[Sample]) -> None:
  """Writes samples as JSON lines with whole programs."""
  with files.atomic_file(path) as file:
    for sample in samples:
      record = {'task_id': sample.task_id, 'solution': sample.program}
      file.write(json.dumps(record).encode() + b'\n')


def _programs(path, benchmark):
  if path.is_dir():
    yield from _folder(path)
    return
  content = path.read_bytes()
  if content[:2] == b'\x1f\x8b':
    content = gzip.decompress(content)
  for number, line in enumerate(content.split(b'\n'), start=1):
    if not line.strip():
      continue
    where = f'{path}: line {number}'
    try:
      record = json.loads(line)
      task_id = record['task_id']
    except (ValueError, TypeError, KeyError) as e:
      raise ValueError(f'{where}: no JSON object with a task_id: {e}') from e
    kind = 'solution' if 'solution' in record else 'completion'
    program = record.get(kind)
    if not isinstance(program, str):
      raise ValueError(f"{where}: no text in 'solution' or 'completion'")
    if kind == 'completion' and task_id in benchmark.tasks:
      program = benchmark.tasks[task_id].prompt + program
    yield where, task_id, program


def _folder(path):
  for folder in sorted(p for p in path.iterdir() if p.is_dir()):
    files = [f for f in folder.glob('*.py') if f.stem.isdigit()]
    for file in sorted(files, key=lambda f: int(f.stem)):
      yield str(file), folder.name.replace('_', '/'), file.read_text('utf-8')
