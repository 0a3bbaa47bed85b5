"""Several real processes: the same table, and an end when one is lost."""

import fnmatch
import json
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pyarrow.parquet as pq
import pytest
import tolerances

from qaq_jax import config
from qaq_jax.models.hf.read_config import read_config
from qaq_jax.runtime import processes
from qaq_jax.workdir import files

ROOT = pathlib.Path(__file__).resolve().parent.parent
SUMS = ('nll_q', 'nll_q_given_a', 'nll_a', 'nll_a_given_q')
EXACT = ('row', 'n_q_strong', 'n_a_strong', 'status_strong', 'reason_strong')


# Compiled as for users (see conftest): these score in earnest.
AS_USERS = (
  '--xla_backend_optimization_level=3 --xla_cpu_use_fusion_emitters=true'
)
# Of sums in which nothing cancels, over rows of at most 256 tokens.
RELATIVE = tolerances.decoder(
  read_config(
    files.read_json(
      pathlib.Path(config.embedded_model('strong'), 'config.json')
    )
  ),
  256,
)


def make_data(path, rows=90, longest=40):
  """Pairs of many lengths; one is empty, one is too long."""
  rng = random.Random(0)
  words = ('add', 'sum', 'for', 'x', 'in', 'range', 'return', 'of', 'print')
  with open(path, 'w') as file:
    for i in range(rows):
      record = {
        'instruction': ' '.join(rng.choices(words, k=rng.randint(2, 12))),
        'output': ' '.join(rng.choices(words, k=rng.randint(3, longest))),
      }
      if i == 4:
        record['output'] = ' '
      if i == 11:
        record['output'] = 'sum ' * 2000
      file.write(json.dumps(record) + '\n')


def recipe(folder):
  """A recipe with one small model."""
  path = folder / 'one.py'
  path.write_text(
    'from qaq_jax import config as lib\n\n'
    'def get_config():\n'
    '  c = lib.get_default()\n'
    f'  c.data.path = {str(folder / "in.jsonl")!r}\n'
    '  lib.add_model(c, "strong", lib.embedded_model("strong"),\n'
    '                dtype="float32", chat_template="plain")\n'
    '  c.roles.weak = ""\n'
    '  c.stages = ("prepare", "score", "select")\n'
    '  c.select.rule = "rmi_top"\n'
    '  c.score.max_length = 256\n'
    '  c.score.max_shapes = 2\n'
    '  c.score.tokens_per_batch = 256\n'
    '  c.score.rows_per_part = 16\n'
    '  c.score.length_multiple = 16\n'
    '  return c\n'
  )
  return path


def free_port():
  with socket.socket() as free:
    free.bind(('localhost', 0))
    return free.getsockname()[1]


def start(folder, number, devices, *flags, out='work'):
  """Starts `qaq run` in so many processes; their output goes to files."""
  port = free_port()
  started = []
  for index in range(number):
    environment = os.environ | {
      'XLA_FLAGS': f'{os.environ["XLA_FLAGS"]} {AS_USERS} '
      f'--xla_force_host_platform_device_count={devices}',
      'JAX_PLATFORMS': 'cpu',
      'PYTHONPATH': str(ROOT),
      'PYTHONUNBUFFERED': '1',
    }
    if number > 1:
      environment |= {
        'JAX_COORDINATOR_ADDRESS': f'localhost:{port}',
        'JAX_NUM_PROCESSES': str(number),
        'JAX_PROCESS_ID': str(index),
      }
    log = open(folder / f'{out}-{index}.log', 'w')  # noqa: SIM115
    started.append(
      subprocess.Popen(
        [
          sys.executable,
          '-m',
          'qaq_jax.main',
          'run',
          f'--config={recipe(folder)}',
          f'--workdir={folder / out}',
          *flags,
        ],
        env=environment,
        stdout=log,
        stderr=subprocess.STDOUT,
        cwd=ROOT,
      )
    )
  return started


