"""The harness on tiny tasks of our own, in the published files' formats."""

import dataclasses
import gzip
import json
import math
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import scipy.stats

from qaq_jax import config as config_lib
from qaq_jax.evaluation import (
  benchmarks,
  harness,
  judge,
  mbpp_inputs,
  oracles,
  pass_at_k,
  references,
)
from qaq_jax.evaluation import (
  programs as programs_lib,
)
from qaq_jax.sandbox import sandbox
from qaq_jax.sandbox.child.values import Opaque
from qaq_jax.sandbox.process import Limits
from qaq_jax.workdir import journal

_FILES = pathlib.Path(__file__).parent / 'fixtures' / 'benchmarks'
_PATHS = {
  'humaneval': 'humaneval_plus',
  'humaneval_plus': 'humaneval_plus',
  'mbpp': 'mbpp_plus',
  'mbpp_plus': 'mbpp_plus',
  'humaneval_original': 'humaneval',
  'mbpp_original': 'mbpp',
}
_OPTIONS = harness.Options(
  workers=2,
  allow_uncontained=True,
  limits=Limits(memory_mb=1024),
)


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))


@pytest.fixture(scope='module')
def box():
  return sandbox.Sandbox(_OPTIONS.limits, allow_uncontained=True)


def _read(name, limit=0):
  if name == 'demo_tasks':
    return benchmarks.read(name, config_lib.embedded_tasks(), limit=limit)
  path = _FILES / f'{_PATHS[name]}.jsonl'
  return benchmarks.read(name, str(path), limit=limit)


def _sample(task, program, number=0):
  return programs_lib.Sample(task.task_id, number, program)


def _references(benchmark):
  return [_sample(t, t.reference) for t in benchmark.tasks.values()]


def _judge(box, name, number, program, **options):
  benchmark = _read(name)
  task = list(benchmark.tasks.values())[number]
  return {
    suite: judge.judge(
      box,
      benchmark.family,
      task,
      suite,
      program,
      judge.run_reference(box, benchmark.family, task, suite),
      judge.Timing(floor=0.5, total=3.0, test_code=0.5, load=0.5).scaled(
        judge.machine_scale()
      ),
      **options,
    )
    for suite in benchmark.suites
  }


@pytest.mark.parametrize('name', benchmarks.NAMES)
def test_references_pass_and_broken_ones_fail(tmp_path, name):
  benchmark = _read(name)
  right = harness.run(
    benchmark, _references(benchmark), tmp_path / 'right.jsonl', _OPTIONS
  )
  assert right['broken_references'] == []
  assert {m['pass@1']['value'] for m in right['scores'].values()} == {1.0}
  broken = [
    _sample(
      task,
      f'{task.reference}\n_right = {task.entry_point}\n'
      f'def {task.entry_point}(*a):\n  return [_right(*a), None]\n',
    )
    for task in benchmark.tasks.values()
  ]
  wrong = harness.run(benchmark, broken, tmp_path / 'wrong.jsonl', _OPTIONS)
  assert {m['pass@1']['value'] for m in wrong['scores'].values()} == {0.0}
  assert list(wrong['scores']) == list(right['scores'])


_HOSTILE = {
  'exit': 'import os; os._exit(0)',
  'sys_exit': 'import sys; sys.exit(0)',
  'no_function': 'pass',
  'syntax': 'def (',
  'null': '\0',
  'surrogate': "x = '\ud800'",
  'loop': 'while True: pass',
  'returns_none': 'def {name}(*a): return None',
  'says_equal': (
    'class E:\n  def __eq__(self, o): return True\n'
    '  def __hash__(self): return 1\ndef {name}(*a): return E()'
  ),
  'float_equal': (
    'class E(float):\n  def __eq__(self, o): return True\n'
    'def {name}(*a): return E("nan")'
  ),
  'prints': 'print("passed")\ndef {name}(*a): print({{"passed": True}})',
  'forges_the_channel': (
    'import os, json, struct\n'
    'for m in ({{"loaded": 1}}, {{"passed": True}}, {{"value": None}}):\n'
    '  body = json.dumps(m).encode()\n'
    '  for fd in range(3, 64):\n'
    '    try: os.write(fd, struct.pack(">I", len(body)) + body)\n'
    '    except OSError: pass\n'
    'def {name}(*a): os._exit(0)'
  ),
  'patches_the_runner': (
    'from child import runner\n'
    'runner.Channel.send = lambda self, m: runner.os.write(\n'
    '    self._answers, b"\\0\\0\\0\\x10" + b\'{{"passed": true}}\')\n'
    'def {name}(*a): return None'
  ),
  'deletes_builtins': (
    'import builtins\nfor n in list(vars(builtins)):\n'
    '  if n != "delattr": delattr(builtins, n)'
  ),
}


