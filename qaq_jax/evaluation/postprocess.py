"""Prompts of EvalPlus, and the program in what a model wrote.

Both follow EvalPlus 0.3.1 (`codegen.py`, `provider/utility.py`,
`sanitize.py`), whose wording of the chat prompt is part of the benchmark. One
difference: it finds definitions with tree-sitter, this file with Python's own
parser, on text that both can parse. docs/evaluation.md lists what follows.
"""

import ast
import dataclasses
import warnings

from qaq_jax.evaluation.benchmarks import Task
from qaq_jax.evaluation.options import STYLES

_QUESTION = (
  'Please provide a self-contained Python script that solves the following '
  'problem in a markdown code block:'
)
_ANSWER = (
  'Below is a Python script with a self-contained function that solves the '
  'problem and passes corresponding tests:'
)
_STOPS = (
  '<|endoftext|>',
  '<|endofmask|>',
  '</s>',
  '\nif __name__',
  '\ndef main(',
  '\nprint(',
)
_CHAT_STOPS = ('\n```\n',)
_BASE_STOPS = {
  'humaneval': ('\ndef ', '\nclass ', '\nimport ', '\nfrom ', '\nassert '),
  'mbpp': ('\n"""', '\nassert'),
}
_MAX_LINES = 400  # of a text that is searched for a program


@dataclasses.dataclass(frozen=True)
class Prompt:
  """What a model is given for one task.

  Attributes:
    query: the user's text (chat), or the text to go on with (base).
    answer: the beginning of the answer (chat); '' for base.
    stops: texts that end what the model writes; not part of it.
  """

  query: str
  answer: str
  stops: tuple[str, ...]


def make_prompt(family: str, task: Task, style: str) -> Prompt:
  """Returns EvalPlus's prompt for a task.

  Args:
    family: 'humaneval' or 'mbpp'.
    task: the problem.
    style: 'chat' or 'base'.

  Raises:
    ValueError: no such style.
  """
  if style not in STYLES:
    raise ValueError(f'prompt style {style!r}: choose one of {STYLES}')
  text = task.prompt.strip()
  if style == 'base':
    return Prompt(f'{text}\n', '', _STOPS + _BASE_STOPS[family])
  return Prompt(
    f'{_QUESTION}\n```\n{text}\n```\n',
    f'{_ANSWER}\n```python\n',
    _STOPS + _CHAT_STOPS,
  )


def whole_text(task: Task, style: str, text: str) -> str:
  """Returns what a model wrote, after its prompt if that is code (base)."""
  text = text.replace('\t', '    ')
  return f'{task.prompt.strip()}\n{text}' if style == 'base' else text


def extract(text: str, entry_point: str) -> str:
  """Returns the imports and definitions that `entry_point` needs.

  Of the longest run of lines that is valid Python: all imports, and those
  functions (with a return), classes and variables that the entry point names,
  directly or through others; the first of each name. The longest run itself
  where that is nothing.

  Args:
    text: a program, with whatever stands around it.
    entry_point: name of the function that is tested.
  """
  code = longest_program(text)
  tree = _parse(code)
  if tree is None:
    return code
  imports, definitions = [], {}
  for node in tree.body:
    if _is_import(node):
      imports.append(_source(code, node))
      continue
    name = _defined(node)
    if name and name not in definitions:
      definitions[name] = node
  needed = _needed(entry_point, definitions)
  parts = imports + [
    _source(code, node) for name, node in definitions.items() if name in needed
  ]
  return '\n'.join(parts).strip() or code


def longest_program(text: str) -> str:
  """Returns the valid run of lines with the most lines that are not blank.

  The first of equal ones. Where no two lines are valid: the first line. A text
  of many lines is cut: a model that goes on for ever solves nothing.
  """
  lines = text.split('\n')[:_MAX_LINES]
  filled = [i for i, line in enumerate(lines) if line.strip()]
  for count in range(len(filled), 0, -1):
    for first in range(len(filled) - count + 1):
      start, end = filled[first], filled[first + count - 1]
      if start == end and not _beside_blank(lines, start):
        continue
      run = '\n'.join(lines[start : end + 1])
      if _parse(run) is not None:
        return run
  return lines[0]


def _beside_blank(lines, i):
  """EvalPlus looks at runs of two lines and more; one may be blank."""
  return any(
    0 <= j < len(lines) and not lines[j].strip() for j in (i - 1, i + 1)
  )


def _parse(code):
  try:
    with warnings.catch_warnings():
      warnings.simplefilter('ignore')
      return ast.parse(code)
  except (SyntaxError, ValueError, MemoryError, RecursionError):
    return None


def _is_import(node):
  if isinstance(node, ast.ImportFrom):
    return node.module != '__future__' or bool(node.level)
  return isinstance(node, ast.Import)


def _defined(node):
  """Name that a top-level statement defines, None for other statements."""
  if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
    returns = any(isinstance(n, ast.Return) for n in ast.walk(node))
    return node.name if returns and not node.decorator_list else None
  if isinstance(node, ast.ClassDef):
    return None if node.decorator_list else node.name
  if isinstance(node, ast.AnnAssign):
    return getattr(node.target, 'id', None)
  if isinstance(node, ast.Assign):
    return getattr(node.targets[0], 'id', None)
  return None


def _needed(entry_point, definitions):
  """Names reachable from the entry point."""
  found, queue = {entry_point}, [entry_point]
  while queue:
    node = definitions.get(queue.pop())
    new = _names(node) - found if node else set()
    found |= new
    queue += new
  return found


def _names(tree):
  """All identifiers below a node."""
  found = set()
  for node in ast.walk(tree):
    for field in ('id', 'attr', 'arg', 'name', 'asname', 'rest', 'module'):
      text = getattr(node, field, None)
      if isinstance(text, str):
        found.update(text.split('.'))
    found.update(
      getattr(node, 'names', ())
      if isinstance(node, (ast.Global, ast.Nonlocal))
      else ()
    )
  return found


def _source(code, node):
  return ast.get_source_segment(code, node)
