"""Defaults live once, say what they mean, and cost nothing to import."""

import ast
import contextlib
import dataclasses
import pathlib
import shutil
import subprocess
import sys
import tarfile

import ml_collections

import qaq_jax
from qaq_jax import config as config_lib
from qaq_jax.encoding.options import EncoderOptions
from qaq_jax.evaluation.options import EvaluateOptions
from qaq_jax.finetune.options import MESH, FitOptions, JobOptions
from qaq_jax.models.options import MeshOptions
from qaq_jax.planner.options import Assumptions
from qaq_jax.scoring.options import ScoreOptions
from qaq_jax.selection.options import (
  SelectOptions,
  StrataOptions,
)
from qaq_jax.stages import options

ROOM = pathlib.Path(qaq_jax.__file__).parent
MODULES = ['qaq_jax.data.types', 'qaq_jax.selection.budget'] + sorted(
  '.'.join(p.relative_to(ROOM.parent).with_suffix('').parts)
  for p in ROOM.glob('*/options.py')
)
OLD = pathlib.Path(__file__).parent / 'fixtures/old_workdirs/workdirs.tar.xz'


def loaded_by(code, *argv, cwd=None):
  """Top-level names of the modules that a program has loaded at its end."""
  found = subprocess.run(
    [
      sys.executable,
      '-c',
      'import atexit, sys\n'
      'atexit.register(lambda: print("\\n" + " ".join(sys.modules)))\n' + code,
      *argv,
    ],
    capture_output=True,
    text=True,
    check=False,
    cwd=cwd,
  )
  assert not found.returncode, found.stderr
  names = found.stdout.splitlines()[-1].split()
  assert 'qaq_jax' in names
  return {name.partition('.')[0] for name in names}


def test_options_import_the_standard_library_and_numpy_alone():
  assert len(MODULES) > 8
  loaded = loaded_by(f'import {", ".join(MODULES)}')
  site = loaded_by('import numpy, qaq_jax')  # what an installation hooks in
  assert loaded - site - set(sys.stdlib_module_names) == set()


def defaults(path):
  """(name, value) of fields and parameters whose default is a literal."""
  for node in ast.walk(ast.parse(path.read_text())):
    found = []
    if isinstance(node, ast.FunctionDef):
      plain = [*node.args.posonlyargs, *node.args.args]
      found = [
        *zip(plain[::-1], node.args.defaults[::-1], strict=False),
        *zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True),
      ]
      found = [(argument.arg, value) for argument, value in found]
    elif isinstance(node, ast.ClassDef) and node.decorator_list:
      fields = [n for n in node.body if isinstance(n, ast.AnnAssign)]
      found = [(field.target.id, field.value) for field in fields]
    for name, value in found:
      with contextlib.suppress(ValueError):  # not a literal
        if value is not None:
          yield name, ast.literal_eval(value)


# What says "none", "all" or "chosen for you", not how much.
NEUTRAL = (None, False, True, 0, 1, '', (), 'auto')


def written_twice(paths):
  own = [ROOM.parent / (m.replace('.', '/') + '.py') for m in MODULES]
  known = {
    name
    for path in own
    for name, value in defaults(path)
    if value not in NEUTRAL
  }
  return [
    f'{path}: {name}={value!r}'
    for path in sorted({*paths} - {*own})
    for name, value in defaults(path)
    if name in known and value not in NEUTRAL
  ]


def test_no_default_of_an_option_is_written_again():
  assert written_twice(ROOM.rglob('*.py')) == []


def test_a_default_that_is_written_again_is_found(tmp_path):
  path = tmp_path / 'again.py'
  path.write_text(
    'def f(x, keep=2, *, y, max_shapes=24, epochs=0): pass\n'
    '@dataclass\nclass Layout:\n  batch_size: int = 512\n'
    '  packing: str = FitOptions.packing\n'
  )
  assert [found.partition(': ')[2] for found in written_twice([path])] == [
    'keep=2',
    'max_shapes=24',
    'batch_size=512',
  ]


