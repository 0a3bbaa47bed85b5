"""Killed, stopped, moved to other devices: the run ends as if it never was."""

import dataclasses
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys

import finetune_rig as rig
import jax
import numpy as np
import pytest

from qaq_jax.finetune import checkpoints, signals
from qaq_jax.workdir import files

ROOT = pathlib.Path(__file__).resolve().parent.parent
# What depends on the clock, not on the data.
_TIMES = ('seconds', 'tokens_per_second', 'mfu')


def _curve(folder):
  lines = (folder / 'metrics.jsonl').read_text().splitlines()
  return [
    {k: v for k, v in json.loads(line).items() if k not in _TIMES}
    for line in lines
  ]


def _child(folder, *arguments, devices=1):
  count = f'--xla_force_host_platform_device_count={devices}'
  flags = f'{os.environ["XLA_FLAGS"]} {count}'
  return subprocess.run(
    [sys.executable, ROOT / 'tests' / 'finetune_rig.py', folder, *arguments],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=300,
    env={**os.environ, 'PYTHONPATH': str(ROOT), 'XLA_FLAGS': flags},
  )


def _equal(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


def _state(folder, step=24):
  like = checkpoints.abstract(rig.trainer().state)
  return checkpoints.load(folder / 'checkpoints', step, like)


def test_killed_again_and_again_it_ends_bit_identical(tmp_path):
  """kill -9 before any checkpoint, in mid-save, in an evaluation; SIGTERM."""
  whole, killed = tmp_path / 'whole', tmp_path / 'killed'
  done = _child(whole)
  assert done.returncode == 0, done.stderr
  pieces = 0
  for life in ('update:3', 'save:6', 'evaluate:12', 'save:24'):
    done = _child(killed, f'{life}:SIGKILL')
    assert done.returncode == -signal.SIGKILL, (life, done.stderr)
    if life.startswith('save'):
      names = [p.name for p in (killed / 'checkpoints').iterdir()]
      pieces += any('tmp' in name for name in names)
    if life == 'evaluate:12':
      done = _child(killed, 'update:13:SIGTERM')
      assert done.returncode == 128 + signal.SIGTERM, done.stderr
      assert 'after update 13 of 24' in done.stderr
      assert (killed / 'checkpoints' / '13').is_dir()
  assert pieces  # at least one kill left a half-written checkpoint
  done = _child(killed)
  assert done.returncode == 0, done.stderr
  assert 'finished 24' in done.stdout
  assert _curve(killed) == _curve(whole)
  names = sorted(p.name for p in (killed / 'checkpoints').iterdir())
  assert names == sorted(p.name for p in (whole / 'checkpoints').iterdir())
  _equal(_state(killed), _state(whole))


def test_curve_has_every_line_once(tmp_path):
  result = rig.fit(tmp_path)
  curve = _curve(tmp_path)
  assert [x['step'] for x in curve if 'loss' in x] == list(range(3, 25, 3))
  assert [x['step'] for x in curve if 'validation_loss' in x] == [6, 12, 18, 24]
  assert result.steps == 24 and curve[-1]['epoch'] == 3.0
  last = [x for x in curve if 'loss' in x][-1]
  tokens = 3 * sum(len(e.ids) for e in rig.examples())
  assert last['tokens'] == result.tokens == tokens
  assert last['loss'] < 0.5 * curve[0]['loss']
  assert set(curve[0]) == {
    'step',
    'epoch',
    'loss',
    'grad_norm',
    'learning_rate',
    'tokens',
  }
  # A finished run, started again, does nothing and gives the same.
  before = (tmp_path / 'metrics.jsonl').read_bytes()
  again = rig.fit(tmp_path)
  _equal(again.state, result.state)
  assert again.tokens == result.tokens
  assert (tmp_path / 'metrics.jsonl').read_bytes() == before


@pytest.mark.parametrize('how', ['SIGTERM', 'SIGINT'])
def test_asked_to_stop_it_saves_and_says_how_to_go_on(tmp_path, how):
  number = getattr(signal, how)
  before = signal.getsignal(number)  # a shell's background job ignores SIGINT
  with pytest.raises(signals.Interrupted) as caught:
    rig.fit(
      tmp_path,
      measure_fn=lambda state: os.kill(os.getpid(), number) or {},
    )
  assert caught.value.code == 128 + number
  # The signal came in the evaluation after update 6; update 7 was made.
  assert 'after update 7 of 24' in str(caught.value)
  assert 'same command' in str(caught.value)
  assert (tmp_path / 'checkpoints' / '7').is_dir()
  result = rig.fit(tmp_path)
  assert result.steps == 24
  rig.fit(tmp_path / 'whole')
  assert _curve(tmp_path) == _curve(tmp_path / 'whole')
  assert signal.getsignal(number) is before


def _stop_after(number):
  """A measure_fn that stops a run after the evaluation of an update."""

  def measure(state):
    if int(state.step) >= number:
      os.kill(os.getpid(), signal.SIGTERM)
    return {}

  return measure


def test_goes_on_with_other_devices_on_the_same_curve(tmp_path):
  """8 devices -> 1, and 1 -> 8, against 1 all the way."""
  meshes = [rig.mesh(2, 2, 2), None]
  rig.fit(tmp_path / 'one')
  one = _curve(tmp_path / 'one')
  for before, after in (meshes, meshes[::-1]):
    folder = tmp_path / f'to{after}'
    with pytest.raises(signals.Interrupted):
      rig.fit(folder, on=before, measure_fn=_stop_after(12))
    result = rig.fit(folder, on=after)
    for a, b in zip(_curve(folder), one, strict=True):
      assert a == pytest.approx(b, rel=rig.curve_limit())
    devices = {
      len(x.sharding.device_set) for x in jax.tree.leaves(result.state.params)
    }
    assert devices == {1 if after is None else 8}


_PROCESS = """
import os, pathlib, signal, sys
import jax
jax.config.update('jax_cpu_collectives_implementation', 'gloo')
folder, port, index = sys.argv[1], sys.argv[2], int(sys.argv[3])
jax.distributed.initialize(f'localhost:{port}', 2, index)
import finetune_rig as rig
from qaq_jax.finetune import signals

def stop(state):
  if index == 1 and int(state.step) == 12:
    os.kill(os.getpid(), signal.SIGTERM)
  return {}

on = rig.mesh(fsdp=2)
try:
  rig.fit(pathlib.Path(folder), on=on, measure_fn=stop)
except signals.Interrupted as e:
  print('stopped', e.code)
result = rig.fit(pathlib.Path(folder), on=on)
print('finished', result.steps)
"""


@pytest.mark.process
@pytest.mark.slow
def test_two_processes_stop_together_and_go_on(tmp_path):
  """Each holds half of every parameter; the second one is asked to stop."""
  with socket.socket() as free:
    free.bind(('localhost', 0))
    port = str(free.getsockname()[1])
  path = os.pathsep.join((str(ROOT), str(ROOT / 'tests')))
  one = '--xla_force_host_platform_device_count=1'
  flags = f'{os.environ["XLA_FLAGS"]} {one}'
  processes = [
    subprocess.Popen(
      [sys.executable, '-c', _PROCESS, tmp_path / 'two', port, str(index)],
      cwd=ROOT,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
      env={**os.environ, 'PYTHONPATH': path, 'XLA_FLAGS': flags},
    )
    for index in range(2)
  ]
  for process in processes:
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert 'stopped 143' in out and 'finished 24' in out
  rig.fit(tmp_path / 'one')
  for a, b in zip(
    _curve(tmp_path / 'two'), _curve(tmp_path / 'one'), strict=True
  ):
    assert a == pytest.approx(b, rel=rig.curve_limit())


def test_other_settings_are_refused_with_the_difference(tmp_path):
  rig.fit(tmp_path, options=dataclasses.replace(rig.OPTIONS, max_steps=4))
  before = (tmp_path / 'metrics.jsonl').read_bytes()
  data = rig.examples()
  data[3].ids[2] += 1
  changes = {
    r'options.batch_size: 8 -> 4': {
      'options': dataclasses.replace(rig.OPTIONS, max_steps=4, batch_size=4)
    },
    r'options.max_steps: 4 -> 0': {'options': rig.OPTIONS},
    r'optimizer.learning_rate: 0.02 -> 0.01': {
      'optimizer_options': dataclasses.replace(
        rig.OPTIMIZER, learning_rate=0.01
      )
    },
    r'examples: ': {'data': data},
    r'validation: ': {'validation': ()},
    r'given.model: \(absent\) -> "other"': {'fingerprint': {'model': 'other'}},
  }
  for message, change in changes.items():
    change.setdefault('options', dataclasses.replace(rig.OPTIONS, max_steps=4))
    with pytest.raises(files.StoreError, match=message):
      rig.fit(tmp_path, **change)
  assert (tmp_path / 'metrics.jsonl').read_bytes() == before
  # What changes no number may change.
  rig.fit(
    tmp_path,
    options=dataclasses.replace(
      rig.OPTIONS, max_steps=4, keep=1, save_every=1, tokens_per_device=32
    ),
  )


def test_checkpoints_of_an_unknown_run_are_refused(tmp_path):
  rig.fit(tmp_path, options=dataclasses.replace(rig.OPTIONS, max_steps=2))
  (tmp_path / 'fingerprint.json').unlink()
  with pytest.raises(files.StoreError, match='unknown'):
    rig.fit(tmp_path)


def test_half_deleted_old_checkpoint_is_no_obstacle(tmp_path):
  """What a kill leaves that hits while an old checkpoint is deleted."""
  options = dataclasses.replace(rig.OPTIONS, max_steps=12)
  with pytest.raises(signals.Interrupted):
    rig.fit(tmp_path, options=options, measure_fn=_stop_after(6))
  old = tmp_path / 'checkpoints' / '6'
  assert old.is_dir() and (tmp_path / 'checkpoints' / '7').is_dir()
  shutil.rmtree(old / 'state')
  (old / 'metrics' / 'metrics').unlink()
  result = rig.fit(tmp_path, options=options)
  assert result.best_step == result.steps == 12
  rig.fit(tmp_path / 'whole', options=options)
  assert _curve(tmp_path) == _curve(tmp_path / 'whole')


def test_damaged_checkpoint_is_named(tmp_path):
  options = dataclasses.replace(rig.OPTIONS, max_steps=6)
  rig.fit(tmp_path, options=options)
  for part in (tmp_path / 'checkpoints' / '6').rglob('*/d'):
    shutil.rmtree(part)
  with pytest.raises(files.StoreError, match='checkpoints/6 .*delete this'):
    rig.fit(tmp_path, options=options)
  shutil.rmtree(tmp_path / 'checkpoints' / '6')
  assert rig.fit(tmp_path, options=options).steps == 6


def test_best_checkpoint_stays_and_is_what_load_best_reads(tmp_path):
  # Trained on one thing, validated on another: it soon gets worse.
  found = {}

  def measure(state):
    found[int(state.step)] = jax.device_get(state.params)
    return {}

  options = dataclasses.replace(
    rig.OPTIONS, epochs=4, eval_every=2, save_every=0, keep=1
  )
  wrong = [
    dataclasses.replace(e, ids=e.ids[::-1].copy())
    for e in rig.examples(20, seed=1)
  ]
  result = rig.fit(
    tmp_path, options=options, validation=wrong, measure_fn=measure
  )
  losses = {
    x['step']: x['validation_loss']
    for x in _curve(tmp_path)
    if 'validation_loss' in x
  }
  best = min(losses, key=losses.get)
  assert best < max(losses) - 4  # newer ones came, and it is still there
  assert (result.best_step, result.best_loss) == (best, losses[best])
  assert sorted(int(p.name) for p in (tmp_path / 'checkpoints').iterdir()) == [
    best,
    32,
  ]
  _equal(result.load_best().params, found[best])
  # Also when the run is only looked at again.
  again = rig.fit(tmp_path, options=options, validation=wrong)
  assert again.best_step == best
  _equal(again.load_best().params, found[best])


def test_two_runs_in_one_folder_are_refused(tmp_path):
  lock = files.Lock(tmp_path)
  try:
    with pytest.raises(files.StoreError, match='another process'):
      rig.fit(tmp_path)
  finally:
    lock.release()