def finish(started, folder, out='work', timeout=300):
  """Waits; returns exit codes and outputs."""
  codes = [process.wait(timeout) for process in started]
  texts = [(folder / f'{out}-{i}.log').read_text() for i in range(len(started))]
  return codes, texts


def run(folder, number, devices, *flags, out='work'):
  codes, texts = finish(
    start(folder, number, devices, *flags, out=out), folder, out
  )
  assert codes == [0] * number, '\n'.join(texts)
  return texts


def table(folder, out='work'):
  return pq.read_table(folder / out / 'scores.parquet')


def assert_same(found, wanted, exact=False):
  """Rows and statuses equal; sums equal within the stated tolerance."""
  assert found.column_names == wanted.column_names
  for name in EXACT:
    assert found[name].equals(wanted[name]), name
  for name in SUMS:
    a, b = (t[f'{name}_strong'].to_numpy() for t in (found, wanted))
    if exact:
      np.testing.assert_array_equal(a, b)
    else:
      np.testing.assert_allclose(a, b, rtol=RELATIVE)


@pytest.fixture(scope='module')
def single(tmp_path_factory):
  """The table of one process with one device."""
  folder = tmp_path_factory.mktemp('single')
  make_data(folder / 'in.jsonl')
  run(folder, 1, 1)
  return table(folder)


def test_two_processes_make_the_table_of_one(single, tmp_path):
  """Tensor across processes; every stage but scoring in the first alone."""
  make_data(tmp_path / 'in.jsonl')
  texts = run(tmp_path, 2, 1, '--config.score.mesh.tensor=2')
  assert_same(table(tmp_path), single)
  assert 'Kept' in texts[0] and 'Kept' not in texts[1]
  assert texts[0].count('wrote') >= 2 and 'wrote' not in texts[1]
  parts = sorted((tmp_path / 'work/scores/strong').glob('part-*.parquet'))
  assert len(parts) == 6
  rows = np.concatenate([pq.read_table(p)['row'].to_numpy() for p in parts])
  np.testing.assert_array_equal(rows, np.arange(90))


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.parametrize(
  'number, devices, mesh',
  [
    (2, 2, {}),
    (2, 2, {'fsdp': 4}),
    (2, 4, {'data': 2, 'fsdp': 2, 'tensor': 2}),
    (4, 1, {'fsdp': 2, 'data': 2}),
    (4, 2, {'data': 2, 'fsdp': 2, 'tensor': 2}),
  ],
)
def test_every_mesh_across_processes(number, devices, mesh, single, tmp_path):
  """And bit for bit the table of one process with as many devices."""
  make_data(tmp_path / 'in.jsonl')
  flags = [f'--config.score.mesh.{k}={n}' for k, n in mesh.items()]
  run(tmp_path, number, devices, *flags)
  assert_same(table(tmp_path), single)
  run(tmp_path, 1, number * devices, *flags, out='alone')
  assert_same(table(tmp_path), table(tmp_path, 'alone'), exact=True)


@pytest.mark.process
@pytest.mark.slow
def test_fewer_rows_than_devices(tmp_path):
  make_data(tmp_path / 'in.jsonl', rows=3)
  run(tmp_path, 1, 1, out='alone')
  run(tmp_path, 2, 4)
  assert_same(table(tmp_path), table(tmp_path, 'alone'))
  # One window: process 1 and five devices had nothing to do.
  parts = list((tmp_path / 'work/scores/strong').glob('part-*.parquet'))
  assert len(parts) == 1


@pytest.mark.process
@pytest.mark.slow
def test_restart_with_another_number_of_processes(single, tmp_path):
  """Two processes left some parts undone; four of them make those alone."""
  make_data(tmp_path / 'in.jsonl')
  run(tmp_path, 2, 1)
  folder = tmp_path / 'work' / 'scores' / 'strong'
  for index in (1, 3, 4):
    (folder / f'part-{index:06d}.parquet').unlink()
  (tmp_path / 'work' / 'scores.parquet').unlink()
  kept = {p.name: p.stat().st_mtime_ns for p in folder.glob('part-*')}
  run(tmp_path, 4, 1)
  assert_same(table(tmp_path), single)
  for name, when in kept.items():
    assert (folder / name).stat().st_mtime_ns == when


