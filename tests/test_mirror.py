"""Work directories in object stores: the store holds what a folder would."""

import errno
import json
import os
import pathlib
import subprocess
import sys

import fsspec
import numpy as np
import pyarrow.parquet as pq
import pytest
import test_processes as several
from moto.server import ThreadedMotoServer

from qaq_jax import config as config_lib
from qaq_jax import pipeline
from qaq_jax.scoring import store
from qaq_jax.workdir import files, lease, mirror

ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture
def memory():
  """A file system of the process's memory, empty."""
  system = fsspec.filesystem('memory')
  system.store.clear()
  system.pseudo_dirs[:] = ['']
  return system


@pytest.fixture(scope='module')
def bucket():
  """An S3 server on this machine."""
  server = ThreadedMotoServer(port=0)
  server.start()
  host, port = server.get_host_and_port()
  given = {
    'AWS_ACCESS_KEY_ID': 'a',
    'AWS_SECRET_ACCESS_KEY': 'b',
    'AWS_DEFAULT_REGION': 'us-east-1',
    'AWS_ENDPOINT_URL': f'http://{host}:{port}',
  }
  with pytest.MonkeyPatch.context() as patch:
    for name, value in given.items():
      patch.setenv(name, value)
    fsspec.filesystem('s3').mkdir('runs')
    yield 's3://runs'
  server.stop()


def make_config(folder):
  c = config_lib.get_default()
  c.data.path = str(folder / 'in.jsonl')
  config_lib.add_model(
    c,
    'strong',
    config_lib.embedded_model('strong'),
    dtype='float32',
    chat_template='plain',
  )
  c.roles.weak = ''
  c.stages = ('prepare', 'score', 'select', 'report')
  c.select.rule = 'rmi_top'
  c.score.max_length = 256
  c.score.max_shapes = 1
  c.score.tokens_per_batch = 512
  c.score.rows_per_part = 16
  return c


def names(system, root):
  start = len(root) + 1
  return {path[start:] for path in system.find(root)}


def test_a_run_in_a_store_is_the_run_in_a_folder(
  memory, tmp_path, monkeypatch, capsys
):
  several.make_data(tmp_path / 'in.jsonl', rows=40)
  config = make_config(tmp_path)
  pipeline.run('run', config, str(tmp_path / 'plain'))
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'a'))
  pipeline.run('run', config, 'memory://bucket/run')
  assert 'stored in memory://bucket/run' in capsys.readouterr().out
  plain = tmp_path / 'plain'
  wanted = {
    p.relative_to(plain).as_posix()
    for p in plain.rglob('*')
    if p.is_file() and p.name != '.lock'
  }
  assert names(memory, '/bucket/run') == wanted
  for name in (
    'scores.parquet',
    'selected.jsonl',
    'scores/strong/part-000001.parquet',
  ):
    assert memory.cat(f'/bucket/run/{name}') == (plain / name).read_bytes()
  # Another machine has nothing but the store.
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'b'))
  memory.rm('/bucket/run/scores/strong/part-000001.parquet')
  memory.rm('/bucket/run/scores.parquet')
  pipeline.run('score', config, 'memory://bucket/run')
  assert names(memory, '/bucket/run') == wanted
  assert (
    memory.cat('/bucket/run/scores.parquet')
    == (plain / 'scores.parquet').read_bytes()
  )
  log = memory.cat('/bucket/run/run.log').decode().splitlines()
  results = [r for r in map(json.loads, log) if r['event'] == 'result']
  assert [r['stage'] for r in results] == [*config.stages, 'score']
  assert results[-1]['strong']['windows_reused'] == 2
  pipeline.run('analyse', config, 'memory://bucket/run')
  assert memory.exists('/bucket/run/analyses.json')


def test_stages_on_a_real_s3_server(bucket, tmp_path, monkeypatch):
  several.make_data(tmp_path / 'in.jsonl', rows=40)
  config = make_config(tmp_path)
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'a'))
  config.select.budget.share = 0.5
  pipeline.run('run', config, f'{bucket}/x')
  s3 = fsspec.filesystem('s3')
  found = names(s3, 'runs/x')
  assert {
    'scores.parquet',
    'selected.jsonl',
    'report/index.html',
    'run.log',
    'samples/samples.json',
  } <= found
  assert '.lease' not in found
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'b'))
  s3.rm('runs/x/scores/strong/part-000002.parquet')
  pipeline.run('run', config, f'{bucket}/x')
  s3.invalidate_cache()
  assert names(s3, 'runs/x') == found
  with pytest.raises(files.StoreError, match='s3://nowhere/x'):
    pipeline.run('run', config, 's3://nowhere/x')


