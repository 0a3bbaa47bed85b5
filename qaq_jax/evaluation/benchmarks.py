"""The published files of HumanEval(+) and MBPP(+), read into tasks.

| name | file | tests |
| --- | --- | --- |
| `humaneval` | EvalPlus's HumanEvalPlus | base |
| `humaneval_plus` | the same | base and plus |
| `mbpp` | EvalPlus's MbppPlus, 378 tasks | base |
| `mbpp_plus` | the same | base and plus |
| `humaneval_original` | OpenAI's HumanEval | `check(candidate)` |
| `mbpp_original` | Google's mbpp, task ids 11 to 510 | three asserts |
| `demo_tasks` | the demo's ten toy tasks, no benchmark | base and plus |

EvalPlus's tests are inputs; the expected outputs are those of the reference
solution. The original files hold test code, with the outputs in it.
"""

import collections.abc
import dataclasses
import gzip
import hashlib
import json
import pathlib

from qaq_jax.evaluation import mbpp_inputs

# How task ids begin, by the first word of a benchmark's name.
_PREFIXES = {'humaneval': 'HumanEval/', 'mbpp': 'Mbpp/'}
_MBPP_TEST = range(11, 511)  # by its authors: the test split


@dataclasses.dataclass(frozen=True)
class Task:
  """One problem.

  Attributes:
    task_id: the id as in the file, 'HumanEval/0', 'Mbpp/2'.
    prompt: the beginning of a program (HumanEval) or a docstring (MBPP).
    entry_point: name of the function that is tested.
    reference: a right program, complete.
    suites: name of a suite ('base', 'plus') -> inputs, a list of arguments
      each. Empty for tasks with test code.
    check: test code; '' for tasks with inputs.
    atol: absolute tolerance of the outputs.
  """

  task_id: str
  prompt: str
  entry_point: str
  reference: str
  suites: dict[str, list]
  check: str = ''
  atol: float = 0.0


@dataclasses.dataclass(frozen=True)
class Benchmark:
  """A file's tasks and how they are judged.

  Attributes:
    name: a key of NAMES.
    family: 'humaneval' or 'mbpp'.
    suites: those that a program must pass.
    tasks: the tasks by task id, in the file's order.
    digest: MD5 of the file, decompressed, as EvalPlus reports it.
  """

  name: str
  family: str
  suites: tuple[str, ...]
  tasks: dict[str, Task]
  digest: str


def read(name: str, path: str, *, limit: int = 0) -> Benchmark:
  """Reads a benchmark from its published file, gzipped or plain.

  Args:
    name: a key of NAMES.
    path: the file.
    limit: first tasks only; 0 = all.

  Raises:
    ValueError: no such benchmark, or a line that cannot be used: names file,
      line and field.
    OSError: the file cannot be read.
  """
  if name not in NAMES:
    raise ValueError(
      f'there is no benchmark {name!r}; there are: ' + ', '.join(NAMES)
    )
  if not path:
    raise ValueError(
      f'{name}: no file given. It is published: {PUBLISHED[name]}'
    )
  family, suites, make = NAMES[name]
  content = pathlib.Path(path).read_bytes()
  if content[:2] == b'\x1f\x8b':
    try:
      content = gzip.decompress(content)
    except (OSError, EOFError) as e:
      raise ValueError(f'{path}: damaged gzip file: {e}') from e
  tasks = {}
  for number, record in _records(content, path):
    task = make(_Fields(record, f'{path}: line {number}'), suites)
    if task is None:
      continue
    prefix = _PREFIXES.get(name.partition('_')[0], '')
    if not task.task_id.startswith(prefix):
      raise ValueError(
        f'{path}: line {number}: task_id {task.task_id!r} is none of {name}, '
        f'whose begin with {prefix!r}: is it the file of another benchmark?'
      )
    if task.task_id in tasks:
      raise ValueError(
        f'{path}: line {number}: task_id {task.task_id!r} is there twice'
      )
    tasks[task.task_id] = task
    if limit and len(tasks) == limit:
      break
  if not tasks:
    raise ValueError(f'{path}: no task of {name} in this file')
  digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
  return Benchmark(name, family, suites, tasks, digest)


def _records(content, path):
  # Lines end with \n alone: the text itself may hold other separators.
  for number, line in enumerate(content.split(b'\n'), start=1):
    if not line.strip():
      continue
    try:
      record = json.loads(line)
    except ValueError as e:
      raise ValueError(f'{path}: line {number}: not JSON: {e}') from e
    if not isinstance(record, dict):
      raise ValueError(f'{path}: line {number}: not a JSON object')
    yield number, record