def wait_for_parts(folder, started, most=120):
  end = time.monotonic() + most
  while not list((folder / 'work/scores').glob('*/part-*.parquet')):
    assert time.monotonic() < end
    assert all(p.poll() is None for p in started)
    time.sleep(0.05)


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.parametrize(
  'number, victim, signum',
  [
    (2, 1, signal.SIGKILL),
    (2, 1, signal.SIGSTOP),
    (2, 0, signal.SIGSTOP),
    (2, 0, signal.SIGKILL),
    (4, 2, signal.SIGKILL),
    (4, 3, signal.SIGSTOP),
  ],
)
def test_the_others_name_the_lost_process(number, victim, signum, tmp_path):
  """Within 60 s; nothing written is lost, and a restart completes."""
  make_data(tmp_path / 'in.jsonl', rows=1200, longest=120)
  started = start(tmp_path, number, 1)
  try:
    wait_for_parts(tmp_path, started)
    end = time.monotonic() + 60
    started[victim].send_signal(signum)
    others = [i for i in range(number) if i != victim]
    codes = [started[i].wait(end - time.monotonic()) for i in others]
  finally:
    for process in started:
      process.kill()
      process.wait()
  lost = f'{socket.gethostname()}, pid {started[victim].pid}'
  for index, code in zip(others, codes, strict=True):
    text = (tmp_path / f'work-{index}.log').read_text()
    assert code not in (0, None)
    if victim == 0 and signum == signal.SIGKILL:
      # Jax itself ends a process whose leader is gone, at once; who that was
      # stands above it.
      assert f'process 0, the leader, is {lost}' in text, text
      assert 'the leader task was preempted/died' in text, text
    else:
      assert f'process {victim} ({lost})' in text, text
      assert 'the same command goes on' in text
  folder = tmp_path / 'work' / 'scores' / 'strong'
  kept = {p.name: p.read_bytes() for p in folder.glob('part-*.parquet')}
  assert kept
  run(tmp_path, number, 1)
  for name, data in kept.items():
    assert (folder / name).read_bytes() == data
  assert table(tmp_path).num_rows == 1200


def test_an_error_of_one_process_is_told_by_the_others(tmp_path):
  (tmp_path / 'in.jsonl').write_text('{"x": 1}\n')
  started = time.monotonic()
  codes, texts = finish(start(tmp_path, 2, 1), tmp_path)
  assert codes == [1, 3]
  assert time.monotonic() - started < 60
  assert 'qaq: error: ' in texts[0]
  assert 'process 0 (' in texts[1] and 'failed: ' in texts[1]


def test_what_fails_while_the_first_prepares_is_told_by_the_others(tmp_path):
  """Training data are read by the first process; the others wait by name."""
  started = time.monotonic()
  flags = (
    '--config.stages=("finetune",)',
    '--config.finetune.data=nowhere.jsonl',
    '--config.finetune.max_length=256',
    '--config.finetune.chat_template=plain',
  )
  codes, texts = finish(start(tmp_path, 2, 1, *flags), tmp_path)
  assert codes == [1, 3]
  assert time.monotonic() - started < 60
  assert 'nowhere.jsonl' in texts[0]
  assert 'process 0 (' in texts[1] and 'failed: ' in texts[1]
  assert texts[1].count('nowhere.jsonl') >= 1


def test_no_process_waits_for_others_without_a_name():
  """Such a collective gives up after minutes and says nothing of who failed."""
  for path in (ROOT / 'qaq_jax').rglob('*.py'):
    assert 'sync_global_devices' not in path.read_text(), path