@pytest.mark.parametrize('trick', _HOSTILE)
@pytest.mark.parametrize(
  'name', ['humaneval_plus', 'humaneval_original', 'mbpp_original']
)
def test_no_trick_passes(box, name, trick):
  benchmark = _read(name)
  task = next(iter(benchmark.tasks.values()))
  program = _HOSTILE[trick].replace('{{', '{').replace('}}', '}')
  program = program.replace('{name}', task.entry_point)
  for verdict in _judge(box, name, 0, program).values():
    assert verdict.status in (judge.FAIL, judge.TIMEOUT), verdict


def _forger(value):
  """A program that answers every call with `value`, as it stands."""
  return (
    'from child import runner\n'
    f'runner.values.encode = lambda v, d=0: {value!r}\n'
    'def scale(*a): return 1\n'
  )


@pytest.mark.parametrize(
  'value',
  [
    ['digest', []],
    ['numpy', ['(,)i4', None, [1]]],
  ],
)
def test_forged_values_do_not_end_the_harness(tmp_path, value):
  benchmark = _read('humaneval', limit=1)
  (task,) = benchmark.tasks.values()
  result = harness.run(
    benchmark, [_sample(task, _forger(value))], tmp_path / 'r.jsonl', _OPTIONS
  )
  assert result['failures'] == {'base: fail: output': 1}


def test_a_judge_that_fails_is_a_failed_program(tmp_path, monkeypatch):
  def broken(*_, **__):
    raise IndexError('surprise')

  benchmark = _read('humaneval', limit=2)
  monkeypatch.setattr(judge, 'judge', broken)
  result = harness.run(
    benchmark, _references(benchmark), tmp_path / 'r.jsonl', _OPTIONS
  )
  assert result['failures'] == {'base: fail: judge': 2}
  lines = (tmp_path / 'r.jsonl').read_text().splitlines()
  reason = json.loads(lines[1])['suites']['base']['reason']
  assert reason == 'judge: IndexError: surprise'


def test_a_wrong_program_that_rewrites_the_test_fails(box):
  """Test code runs where the program cannot reach it."""
  program = (
    'import sys, builtins\n'
    'def smallest(xs): return 99\n'
    'for module in list(sys.modules.values()):\n'
    '  try: module.AssertionError = None; module.exec = lambda *a: None\n'
    '  except Exception: pass\n'
    'builtins.compile = lambda *a: ""\n'
  )
  verdict = _judge(box, 'mbpp_original', 1, program)['check']
  assert verdict.status == judge.FAIL
  assert verdict.reason == 'AssertionError: '


def test_failures_are_told_apart(box):
  cases = {
    'def scale(values, factor): return values': ('fail', 'wrong output'),
    'def scale(values): return values': ('fail', 'TypeError: '),
    'import nowhere': ('fail', 'ModuleNotFoundError: '),
    'def scale(*a):\n  while True: pass': ('timeout', 'timeout: '),
    'def scale(*a):\n  import os; os._exit(3)': ('fail', 'crash: '),
    'def scale(*a): return "x" * (1 << 20)': ('fail', 'output: '),
    'def scale(*a): return bytearray(1 << 40)': ('fail', 'MemoryError'),
  }
  for program, (status, reason) in cases.items():
    verdict = _judge(box, 'humaneval', 0, program)['base']
    assert (verdict.status, verdict.failed[0]) == (status, 0)
    assert verdict.reason.startswith(reason)
    assert verdict.tests == 2


