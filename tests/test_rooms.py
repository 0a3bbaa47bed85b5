"""Which room of the package may use which, and that no imports go in a circle.

Read from the source, so imports inside functions count like those at its top,
and so do modules that are named in a string to be imported later.
"""

import ast
import pathlib

import pytest

import qaq_jax

# From the top: a room uses only rooms below it. Evaluating a model generates
# and then judges, so evaluation stands above generation.
FLOORS = (
  'main',
  'pipeline',
  'recipe',
  'config',
  'stages',
  'rl',
  'acquisition',
  'synthesis',
  'report',
  'planner',
  'demo',
  'finetune',
  'selection',
  'scoring',
  'checks',
  'evaluation',
  'generation',
  'encoding',
  'models',
  'data',
  'sandbox',
  'workdir',
  'runtime',
)
ROOT = pathlib.Path(qaq_jax.__file__).parent


def modules(root: pathlib.Path) -> dict[str, pathlib.Path]:
  """Module name -> file, of a package's folder."""
  found = {}
  for path in sorted(root.rglob('*.py')):
    parts = (root.name, *path.relative_to(root).with_suffix('').parts)
    found['.'.join(parts).removesuffix('.__init__')] = path
  return found


def uses(root: pathlib.Path, strings: bool = True) -> dict[str, dict[str, int]]:
  """Module -> modules of the package that it imports, and in which line.

  Args:
    root: the package's folder.
    strings: whether a string that is a module's name counts.
  """
  known = modules(root)
  found = {name: {} for name in known}
  for name, path in known.items():
    package = name if path.name == '__init__.py' else name.rpartition('.')[0]
    for node in ast.walk(ast.parse(path.read_text('utf-8'))):
      for target in _named(node, package, strings):
        while target not in known and '.' in target:
          target = target.rpartition('.')[0]  # a name in a module
        # The package itself holds the version and imports nothing.
        if target in known and target not in (name, root.name):
          found[name].setdefault(target, node.lineno)
  return found


def _named(node: ast.AST, package: str, strings: bool) -> list[str]:
  """What a node of the source imports."""
  if isinstance(node, ast.Import):
    return [alias.name for alias in node.names]
  if isinstance(node, ast.ImportFrom):
    base = node.module or ''
    if node.level:
      parts = package.split('.')
      parts = parts[: len(parts) - node.level + 1]
      base = '.'.join([*parts, *([base] if base else [])])
    return [f'{base}.{alias.name}' for alias in node.names]
  if strings and isinstance(node, ast.Constant) and isinstance(node.value, str):
    return [node.value] if ' ' not in node.value else []
  return []


def room(module: str) -> str:
  """The room of a module; '' for the package itself."""
  return module.split('.')[1] if '.' in module else ''


def upward(root: pathlib.Path) -> list[str]:
  """Uses of a room that does not lie below, as file:line."""
  floors = ('', *FLOORS)
  known = modules(root)
  return [
    f'{known[name].relative_to(root.parent)}:{line} uses {target}'
    for name, targets in uses(root).items()
    for target, line in targets.items()
    if room(name) != room(target)
    and floors.index(room(name)) >= floors.index(room(target))
  ]


def circles(root: pathlib.Path) -> list[str]:
  """Imports that lead back to where they began."""
  graph = uses(root, strings=False)
  done, found = set(), []

  def visit(name, path):
    if name in path:
      found.append(' -> '.join([*path[path.index(name) :], name]))
    elif name not in done:
      for target in graph[name]:
        visit(target, [*path, name])
      done.add(name)

  for name in graph:
    visit(name, [])
  return found


def test_every_room_has_a_floor():
  there = {room(name) for name in modules(ROOT)} - {''}
  assert there <= set(FLOORS)
  assert len(there) > 15


def test_a_room_uses_only_rooms_below_it():
  assert upward(ROOT) == []
  assert not uses(ROOT)['qaq_jax']


def test_no_imports_go_in_a_circle():
  assert circles(ROOT) == []


@pytest.mark.parametrize(
  'source',
  [
    'import qaq_jax.stages.score',
    'def f():\n  from qaq_jax.stages import score',
    'from qaq_jax.stages.score import run',
    'from ..stages import score',
    'import importlib\nimportlib.import_module("qaq_jax.stages.score")',
  ],
)
def test_an_import_upward_is_seen(source, tmp_path):
  root = tmp_path / 'qaq_jax'
  for name, text in (
    ('models/config', source),
    ('stages/score', 'from qaq_jax.models import config'),
  ):
    path = root / f'{name}.py'
    path.parent.mkdir(parents=True)
    path.write_text(text)
    (path.parent / '__init__.py').touch()
  (root / '__init__.py').touch()
  (found,) = upward(root)
  assert found.startswith('qaq_jax/models/config.py:')
  assert found.endswith('uses qaq_jax.stages.score')
  circle = circles(root)
  if 'importlib' in source:  # only when it is called
    assert circle == []
  else:
    assert circle == [
      'qaq_jax.models.config -> qaq_jax.stages.score -> qaq_jax.models.config'
    ]