@pytest.mark.parametrize('reached', [(0,), (1,), (0, 1)])
def test_interrupted_once_all_end(reached, tmp_path):
  """Ctrl-C in a terminal reaches every process, a signal one of them.

  One that is in a collective learns from the others before Python tells it.
  """
  make_data(tmp_path / 'in.jsonl', rows=1200, longest=120)
  started = start(tmp_path, 2, 1)
  try:
    wait_for_parts(tmp_path, started)
    for index in reached:
      started[index].send_signal(signal.SIGINT)
    codes, texts = finish(started, tmp_path, timeout=60)
  finally:
    for process in started:
      process.kill()
      process.wait()
  assert 130 in codes
  for index, (code, text) in enumerate(zip(codes, texts, strict=True)):
    assert code == 3 or (code == 130 and index in reached), texts
    if code == 130:
      assert 'interrupted; the same command goes on' in text
    else:
      assert 'failed: KeyboardInterrupt' in text
  if len(reached) == 1:
    assert codes[reached[0]] == 130


def together(program, number=2, **environment):
  """Runs a program in several processes; returns codes, outputs, errors."""
  port = free_port()
  plain = {
    k: v
    for k, v in os.environ.items()
    if not k.startswith(('SLURM_', 'OMPI_', 'JAX_', 'XLA_'))
  }
  started = [
    subprocess.Popen(
      [sys.executable, '-c', program],
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
      cwd=ROOT,
      env=plain
      | {'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': str(ROOT)}
      | {k: v.format(index=index, port=port) for k, v in environment.items()},
    )
    for index in range(number)
  ]
  try:
    ends = [process.communicate(timeout=120) for process in started]
  finally:
    for process in started:
      process.kill()
  return [p.returncode for p in started], *zip(*ends, strict=True)


@pytest.mark.parametrize(
  'how, own',
  [
    ('watch.fail(ValueError("broken"))', 1),
    ('os.kill(os.getpid(), 9)', -9),
  ],
)
def test_all_name_the_lost_one_whoever_looks_first(how, own):
  """Process 0 finds out before process 1, and has the common store."""
  program = (
    'import os, time\n'
    'import jax\n'
    'from qaq_jax.runtime import processes\n'
    'processes.LOST_SECONDS = 6.0\n'
    'index = int(os.environ["INDEX"])\n'
    'jax.distributed.initialize(num_processes=3, process_id=index)\n'
    'processes.barrier("begin")\n'
    'time.sleep((1.2, 0.0, 0.5)[index])\n'
    'watch = processes.Watch(processes.client(), index, 3)\n'
    'watch.start()\n'
    'time.sleep(3.0)\n'
    f'if index == 2: {how}\n'
    'time.sleep(60)\n'
  )
  codes, _, errors = together(
    program,
    number=3,
    JAX_COORDINATOR_ADDRESS='localhost:{port}',
    INDEX='{index}',
  )
  assert codes == [3, 3, own], errors
  for text in errors[:2]:
    assert 'process 2 (' in text, text
  assert own < 0 or 'qaq: error: broken' in errors[2]


def test_what_the_first_cannot_do_is_an_error_of_all():
  """Also where nobody watches: the others do not wait for ever."""
  program = (
    'import os\n'
    'import jax\n'
    'from qaq_jax.runtime import processes\n'
    'jax.distributed.initialize(\n'
    '    num_processes=2, process_id=int(os.environ["INDEX"]))\n'
    'done = processes.by_the_first(lambda: 7, "number")\n'
    'print(jax.process_index(), done)\n'
    'try:\n'
    '  processes.by_the_first(lambda: 1 / 0, "division")\n'
    'except Exception as e:\n'
    '  print(type(e).__name__, e)\n'
  )
  codes, outs, errors = together(
    program, JAX_COORDINATOR_ADDRESS='localhost:{port}', INDEX='{index}'
  )
  assert codes == [0, 0], errors
  assert outs == (
    '0 7\nZeroDivisionError division by zero\n',
    '1 None\nFirstFailed process 0 failed: division by zero\n',
  )