@pytest.mark.parametrize('name', ['humaneval', 'mbpp_original'])
def test_reasons_are_harmless_to_a_terminal(box, name):
  for program in (
    'def {0}(*a): raise RuntimeError("\x1b[2J" + "x" * 999)',
    'raise RuntimeError("\x1b[2J")',
  ):
    task = next(iter(_read(name).tasks.values()))
    program = program.replace('{0}', task.entry_point)
    for verdict in _judge(box, name, 0, program).values():
      assert verdict.status == judge.FAIL
      assert 'RuntimeError: ?[2J' in verdict.reason
      assert verdict.reason.isprintable()
      assert len(verdict.reason) <= 300


def test_every_test_can_be_run(box):
  """After a failed test, and after one that ended the process."""
  program = (
    'import os\ndef tally(word):\n'
    '  if word == "abba": return {}\n'
    '  if word == "xyz": os._exit(0)\n'
    '  return {c: word.count(c) for c in word}'
  )
  verdicts = _judge(box, 'humaneval_plus', 1, program, all_tests=True)
  assert verdicts['base'].failed == [0]
  assert verdicts['plus'].failed == [1]
  kills = 'import os\ndef tally(word): os._exit(0)'
  verdicts = _judge(box, 'humaneval_plus', 1, kills, all_tests=True)
  assert [v.failed for v in verdicts.values()] == [[0, 1], [0, 1]]


def test_a_load_that_hangs_later_is_the_last_one(box, monkeypatch):
  """Where all tests are run, each crash is followed by another load."""
  benchmark = _read('humaneval_plus')
  task = list(benchmark.tasks.values())[1]
  task = dataclasses.replace(task, suites={'base': task.suites['base'] * 20})
  reference = judge.run_reference(box, 'humaneval', task, 'base')
  timing = judge.Timing(floor=5.0, total=30.0, load=0.5)
  until = time.time() + 1.0
  program = (
    f'import os, time\nwhile time.time() > {until}: pass\n'
    'def tally(word):\n'
    f'  while time.time() <= {until}: pass\n  os._exit(0)'
  )
  starts, start = [], box.start
  monkeypatch.setattr(box, 'start', lambda: starts.append(0) or start())
  verdict = judge.judge(
    box, 'humaneval', task, 'base', program, reference, timing, all_tests=True
  )
  assert verdict.status != judge.PASS
  assert verdict.failed == list(range(verdict.tests))
  assert verdict.tests == 40
  assert len(starts) <= 2  # of 40 that hang, each as long as a load may take


def test_time_limits_are_those_of_the_reference_and_of_the_machine():
  timing = judge.Timing()
  assert timing.scaled(3.0) == judge.Timing(3.0, 4.0, 180.0, 9.0, 30.0)
  assert 1.0 <= judge.machine_scale() < 100


@pytest.mark.parametrize('name', ['mbpp', 'mbpp_original'])
def test_the_load_is_not_counted_as_time_of_the_tests(box, name):
  benchmark = _read(name)
  task = next(iter(benchmark.tasks.values()))
  (suite,) = benchmark.suites
  verdict = judge.judge(
    box,
    benchmark.family,
    task,
    suite,
    f'import time\ntime.sleep(2.5)\n{task.reference}',
    judge.run_reference(box, benchmark.family, task, suite),
    judge.Timing(floor=0.5, total=1.0, test_code=1.0),
  )
  assert (verdict.status, verdict.reason) == (judge.PASS, '')
  assert verdict.seconds < 1


