"""Entries of docstrings name the thing they describe."""

import ast
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent / 'qaq_jax'
_BARE = re.compile(
  r'(?!about how|that of)(that|which (is|are|was|were|has|have|made|may)|'
  r'of|in|for|to|from|by|with|on|at|as|over|between|into|under|'
  r'within|without|after|before|below|above|behind|besides?|among|like|since|'
  r'until|through|against|about|around|beyond)\b'
)


def entries(path):
  """(name, text) under `Args:` and `Attributes:` of every docstring."""
  for node in ast.walk(ast.parse(path.read_text())):
    if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
      continue
    for section in re.split(r'\n(?=\w)', ast.get_docstring(node) or ''):
      if section.startswith(('Args:\n', 'Attributes:\n')):
        entry = r'^  ([\w*][\w*, ]*): (.*)'
        yield from re.findall(entry, section, re.MULTILINE)


@pytest.mark.parametrize(
  'room', sorted({path.parent.relative_to(ROOT) for path in ROOT.rglob('*.py')})
)
def test_no_entry_opens_with_a_bare_preposition(room):
  """Nor with a bare relative clause."""
  found = [
    f'{path}: {name}: {text}'
    for path in sorted((ROOT / room).glob('*.py'))
    for name, text in entries(path)
    if _BARE.match(text)
  ]
  assert not found


def test_the_pattern_finds_one(tmp_path):
  """In the shape in which docstrings are written here."""
  path = tmp_path / 'module.py'
  path.write_text(
    'def f(x, y):\n  """Sums.\n\n  Args:\n    x: of the hash.\n'
    '    y: the seed.\n    *z: of it.\n    a: that is.\n    b: which made it.\n'
    '    c: which row.\n    d: that of y.\n'
    '\n  Returns:\n    of: it.\n  """\n'
  )
  assert {name: bool(_BARE.match(text)) for name, text in entries(path)} == {
    'x': True,
    'y': False,
    '*z': True,
    'a': True,
    'b': True,
    'c': False,
    'd': False,
  }
