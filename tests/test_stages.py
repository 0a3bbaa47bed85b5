"""The table of stages: a stage is one record, and the rest comes from it."""

import functools
import os
import pathlib
import re
import shlex
import subprocess
import sys
import types

import pytest
from test_processes import free_port

from qaq_jax import config as config_lib
from qaq_jax import pipeline
from qaq_jax.stages import registry

ROOT = pathlib.Path(__file__).resolve().parent.parent

# Two stages as a user of the table would add them; `both` takes its time in
# the second process, and `one` needs what both processes of it wrote.
TOYS = """
import sys
import time

import jax

from qaq_jax import main
from qaq_jax.stages import registry


class Both:
  @staticmethod
  def check(config):
    if config.data.limit == 13:
      raise ValueError('config.data.limit is 13: no luck')

  @staticmethod
  def run(config, workdir):
    time.sleep(2 * jax.process_index())
    text = f'{config.data.path}, {config.plan.topology}'
    (workdir.path / f'both-{jax.process_index()}').write_text(text)


class One:
  @staticmethod
  def run(config, workdir):
    with open(workdir.path / 'one', 'a') as file:
      file.write(f'{sorted(p.name for p in workdir.path.glob("both-*"))}\\n')


sys.modules['both'], sys.modules['one'] = Both, One
registry.add(
  registry.Stage(
    'both',
    says='data -> both-N',
    module='both',
    together=True,
    flags=(registry.Flag('pod', 'plan.topology', 'Any pod.'),),
    next='once more: qaq both {given} --config.plan.bandwidth=0.5',
  )
)
registry.add(
  registry.Stage('one', says='both-N -> one', module='one', workdir='toys')
)
if __name__ == '__main__':
  main.run()
"""
RECIPE = """
from qaq_jax import config as lib

def get_config(arg=None):
  c = lib.get_default()
  c.stages = ('both', 'one')
  c.roles.strong = c.roles.weak = ''  # it has no models
  return c
"""


@pytest.fixture
def toys(tmp_path):
  """Starts `qaq` with the toys in an empty folder."""
  (tmp_path / 'toys.py').write_text(TOYS)
  (tmp_path / 'recipe.py').write_text(RECIPE)

  def start(*words, **environment):
    return subprocess.Popen(
      [sys.executable, 'toys.py', *words],
      cwd=tmp_path,
      env=os.environ
      | {'PYTHONPATH': str(ROOT), 'JAX_PLATFORMS': 'cpu'}
      | environment,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )

  def qaq(*words):
    process = start(*words)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err

  qaq.start, qaq.folder = start, tmp_path
  return qaq


def test_a_stage_is_added_in_one_place(toys):
  """In the usage, checked, run in order, with its flag, workdir and hint."""
  code, out, _ = toys('--help')
  assert not code and '\n  both     data -> both-N\n' in out

  words = ['--config=recipe.py', '--pod=a:1', '--config.data.path=two words']
  own = ['--config.data.limit', '7', '--workdir=w']
  code, out, err = toys('run', *words, *own)
  assert not code, err
  work = toys.folder / 'w'
  assert (work / 'both-0').read_text() == 'two words, a:1'
  assert (work / 'one').read_text() == "['both-0']\n"

  # The hint holds as it is printed: with all that was given.
  [hint] = re.findall('^next: once more: qaq (.*)', out, re.MULTILINE)
  added = '--config.plan.bandwidth=0.5'
  assert shlex.split(hint) == ['both', *words, *own, added]
  (work / 'both-0').unlink()
  code, _, err = toys(*shlex.split(hint))
  assert not code, err
  assert (work / 'both-0').read_text() == 'two words, a:1'

  code, _, err = toys('run', '--config=recipe.py', '--config.data.limit=13')
  assert code and '--workdir, please' in err  # `run` has no folder of its own
  code, _, err = toys(
    'run', '--config=recipe.py', '--config.data.limit=13', '--workdir=v'
  )
  assert code and 'qaq run: error: config.data.limit is 13: no luck' in err
  assert not (toys.folder / 'v').exists()
  code, _, err = toys('one', '--config=recipe.py')
  assert not code, err
  assert (toys.folder / 'toys' / 'one').read_text() == '[]\n'