def test_all_tests_together_have_a_limit(box):
  """No test is over its own; a suite that is done is not late any more."""
  benchmark = _read('humaneval_plus')
  task = list(benchmark.tasks.values())[1]
  program = (
    'import time\ndef tally(word):\n  time.sleep(0.7)\n'
    '  return {c: word.count(c) for c in word}'
  )
  reference = judge.run_reference(box, 'humaneval', task, 'base')
  for total, status in ((0.2, judge.TIMEOUT), (9.0, judge.PASS)):
    timing = judge.Timing(floor=2.0, total=total - 2.0)
    verdict = judge.judge(
      box, 'humaneval', task, 'base', program, reference, timing
    )
    assert verdict.status == status
    if status == judge.TIMEOUT:
      assert (verdict.reason, verdict.failed) == ('all tests together', [1])
  late = judge.Timing(floor=2.0, total=1.0 - 2.0)  # over after the last
  verdict = judge.judge(
    box, 'humaneval', task, 'base', program, reference, late
  )
  assert verdict.status == judge.PASS


def test_workers_share_what_a_container_may_use(tmp_path, monkeypatch):
  limits = Limits(memory_mb=1000, tmp_mb=24)
  monkeypatch.setattr(harness.os, 'cpu_count', lambda: 64)
  monkeypatch.setattr(harness.os, 'sched_getaffinity', lambda _: set(range(64)))
  path = tmp_path / 'memory.max'
  monkeypatch.setattr(harness, '_CGROUP_LIMIT', path)
  free = harness._workers(limits)
  path.write_text('max\n')
  assert harness._workers(limits) == free
  path.write_text(f'{2048 << 20}\n')
  assert harness._workers(limits) == min(2, free)


def test_a_loaded_machine_does_not_fail_programs(box):
  """A program that needs most of its limit, with many others on the cores."""
  burn = [sys.executable, '-c', 'while True: pass']
  program = (
    'import time\ndef add(a, b):\n  end = time.process_time() + 0.25\n'
    '  while time.process_time() < end: pass\n  return a + b'
  )
  others = [subprocess.Popen(burn) for _ in range(3 * (os.cpu_count() or 1))]
  try:
    verdict = _judge(box, 'mbpp', 0, program)['base']
  finally:
    for other in others:
      other.kill()
      other.wait()
  assert verdict.status == judge.PASS


def test_verdicts_are_kept_and_only_missing_ones_computed(tmp_path):
  benchmark = _read('mbpp')
  path = tmp_path / 'results.jsonl'
  programs = _references(benchmark)
  harness.run(benchmark, programs, path, _OPTIONS)
  whole = path.read_bytes()
  lines = whole.splitlines(keepends=True)
  assert len(lines) == 3
  marked = lines[1].replace(b'\n', b' \n')  # a space, that others' have not
  path.write_bytes(lines[0] + marked + lines[2][:20])  # killed while writing
  result = harness.run(benchmark, programs, path, _OPTIONS)
  assert result['scores']['mbpp']['pass@1']['value'] == 1.0
  again = path.read_bytes().splitlines(keepends=True)
  assert again[:2] == [lines[0], marked]  # not run again
  assert json.loads(again[2])['task_id'] == json.loads(lines[2])['task_id']
  with pytest.raises(ValueError, match='benchmark: "mbpp" -> "mbpp_plus"'):
    harness.run(_read('mbpp_plus'), programs, path, _OPTIONS)


def test_two_runs_do_not_share_a_results_file(tmp_path):
  path = tmp_path / 'results.jsonl'
  benchmark = _read('mbpp')
  first = journal.Journal(path, {}, fields={})
  try:
    with pytest.raises(
      ValueError, match=f'writes to .*results.jsonl .pid {os.getpid()} on'
    ):
      harness.run(benchmark, _references(benchmark), path, _OPTIONS)
  finally:
    first.close()
  assert not (tmp_path / 'cache').exists()  # before any program was run