class _Fields:
  """A record whose fields are checked as they are taken."""

  def __init__(self, record, where):
    self._record = record
    self.where = where

  def take(self, name, kind):
    """Returns field `name`; `kind` is a type or a tuple of types."""
    if name not in self._record:
      raise ValueError(
        f'{self.where}: field {name!r} is missing; there are: '
        + ', '.join(self._record)
      )
    value = self._record[name]
    if not isinstance(value, kind) or isinstance(value, bool):
      raise ValueError(
        f'{self.where}: field {name!r} is of type {type(value).__name__}'
      )
    return value

  def inputs(self, name):
    """Returns field `name`, a list of argument lists."""
    value = self.take(name, (list, dict))
    if value == {}:  # one task of MBPP+ has no plus inputs, written so
      return []
    if not all(isinstance(arguments, list) for arguments in value):
      raise ValueError(f'{self.where}: field {name!r} is no list of lists')
    return value


def _evalplus(fields, suites) -> Task:
  task_id = fields.take('task_id', str)
  prompt = fields.take('prompt', str)
  inputs = {name: fields.inputs(f'{name}_input') for name in suites}
  if task_id.startswith('Mbpp/'):
    try:
      inputs = {
        name: mbpp_inputs.restore(task_id, value)
        for name, value in inputs.items()
      }
    except (ValueError, TypeError, IndexError, AttributeError) as e:
      raise ValueError(
        f'{fields.where}: inputs of another form than those of {task_id} '
        f'in MBPP+ v0.2.0: {e}'
      ) from e
  return Task(
    task_id=task_id,
    prompt=prompt,
    entry_point=fields.take('entry_point', str),
    reference=prompt + fields.take('canonical_solution', str),
    suites=inputs,
    atol=float(fields.take('atol', (int, float))),
  )


def _humaneval_original(fields, suites) -> Task:
  del suites
  prompt = fields.take('prompt', str)
  return Task(
    task_id=fields.take('task_id', str),
    prompt=prompt,
    entry_point=fields.take('entry_point', str),
    reference=prompt + fields.take('canonical_solution', str),
    suites={},
    check=fields.take('test', str),
  )


def _mbpp_original(fields, suites) -> Task | None:
  del suites
  number = fields.take('task_id', int)
  if number not in _MBPP_TEST:
    return None
  tests = fields.take('test_list', list)
  if not tests or not all(isinstance(test, str) for test in tests):
    raise ValueError(f"{fields.where}: field 'test_list' holds no tests")
  text = fields.take('text', str).strip()
  code = fields.take('code', str).replace('\r\n', '\n')
  setup = fields.take('test_setup_code', str).replace('\r\n', '\n')
  return Task(
    task_id=f'Mbpp/{number}',
    prompt=f'"""\n{text}\n{tests[0]}\n"""\n',
    entry_point=_tested(tests[0], fields.where),
    reference=code,
    suites={},
    check='\n'.join([setup, *tests]),
  )


def _tested(test, where):
  """Name of the function that `assert NAME(...) == ...` calls."""
  name = test.removeprefix('assert').strip().partition('(')[0].strip()
  if not name.isidentifier():
    raise ValueError(f'{where}: no function to test in {test!r}')
  return name


# Name -> family, suites, reader of one record.
NAMES: dict[str, tuple[str, tuple[str, ...], collections.abc.Callable]] = {
  'humaneval': ('humaneval', ('base',), _evalplus),
  'humaneval_plus': ('humaneval', ('base', 'plus'), _evalplus),
  'mbpp': ('mbpp', ('base',), _evalplus),
  'mbpp_plus': ('mbpp', ('base', 'plus'), _evalplus),
  'humaneval_original': ('humaneval', ('check',), _humaneval_original),
  'mbpp_original': ('mbpp', ('check',), _mbpp_original),
  # A name of their own: their figure is none of HumanEval.
  'demo_tasks': ('humaneval', ('base', 'plus'), _evalplus),
}
_HUMANEVAL_PLUS = 'github.com/evalplus/humanevalplus_release'
_MBPP_PLUS = 'github.com/evalplus/mbppplus_release'
PUBLISHED = {
  'humaneval': _HUMANEVAL_PLUS,
  'humaneval_plus': _HUMANEVAL_PLUS,
  'mbpp': _MBPP_PLUS,
  'mbpp_plus': _MBPP_PLUS,
  'humaneval_original': 'github.com/openai/human-eval',
  'mbpp_original': 'github.com/google-research/google-research, mbpp/',
  'demo_tasks': 'qaq_jax/demo/tasks/tasks.jsonl, here',
}