def test_a_run_from_python_ends_with_hints_whatever_was_given(
  tmp_path, monkeypatch, capsys
):
  stage = registry.Stage(
    'toy', says='nothing', module='toy', next='qaq {given}'
  )
  monkeypatch.setitem(registry.STAGES, 'toy', stage)
  toy = types.SimpleNamespace(run=lambda config, workdir: None)
  monkeypatch.setitem(sys.modules, 'toy', toy)
  c = config_lib.get_default()
  c.stages, c.roles.strong, c.roles.weak = ('toy',), '', ''
  pipeline.run('run', c, str(tmp_path), given=['--config=x'])
  assert capsys.readouterr().out.endswith('\nnext: qaq --config=x\n')


def test_processes_run_it_as_its_record_says(toys):
  """All of them, and a barrier behind; or the first alone."""
  address = f'localhost:{free_port()}'
  started = [
    toys.start(
      'run',
      '--config=recipe.py',
      '--workdir=w',
      JAX_COORDINATOR_ADDRESS=address,
      JAX_NUM_PROCESSES='2',
      JAX_PROCESS_ID=str(index),
    )
    for index in range(2)
  ]
  try:
    ends = [process.communicate(timeout=120) for process in started]
  finally:
    for process in started:
      process.kill()
  assert [p.returncode for p in started] == [0, 0], ends
  one = toys.folder / 'w' / 'one'
  assert one.read_text() == "['both-0', 'both-1']\n"
  assert ['next: ' in out for out, _ in ends] == [True, False]


@pytest.mark.parametrize('name', ['score', 'run'])
def test_a_name_is_taken_once(name):
  with pytest.raises(ValueError, match=f'a stage {name!r} already'):
    registry.add(registry.Stage(name, says='another'))


@pytest.mark.parametrize('name', ['topology', 'workdir', 'config', 'one'])
def test_a_flag_is_taken_once(name):
  flags = tuple(
    registry.Flag(flag, 'plan.topology', 'Any.') for flag in ('one', name)
  )
  with pytest.raises(ValueError, match=f'a flag --{name} already'):
    registry.add(registry.Stage('another', says='nothing', flags=flags))
  assert 'another' not in registry.STAGES


def test_a_flag_is_read_by_the_type_of_its_field(toys):
  """And a field that there is not is told by the flag's name."""
  program = TOYS.replace(
    "registry.Flag('pod', 'plan.topology', 'Any pod.'),",
    "registry.Flag('rows', 'data.limit', 'Of the input.'),"
    "registry.Flag('typo', 'plan.topologie', 'Nothing.'),",
  )
  (toys.folder / 'toys.py').write_text(program)
  words = ['both', '--config=recipe.py', '--workdir=w']
  code, _, err = toys(*words, '--rows=13')
  assert code and err == 'qaq both: error: config.data.limit is 13: no luck\n'
  code, _, err = toys(*words, '--rows=many')
  assert code and err == (
    'qaq: error: --rows=many: config.data.limit is of type int\n'
  )
  code, _, err = toys(*words, '--typo=x')
  assert code and err == (
    'qaq: error: --typo sets config.plan.topologie, which there is not\n'
  )


@pytest.mark.parametrize(
  'words, told',
  [
    (
      ['--config=recpie.py'],
      "--config: there is no recipe recpie.py (did you mean 'recipe.py'?)",
    ),
    (
      ['--config', 'recpie.py:x', '--config.data.limit=3'],
      "--config: there is no recipe recpie.py (did you mean 'recipe.py'?)",
    ),
    (
      ['--config=recipe.py:rowz=10'],
      "config argument 'rowz' is unknown (did you mean 'rows'?); there are: "
      'rows, runlocal',
    ),
    (
      ['--config=recipe.py:rows=x'],
      "config argument 'rows=x': expected int, as in rows=20",
    ),
    (
      ['--config=recipe.py', '--config.data.limt=3'],
      'no such field of the config: ',
    ),
    (['--config=recipe.py', '--wordkir=w'], "command line flag 'wordkir'"),
  ],
)
def test_a_wrong_word_is_told_in_a_sentence(toys, words, told):
  (toys.folder / 'recipe.py').write_text(
    RECIPE.replace(
      'c = lib', 'lib.parse_arg(arg, rows=20, runlocal=False)\n  c = lib'
    )
  )
  code, out, err = toys('both', '--workdir=w', *words)
  assert code == 1 and not out
  assert err.startswith('qaq: error: ') and told in err
  assert 'Traceback' not in err and len(err.splitlines()) < 4, err
  assert not (toys.folder / 'w').exists()