def test_goes_on_after_kill_9(tmp_path):
  benchmark = _read('mbpp')
  task = next(iter(benchmark.tasks.values()))
  programs = [
    _sample(task, f'import time\ntime.sleep(0.2)\n{task.reference}', i)
    for i in range(12)
  ]
  programs.append(_references(benchmark)[1])
  file = tmp_path / 'samples.jsonl'
  programs_lib.write(file, programs)
  results = tmp_path / 'results.jsonl'
  command = [
    sys.executable,
    '-m',
    'qaq_jax.evaluation.harness',
    f'--samples={file}',
    '--benchmark=mbpp',
    '--workers=1',
    f'--path={_FILES / "mbpp_plus.jsonl"}',
    f'--output={results}',
    '--allow-code-execution',
    '--allow-uncontained',
  ]
  root = pathlib.Path(__file__).parent.parent
  with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE) as first:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
      if results.exists() and results.read_bytes().count(b'\n') >= 3:
        break
      time.sleep(0.02)
    first.send_signal(signal.SIGKILL)
  kept = results.read_bytes()
  kept = kept[: kept.rfind(b'\n') + 1]
  assert 3 <= kept.count(b'\n') < 14
  second = subprocess.run(
    command, cwd=root, capture_output=True, text=True, check=True
  )
  assert 'have verdicts already' in second.stdout
  assert results.read_bytes().startswith(kept)
  assert results.read_bytes().count(b'\n') == 14
  assert '100.0' in second.stdout


def test_nothing_runs_without_permission(tmp_path, monkeypatch):
  file = tmp_path / 'samples.jsonl'
  file.write_text('')
  with pytest.raises(SystemExit, match='--allow-code-execution'):
    harness.main(
      [
        f'--samples={file}',
        '--benchmark=mbpp',
        '--path=nowhere',
      ]
    )
  assert os.listdir(tmp_path) == ['samples.jsonl']


def test_references_are_computed_once(tmp_path, box):
  benchmark = _read('mbpp_plus')
  ticks = []
  first = references.compute(benchmark, box, 1, lambda *n: ticks.append(n))
  assert len(ticks) == 4
  second = references.compute(benchmark, box, 1, lambda *n: ticks.append(n))
  if box.containment.reads:
    assert len(ticks) == 4
    (kept,) = (tmp_path / 'cache' / 'qaq_jax' / 'references').iterdir()
    kept.write_bytes(kept.read_bytes()[:50])  # damaged: computed again
    references.compute(benchmark, box, 1, lambda *n: ticks.append(n))
    assert len(ticks) == 8
    whole = kept.read_bytes()
    for other in (b'[{}]', b'[1]', b'5', b'{"a": 1}', b'[{"task_id": 1}]'):
      kept.write_bytes(gzip.compress(other))
      assert references._read(kept) == {}
    for at in range(0, len(whole), 7):
      data = bytearray(whole)
      data[at] ^= 16
      kept.write_bytes(data)
      found = references._read(kept)  # computed again, or as it was
      assert not found or found == second
    kept.write_bytes(whole)
    for key, reference in first.items():
      assert second[key].outputs == reference.outputs
  else:  # a program could read them
    assert len(ticks) == 8


def test_a_broken_reference_is_told(tmp_path, capsys):
  path = tmp_path / 'broken.jsonl'
  record = json.loads((_FILES / 'mbpp.jsonl').read_text().splitlines()[0])
  path.write_text(json.dumps(record | {'code': 'def add(a, b):\n  return N'}))
  benchmark = benchmarks.read('mbpp_original', str(path))
  result = harness.run(
    benchmark,
    [programs_lib.Sample('Mbpp/11', 0, 'def add(a, b): return a + b')],
    tmp_path / 'results.jsonl',
    _OPTIONS,
  )
  assert result['broken_references'] == ['Mbpp/11']
  said = capsys.readouterr().out.splitlines()
  assert 'Mbpp/11: its own reference solution fails here' in said


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'entry_point': None}, "line 2: field 'entry_point' is of type NoneType"),
    ({'task_id': 'HumanEval/900'}, 'line 2: task_id .* is there twice'),
    ({'base_input': [1]}, "line 2: field 'base_input' is no list of lists"),
    ({'atol': 'x'}, "line 2: field 'atol' is of type str"),
  ],
)
def test_a_line_that_cannot_be_used(tmp_path, change, message):
  lines = (_FILES / 'humaneval_plus.jsonl').read_text().splitlines()
  lines[1] = json.dumps(json.loads(lines[1]) | change)
  path = tmp_path / 'file.jsonl'
  path.write_text('\n'.join(lines))
  with pytest.raises(ValueError, match=message):
    benchmarks.read('humaneval_plus', str(path))