# What the environment says.


@pytest.mark.parametrize(
  'variables, found',
  [
    ({}, None),
    ({'SLURM_JOB_ID': '7', 'SLURM_NTASKS': '4'}, None),  # a shell in a job
    ({'SLURM_STEP_NUM_TASKS': '1'}, None),
    ({'SLURM_STEP_NUM_TASKS': '4'}, 'SLURM'),
    ({'OMPI_COMM_WORLD_SIZE': '2'}, 'Open MPI'),
    ({'JAX_COORDINATOR_ADDRESS': 'a:1'}, 'JAX_COORDINATOR_ADDRESS'),
  ],
)
def test_the_environment_tells_of_several_processes(
  variables, found, monkeypatch
):
  for name in (
    'JAX_COORDINATOR_ADDRESS',
    'SLURM_STEP_NUM_TASKS',
    'OMPI_COMM_WORLD_SIZE',
  ):
    monkeypatch.delenv(name, raising=False)
  for name, value in variables.items():
    monkeypatch.setenv(name, value)
  monkeypatch.setenv('JAX_PLATFORMS', 'cpu')
  assert processes.environment() == found


@pytest.mark.parametrize(
  'files, platforms, found',
  [
    ((), '', None),
    (('/dev/accel0', '/dev/accel1'), '', 'TPU'),
    (('/dev/accel0',), None, 'TPU'),
    (('/dev/vfio/0',), 'tpu,cpu', 'TPU'),
    (('/dev/accel0',), 'cpu', None),
  ],
)
def test_the_chips_of_a_pod_tell_of_several_processes(
  files, platforms, found, monkeypatch
):
  for name in (
    'JAX_COORDINATOR_ADDRESS',
    'SLURM_STEP_NUM_TASKS',
    'OMPI_COMM_WORLD_SIZE',
    'JAX_PLATFORMS',
  ):
    monkeypatch.delenv(name, raising=False)
  if platforms is not None:
    monkeypatch.setenv('JAX_PLATFORMS', platforms)
  monkeypatch.setattr(
    processes.glob,
    'glob',
    lambda pattern: [f for f in files if fnmatch.fnmatch(f, pattern)],
  )
  monkeypatch.setattr(
    processes.importlib.util, 'find_spec', lambda name: name == 'libtpu'
  )
  assert processes.environment() == found


SLURM = {
  'SLURM_JOB_ID': '77',
  'SLURM_STEP_NODELIST': 'localhost',
  'SLURM_NTASKS': '2',
  'SLURM_STEP_NUM_TASKS': '2',
  'SLURM_PROCID': '{index}',
  'SLURM_LOCALID': '{index}',
}
OPEN_MPI = {
  'OMPI_MCA_orte_hnp_uri': '1531576320.0;tcp://127.0.0.1:34911',
  'OMPI_COMM_WORLD_SIZE': '2',
  'OMPI_COMM_WORLD_RANK': '{index}',
  'OMPI_COMM_WORLD_LOCAL_RANK': '{index}',
}


@pytest.mark.parametrize('launcher', [SLURM, OPEN_MPI])
def test_processes_of_a_launcher_find_each_other(launcher):
  """Real processes, with the environment that the launcher would give."""
  program = (
    'import jax\n'
    'from qaq_jax.runtime import processes\n'
    'watch = processes.start()\n'
    'print(jax.process_index(), jax.process_count(), jax.device_count())\n'
    'processes.barrier("end")\n'
    'watch.close()\n'
  )
  codes, outs, errors = together(
    program, **launcher, JAX_COORDINATOR_PORT='{port}'
  )
  assert codes == [0, 0], errors
  for index, out in enumerate(outs):
    assert out.splitlines()[-1] == f'{index} 2 2'