@pytest.mark.parametrize(
  'name, listed, words',
  [
    ('runn', (), r"^there is no stage 'runn' \(did you mean 'run'\?\)"),
    ('evalute', (), r"did you mean 'evaluate'\?\); there are: prepare, score"),
    ('qqq', (), "no stage 'qqq'; there are: prepare, "),
    ('run', ('score', 'repot'), "^config.stages: .*'repot' .*'report'"),
    # What `run` lists is no command: it would never end.
    ('run', ('run',), "^config.stages: there is no stage 'run'"),
  ],
)
def test_a_wrong_name_is_told_the_nearest(name, listed, words):
  with pytest.raises(ValueError, match=words):
    registry.named(name, listed)


@pytest.mark.parametrize(
  'stage', registry.STAGES.values(), ids=lambda s: s.name
)
def test_every_record_holds(stage):
  """Its file runs, and its words are of this table and config."""
  assert callable(stage.load().run)
  config = config_lib.get_default()
  fields = [flag.field for flag in stage.flags]
  for field in fields + re.findall(r'{config\.([\w.]+)}', stage.next):
    functools.reduce(getattr, field.split('.'), config)
  assert set(re.findall(r'qaq (\w+)', stage.next)) <= set(registry.STAGES)
  assert stage.sections and config_lib.describe(*stage.sections)


def test_the_help_of_a_stage_lists_its_fields(toys):
  for words in (['plan', '--help'], ['help', 'plan']):
    code, out, _ = toys(*words)
    assert not code and out.startswith('usage: qaq plan --config=')
    assert '\n--topology\n    Chips to plan for.\n' in out
    assert "\n--config.plan.finetune_topology=''\n    '' = the same.\n" in out
    assert '--config.score' not in out
  # One that names no section has the help of all.
  assert toys('both', '--help')[1].startswith('usage: qaq STAGE --config=')


def test_a_wrong_section_is_told_the_nearest():
  process = subprocess.run(
    [sys.executable, '-m', 'qaq_jax.config', 'finetun'],
    check=False,
    capture_output=True,
    text=True,
    cwd=ROOT,
  )
  assert process.returncode == 1 and process.stderr.startswith(
    "error: the config has no section 'finetun' (did you mean 'finetune'?); it"
  )


def test_the_command_line_starts_without_jax():
  program = (
    'import sys\n'
    'from qaq_jax import main\n'
    'main.run()\n'
    'print(sorted({"jax", "numpy", "pyarrow"} & set(sys.modules)))\n'
  )
  for word, told in (('--help', 'usage: qaq STAGE'), ('--version', 'qaq_jax ')):
    out = subprocess.run(
      [sys.executable, '-c', program, word],
      check=True,
      capture_output=True,
      text=True,
      cwd=ROOT,
    ).stdout
    assert out.startswith(told) and out.endswith('\n[]\n')


def test_the_command_line_is_read_in_one_place():
  package = pathlib.Path(pipeline.__file__).parent
  found = {p.name for p in package.rglob('*.py') if 'sys.argv' in p.read_text()}
  assert found == {'main.py', 'config.py'}  # `python -m qaq_jax.config SECTION`


def test_what_is_said_goes_one_way():
  """By `console.say`; bars, mains and the child of the sandbox are apart."""
  package = pathlib.Path(pipeline.__file__).parent
  others = {
    path.relative_to(package).as_posix()
    for path in package.rglob('*.py')
    if re.search(r'(?<![\w.])print\(|\blogging\b', path.read_text())
  }
  assert others == {
    'config.py',  # as a command of its own
    'demo/defects.py',  # in programs that it writes
    'main.py',
    'runtime/console.py',
    'runtime/processes.py',  # of its own end, whichever process it is
    'sandbox/process.py',
    'scoring/kinds.py',  # as a command of its own
    'selection/__main__.py',
  }


def test_only_the_first_process_says_it():
  program = (
    'import sys\n'
    'from qaq_jax.runtime import console\n'
    'console.say("alone")\n'
    'assert "jax" not in sys.modules\n'
    'import jax\n'
    'from jax._src import distributed\n'
    'for index in range(2):\n'
    '  distributed.global_state.process_id = index\n'
    '  console.say(f"of two, {index}")\n'
  )
  out = subprocess.run(
    [sys.executable, '-c', program],
    check=True,
    capture_output=True,
    text=True,
    cwd=ROOT,
  ).stdout
  assert out == 'alone\nof two, 0\n'