@pytest.mark.parametrize(
  ('tests', 'message'),
  [
    ([], "line 1: field 'test_list' holds no tests"),
    ([7], "line 1: field 'test_list' holds no tests"),
    (['assert 3 == add(1, 2)'], 'line 1: no function to test in .assert 3'),
  ],
)
def test_a_task_without_a_test_cannot_be_used(tmp_path, tests, message):
  record = json.loads((_FILES / 'mbpp.jsonl').read_text().splitlines()[0])
  path = tmp_path / 'mbpp.jsonl'
  path.write_text(json.dumps(record | {'test_list': tests}))
  with pytest.raises(ValueError, match=message):
    benchmarks.read('mbpp_original', str(path))


def test_other_files_that_cannot_be_used(tmp_path):
  path = tmp_path / 'file.jsonl'
  path.write_text('{"task_id": 1}\nx')
  with pytest.raises(ValueError, match="line 1: field 'task_id' is of type"):
    benchmarks.read('mbpp', str(path))
  path.write_text('{"task": 1}')
  with pytest.raises(
    ValueError, match="line 1: field 'task_id' is missing; there are: task"
  ):
    benchmarks.read('mbpp', str(path))
  path.write_text('[1]')
  with pytest.raises(ValueError, match='line 1: not a JSON object'):
    benchmarks.read('mbpp', str(path))
  path.write_text('x')
  with pytest.raises(ValueError, match='line 1: not JSON'):
    benchmarks.read('mbpp', str(path))
  path.write_bytes(b'\x1f\x8b123')
  with pytest.raises(ValueError, match='damaged gzip'):
    benchmarks.read('mbpp', str(path))
  path.write_text('')
  with pytest.raises(ValueError, match='no task of mbpp'):
    benchmarks.read('mbpp', str(path))
  with pytest.raises(ValueError, match='no file given'):
    benchmarks.read('mbpp', '')
  with pytest.raises(ValueError, match='there are: humaneval'):
    benchmarks.read('humanevil', str(path))


def test_toy_tasks_are_not_called_humaneval():
  benchmark = _read('demo_tasks')
  verdicts = [
    {
      'task_id': t,
      'suites': {
        'base': {'status': judge.PASS},
        'plus': {'status': judge.FAIL},
      },
    }
    for t in benchmark.tasks
  ]
  scores = harness.summarize(benchmark, verdicts)
  assert {n: s['pass@1']['value'] for n, s in scores.items()} == {
    'demo_tasks': 1.0,
    'demo_tasks_plus': 0.0,
  }


def test_original_split_and_limit():
  assert list(_read('mbpp_original').tasks) == ['Mbpp/11', 'Mbpp/12']
  assert len(_read('humaneval', limit=2).tasks) == 2
  task = _read('mbpp_original').tasks['Mbpp/12']
  assert task.entry_point == 'smallest'
  assert '\r' not in task.reference
  assert task.prompt == (
    '"""\nWrite a function that finds the smallest number.\n'
    'assert smallest(xs) == 1\n"""\n'
  )