HEAVY = {'flax', 'optax', 'orbax', 'transformers', 'torch', 'datasets'}
COMMAND = 'from qaq_jax import main; main.run()'


def test_help_loads_no_model_code():
  loaded = loaded_by(COMMAND, '--help')
  assert not loaded & (HEAVY | {'jax', 'pyarrow'})


def test_help_of_a_stage_loads_no_model_code():
  for stage in ('score', 'finetune', 'select', 'evaluate'):
    loaded = loaded_by(COMMAND, stage, '--help')
    assert not loaded & (HEAVY | {'jax', 'pyarrow'})


def test_selecting_from_a_finished_table_loads_no_model_code(tmp_path):
  with tarfile.open(OLD) as archive:
    archive.extractall(tmp_path, filter='data')
  shutil.rmtree(tmp_path / 'complete', ignore_errors=True)
  command = [COMMAND, 'select', '--config=recipe.py', '--workdir=scored']
  loaded = loaded_by(*command, cwd=tmp_path)
  assert (tmp_path / 'scored' / 'selection.json').exists()
  assert {'jax', 'pyarrow'} <= loaded
  assert not loaded & HEAVY


def flat(section, path='config'):
  for name, value in section.items():
    if isinstance(value, ml_collections.ConfigDict):
      yield from flat(value, f'{path}.{name}')
    else:
      yield f'{path}.{name}'


def test_every_field_is_described():
  text = config_lib.describe()
  lines = [line for line in text.splitlines() if line.startswith('--')]
  known = {line.partition('=')[0] for line in lines}
  columns = '--config.data.columns'  # one field of six names
  default = config_lib.get_default()
  assert known == {
    columns if f'--{path}'.startswith(columns) else f'--{path}'
    for path in flat(default)
  }
  for comment in text.split('--config')[1:]:
    assert comment.partition('\n')[2].strip(), comment
  only = config_lib.describe('strata')
  assert only.startswith('--config.strata.num_strata=10\n    equal-count bins')


def test_sections_give_back_the_defaults_of_the_options():
  """What a stage reads from the default config is what Python gets."""
  c = config_lib.get_default()
  for section, *kinds in (
    (c.score, EncoderOptions, ScoreOptions, options.Score),
    (c.score.mesh, MeshOptions),
    (c.strata, StrataOptions),
    (c.select, SelectOptions),
    (c.finetune, JobOptions, options.Finetune),
    (c.evaluate, EvaluateOptions, options.Evaluate),
    (c.plan, Assumptions, options.Plan),
  ):
    for kind in kinds:
      assert options.of(kind, section) == kind()
  assert options.of(MeshOptions, c.finetune.mesh) == MESH


def test_options_of_a_section():
  c = config_lib.get_default().finetune
  c.batch_size = 7
  c.optimizer.name = 'muon'
  c.lora.rank = 3
  job = options.of(JobOptions, c, fit=options.of(FitOptions, c, seed=5))
  assert (job.fit.batch_size, job.fit.seed) == (7, 5)
  assert (job.optimizer.name, job.lora.rank) == ('muon', 3)
  assert job.step.remat and job.fit.max_length == 2048


def test_types_may_be_written_as_text():
  """As `from __future__ import annotations` writes them all."""

  @dataclasses.dataclass(frozen=True)
  class Late:
    """Some.

    Attributes:
      share: a share.
      mesh: a layout.
    """

    share: 'float | None' = None
    mesh: 'MeshOptions' = MeshOptions()

  section = config_lib.fields(Late)
  assert set(section) == {'share'}
  assert section['share'].default.get_type() is float
  given = {'share': 0.5, 'mesh': {'fsdp': 2}}
  assert options.of(Late, given) == Late(0.5, MeshOptions(fsdp=2))