def test_of_two_runs_on_s3_one_may_write(bucket, tmp_path, monkeypatch):
  monkeypatch.setattr(lease, 'BEAT_SECONDS', 0.2)
  a, b = (mirror.Mirror(f'{bucket}/y', tmp_path / name) for name in 'ab')
  a.take_lease()
  with pytest.raises(files.StoreError, match=f'pid {os.getpid()}'):
    b.take_lease()
  a.give_lease()
  b.take_lease()
  b.give_lease()


def test_each_part_is_stored_as_soon_as_it_is_written(
  memory, tmp_path, monkeypatch
):
  """A run that stops after a part leaves it, its plan and no lease."""
  several.make_data(tmp_path / 'in.jsonl', rows=40)
  config = make_config(tmp_path)
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'a'))
  real, seen = store.ScoreStore.write, []

  def stops(self, index, *args):
    real(self, index, *args)
    seen.append(names(memory, '/bucket/run'))
    if len(seen) == 2:
      raise KeyboardInterrupt

  monkeypatch.setattr(store.ScoreStore, 'write', stops)
  with pytest.raises(KeyboardInterrupt):
    pipeline.run('run', config, 'memory://bucket/run')
  parts = [
    {n for n in found if 'part-' in n and 'scores' in n} for found in seen
  ]
  assert [len(p) for p in parts] == [1, 2]
  assert 'scores/strong/plan.json' in seen[0]
  assert '.lease' in seen[0]
  assert '.lease' not in names(memory, '/bucket/run')


def test_the_store_is_what_counts(memory, tmp_path):
  """Changed, new and deleted files, seen from two machines."""
  a = mirror.Mirror('memory://bucket/m/', tmp_path / 'a')
  b = mirror.Mirror('memory://bucket/m', tmp_path / 'b')
  (a.path / 'x').mkdir()
  (a.path / 'x' / 'one').write_text('1')
  (a.path / 'two').write_text('2')
  (a.path / '.lock').write_text('')
  (a.path / 'x' / '.one.tmp-3').write_text('half')
  (a.path / 'samples.partial').mkdir()
  (a.path / 'samples.partial' / 'part').write_text('half')
  a.push()
  assert names(memory, '/bucket/m') == {'x/one', 'two'}
  (b.path / 'left').write_text('of a run that was killed')
  b.pull()
  assert (b.path / 'x/one').read_text() == '1'
  assert not (b.path / 'left').exists()
  (b.path / 'two').write_text('changed')
  (b.path / 'x/one').unlink()
  b.push()
  a.pull()
  assert (a.path / 'two').read_text() == 'changed'
  assert not (a.path / 'x/one').exists()
  # A new start knows what it fetched, and fetches it no second time.
  again = mirror.Mirror('memory://bucket/m', tmp_path / 'a')
  again._fs = Refuses(again._fs)
  again.pull()
  (a.path / 'two').write_text('damaged here')
  with pytest.raises(files.StoreError, match='memory://bucket/m: no'):
    again.pull()


class Refuses:
  """A file system that fetches nothing."""

  def __init__(self, system, error=None):
    self._system = system
    self._error = error or OSError('no')

  def __getattr__(self, name):
    return getattr(self._system, name)

  def get(self, *unused):
    raise self._error


def test_what_refers_to_a_file_is_stored_after_it(memory, tmp_path):
  a = mirror.Mirror('memory://bucket/m', tmp_path / 'a')
  order = ['z', 'b', 'a']
  for when, name in enumerate(order):
    (a.path / name).write_text(name)
    os.utime(a.path / name, (when, when))
  stored = []
  real = a._put
  a._put = lambda name: (stored.append(name), real(name))
  a.push()
  assert stored == order