@pytest.mark.parametrize(
  ('task', 'given', 'wanted'),
  [
    ('Mbpp/3', [[1]], [[1]]),
    ('Mbpp/2', [[[1], [2]]], [[(1,), (2,)]]),
    ('Mbpp/63', [[[[1, 2]]]], [[[(1, 2)]]]),
    ('Mbpp/75', [[[[1]], 2]], [[[(1,)], 2]]),
    ('Mbpp/106', [[[1], [2]]], [[[1], (2,)]]),
    ('Mbpp/115', [[[[1], [], {}]]], [[[{1}, {}, {}]]]),
    ('Mbpp/124', [['1', '2j']], [[1.0, 2j]]),
    ('Mbpp/307', [[[1], 2, 3]], [[(1,), 2, 3]]),
    ('Mbpp/259', [[[[1]], [[2]]]], [[((1,),), ((2,),)]]),
    ('Mbpp/278', [[[[1], 2]]], [[((1,), 2)]]),
    ('Mbpp/580', [[[[1], [[2]]]]], [[((1,), ((2,),))]]),
    ('Mbpp/722', [[{'a': [1]}, 2]], [[{'a': (1,)}, 2]]),
  ],
)
def test_types_that_json_took(task, given, wanted):
  assert mbpp_inputs.restore(task, given) == wanted


def _matches(output, expected, atol=0.0, *, family='mbpp', name='f', args=()):
  (used,) = oracles.tolerances(atol, [expected])
  return oracles.matches(family, name, list(args), output, expected, used)


def test_outputs_are_compared_as_evalplus_does():
  assert _matches(1, 1.0)
  assert _matches(True, 1)
  assert not _matches((1,), [1])
  assert _matches(0.3, 0.1 + 0.2)  # a float has a tolerance of 1e-6
  assert not _matches(0.30001, 0.3)
  assert not _matches([0.3], [0.1 + 0.2, 1.0])
  assert _matches([0.3], [0.1 + 0.2])
  assert not _matches((0.3,), [0.1 + 0.2])
  assert not _matches(np.float64(0.3), 0.1 + 0.2)  # another type
  assert _matches(np.float64(0.3), 0.3)
  assert not _matches(np.array([1, 2]), [1, 2])
  assert _matches(2.05, 2.0, 0.1)
  assert not _matches(Opaque('x'), 1)
  assert not _matches('a', 0.5)
  assert oracles.tolerances(0, [1, 0.5, 2]) == [0, 1e-6, 1e-6]


def test_tasks_with_rules_of_their_own():
  assert _matches([2, 1, 1], (1, 2), name='similar_elements')
  assert not _matches([1], (1, 2), name='similar_elements')
  assert _matches(np.array([2, 1]), (1, 2), name='similar_elements')
  assert _matches(5, 9, name='are_equivalent')
  assert _matches(0, 9, name='sum_div')
  assert _matches(7, 3, name='digit_distance_nums', args=(123, 256))
  assert _matches(35, 0, name='surface_Area', args=(3, 4))
  assert oracles.expect('mbpp', 'check_str', Opaque('Match')) is True
  assert oracles.expect('mbpp', 'f', None) is None
  assert _matches(Opaque('Match'), True, name='check_str')
  assert not _matches(None, True, name='check_str')
  assert not _matches(False, True, name='check_str')
  root = {'family': 'humaneval', 'name': 'find_zero', 'args': ([-4, 0, 1],)}
  assert _matches(-2.0, 2.0, 1e-4, **root)  # any root is right
  assert not _matches(1.9, 2.0, 1e-4, **root)
  assert not _matches('x', 2.0, 1e-4, **root)


def test_samples_files(tmp_path):
  benchmark = _read('humaneval')
  path = tmp_path / 'samples.jsonl'
  lines = [
    {'task_id': t, 'solution': f'x{i}'}
    for t in benchmark.tasks
    for i in range(2)
  ]
  lines[1] = {'task_id': 'HumanEval/900', 'completion': '  pass'}
  path.write_text('\n\n'.join(map(json.dumps, lines)))
  found = programs_lib.read(str(path), benchmark)
  assert [s.number for s in found] == [0, 1] * 3
  assert found[1].program == benchmark.tasks['HumanEval/900'].prompt + '  pass'
  programs_lib.write(path, found)
  assert programs_lib.read(str(path), benchmark) == found
  folder = tmp_path / 'folder' / 'HumanEval_901'
  folder.mkdir(parents=True)
  for number in (10, 2):
    (folder / f'{number}.py').write_text(f'x{number}')
  with pytest.raises(ValueError, match="no sample of 2 tasks.*'HumanEval/900'"):
    programs_lib.read(str(folder.parent), benchmark)
  found = programs_lib.read(str(folder.parent), benchmark, allow_missing=True)
  assert [s.program for s in found] == ['x2', 'x10']
  for line, message in (
    ('{"task_id": "HumanEval/1", "solution": ""}', "line 1: .*no task 'Hum"),
    ('{"task_id": "HumanEval/900"}', "line 1: no text in 'solution'"),
    ('[]', 'line 1: no JSON object'),
  ):
    path.write_text(line)
    with pytest.raises(ValueError, match=message):
      programs_lib.read(str(path), benchmark)


def test_pass_at_k_is_the_share_of_subsets_with_a_right_one():
  rng = np.random.default_rng(0)
  right = np.array([True, False, False, True, False, False, False])
  for k in (1, 2, 5, 7):
    drawn = np.mean(
      [right[rng.permutation(7)[:k]].any() for _ in range(20_000)]
    )
    assert pass_at_k.pass_at_k(7, 2, k) == pytest.approx(drawn, abs=0.02)
  assert pass_at_k.pass_at_k(200, 0, 100) == 0.0
  assert pass_at_k.pass_at_k(200, 199, 100) == 1.0
  exact = 1 - math.comb(190, 100) / math.comb(200, 100)
  assert pass_at_k.pass_at_k(200, 10, 100) == exact
  for n, c, k in ((5, 6, 1), (5, 1, 6), (5, -1, 1), (5, 1, 0)):
    with pytest.raises(ValueError):
      pass_at_k.pass_at_k(n, c, k)


@pytest.mark.parametrize(('c', 'n'), [(0, 10), (3, 10), (164, 164), (50, 378)])
def test_wilson_interval_equals_scipy(c, n):
  wanted = scipy.stats.binomtest(c, n).proportion_ci(0.95, 'wilson')
  assert pass_at_k.wilson(c, n) == pytest.approx(tuple(wanted), abs=1e-12)


def test_bootstrap_interval_covers():
  rng = np.random.default_rng(0)
  hits = 0
  for seed in range(200):
    per_task = rng.beta(0.5, 0.5, size=60)
    low, high = pass_at_k.bootstrap(per_task, seed)
    hits += low <= 0.5 <= high
  assert 180 <= hits <= 199
  assert pass_at_k.bootstrap(np.ones(5)) == (1.0, 1.0)


def test_summary_of_several_samples():
  found = pass_at_k.summarize({'a': [True, False], 'b': [False, False]}, (1, 2))
  assert found['pass@1']['value'] == 0.25
  assert found['pass@2']['value'] == 0.5
  assert found['pass@2']['interval'] == 'bootstrap over tasks'
  assert list(pass_at_k.summarize({'a': [True], 'b': [True] * 9})) == ['pass@1']


def test_plus_is_of_programs_that_pass_both_suites():
  benchmark = benchmarks.Benchmark(
    'humaneval_plus', 'humaneval', ('base', 'plus'), {}, ''
  )
  verdicts = [
    {
      'task_id': f'HumanEval/{i}',
      'suites': {
        name: {'status': status}
        for name, status in zip(('base', 'plus'), each, strict=True)
      },
    }
    for i, each in enumerate(
      [
        ('pass', 'pass'),
        ('pass', 'fail'),
        ('fail', 'pass'),
        ('pass', 'timeout'),
      ]
    )
  ]
  scores = harness.summarize(benchmark, verdicts)
  assert scores['humaneval']['pass@1']['value'] == 0.75
  assert scores['humaneval_plus']['pass@1']['value'] == 0.25


def test_the_file_of_another_benchmark_is_refused():
  path = pathlib.Path(__file__).parent / 'fixtures/benchmarks/mbpp_plus.jsonl'
  with pytest.raises(ValueError, match="'Mbpp/900' is none of humaneval_plus"):
    benchmarks.read('humaneval_plus', str(path))