def test_a_folder_is_fetched_without_those_whose_names_begin_alike(
  memory, tmp_path
):
  """Of models `strong` and `strong2` each has its own folder of parts."""
  a = mirror.Mirror('memory://bucket/m', tmp_path / 'a')
  for name in ('strong', 'strong2'):
    (a.path / 'scores' / name).mkdir(parents=True)
    (a.path / 'scores' / name / 'part').write_text(name)
  a.push()
  again = mirror.Mirror('memory://bucket/m', tmp_path / 'a')
  again.pull('scores/strong')
  assert (a.path / 'scores/strong2/part').read_text() == 'strong2'
  (a.path / 'scores/strong2/part').unlink()
  again.push()
  assert names(memory, '/bucket/m') == {'scores/strong/part'}


def test_a_full_disk_is_not_the_fault_of_the_store(memory, tmp_path):
  a = mirror.Mirror('memory://bucket/m', tmp_path / 'a')
  memory.pipe_file('/bucket/m/one', b'1')
  a._fs = Refuses(a._fs, OSError(errno.ENOSPC, 'No space left on device'))
  with pytest.raises(files.StoreError, match='a, the copy of .*No space.*XDG'):
    a.pull()


def test_a_store_that_tells_no_versions_is_refused(memory, tmp_path):
  """What was changed there could not be told from what was fetched."""

  class Unversioned(Refuses):
    def find(self, *words, **options):
      found = self._system.find(*words, **options)
      return {k: {'name': k, 'size': v['size']} for k, v in found.items()}

  memory.pipe_file('/bucket/m/one', b'1')
  a = mirror.Mirror('memory://bucket/m', tmp_path / 'a')
  a._fs = Unversioned(a._fs)
  with pytest.raises(files.StoreError, match='m/one: .*does not tell versions'):
    a.pull()


def test_a_mistake_of_ours_is_shown_as_one(memory, tmp_path):
  a = mirror.Mirror('memory://bucket/m', tmp_path / 'a')
  memory.pipe_file('/bucket/m/one', b'1')
  a._fs = Refuses(a._fs, TypeError('get() got'))
  with pytest.raises(TypeError):
    a.pull()


def test_a_run_whose_lease_was_taken_over_writes_no_more(memory, tmp_path):
  a = mirror.Mirror('memory://bucket/m', tmp_path / 'a')
  a.take_lease()
  (a.path / 'one').write_text('1')
  a.push()
  theirs = b'{"holder": "other, pid 7", "id": "x", "beat": 3}'
  memory.pipe_file('/bucket/m/.lease', theirs)
  (a.path / 'one').write_text('changed')
  for write in (a.push, lambda: a.push_file(a.path / 'one')):
    with pytest.raises(files.StoreError, match='other, pid 7'):
      write()
  assert memory.cat('/bucket/m/one') == b'1'
  a.give_lease()
  assert memory.cat('/bucket/m/.lease') == theirs


def test_a_missing_client_is_told_with_its_extra(tmp_path):
  """In a process where the client cannot be imported."""
  program = (
    'import sys\n'
    'sys.modules["s3fs"] = None\n'
    'from qaq_jax.workdir import mirror\n'
    f'mirror.Mirror("s3://b/x", {str(tmp_path)!r})\n'
  )
  done = subprocess.run(
    [sys.executable, '-c', program],
    capture_output=True,
    text=True,
    cwd=ROOT,
    env=os.environ | {'PYTHONPATH': str(ROOT)},
  )
  assert "pip install '.[s3]'" in done.stderr, done.stderr


@pytest.mark.process
@pytest.mark.slow
def test_several_processes_share_a_store(tmp_path, monkeypatch):
  """Each with a local copy of its own; the objects lie in a folder."""
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  several.make_data(tmp_path / 'in.jsonl')
  several.run(tmp_path, 1, 1, out='alone')
  objects = tmp_path / 'objects'
  url = f'--workdir=file://{objects}'
  texts = several.run(tmp_path, 2, 1, '--config.score.mesh.tensor=2', url)
  assert sum('stored in file://' in text for text in texts) == 1
  found = pq.read_table(objects / 'scores.parquet')
  wanted = several.table(tmp_path, 'alone')
  several.assert_same(found, wanted)
  parts = sorted((objects / 'scores/strong').glob('part-*.parquet'))
  rows = np.concatenate([pq.read_table(p)['row'].to_numpy() for p in parts])
  np.testing.assert_array_equal(rows, np.arange(90))
  assert not (objects / '.lease').exists()
  copies = list((tmp_path / 'cache/qaq_jax/workdirs').glob('*/*/samples'))
  assert len(copies) == 2
