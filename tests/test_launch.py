"""Scripts that start pods: what they would execute, and that it holds."""

import json
import os
import pathlib
import shlex
import shutil
import subprocess
import time

import pytest
import yaml

from qaq_jax.stages import registry

ROOT = pathlib.Path(__file__).resolve().parent.parent
LAUNCH = ROOT / 'launch'
ARGUMENTS = ['run', '--config=a.py:x', '--config.data.path=two words; $HOME']


def dry(*arguments, **environment):
  """The commands that tpu_pod.sh would execute, as lists of words."""
  done = subprocess.run(
    [LAUNCH / 'tpu_pod.sh', '--dry-run', *arguments],
    text=True,
    capture_output=True,
    env=os.environ | {'ZONE': 'z1'} | environment,
  )
  assert not done.returncode, done.stderr
  return [shlex.split(_plain(line)) for line in done.stdout.splitlines()]


def _plain(line):
  """bash writes a word with line feeds as $'...'; shlex doesn't know that."""
  line = (
    subprocess.run(
      ['bash', '-c', f'printf "%s\\0" {line}'], capture_output=True, check=True
    )
    .stdout.decode()
    .split('\0')[:-1]
  )
  return shlex.join(line)


def test_slices_are_made_and_deleted():
  [create] = dry('create', NAME='n1', TYPE='v5p-32', RUNTIME='v2-alpha-tpuv5')
  assert create == [
    'gcloud',
    'compute',
    'tpus',
    'queued-resources',
    'create',
    'n1',
    '--node-id=n1',
    '--accelerator-type=v5p-32',
    '--runtime-version=v2-alpha-tpuv5',
    '--zone=z1',
  ]
  assert '--spot' in dry('create', SPOT='1')[0]
  assert dry('status')[0][4:6] == ['describe', 'qaq']
  [delete] = dry('delete')
  assert delete[4:] == ['delete', 'qaq', '--force', '--zone=z1']


def test_set_up_takes_the_commit_to_every_host():
  archive, copy, install = dry('setup')
  assert archive[:2] == ['git', 'archive'] and archive[-1] == 'HEAD'
  assert archive[archive.index('-o') + 1] in copy
  assert '--worker=all' in copy and '--worker=all' in install
  script = install[-1].removeprefix('--command=')
  assert subprocess.run(['bash', '-n', '-c', script]).returncode == 0
  assert (ROOT / 'requirements/base.txt').exists()
  assert 'requirements/base.txt' in script and '.[tpu,gcs]' in script


def test_the_same_command_runs_on_every_host_and_can_be_stopped(tmp_path):
  """What ssh would pass to a host is executed with a stand-in for qaq."""
  [run] = dry('run', *ARGUMENTS)
  assert run[:6] == ['gcloud', 'compute', 'tpus', 'tpu-vm', 'ssh', 'qaq']
  assert '--worker=all' in run
  qaq = tmp_path / 'qaq_jax' / '.venv' / 'bin' / 'qaq'
  qaq.parent.mkdir(parents=True)
  qaq.write_text(
    '#!/usr/bin/env python3\n'
    'import json, signal, sys, time\n'
    'signal.signal(signal.SIGINT, lambda *_: sys.exit(print("stopped")))\n'
    'print(json.dumps(sys.argv[1:]), flush=True)\n'
    'time.sleep(60)\n'
  )
  qaq.chmod(0o755)
  log = tmp_path / 'qaq_jax' / 'qaq.log'

  def on_host(command):
    text = command[-1].removeprefix('--command=')
    subprocess.run(['bash', '-c', text], cwd=tmp_path, check=True, timeout=20)

  def wait_for(text):
    end = time.monotonic() + 20
    while not (log.exists() and text in log.read_text()):
      assert time.monotonic() < end
      time.sleep(0.05)

  on_host(run)
  wait_for('\n')
  assert json.loads(log.read_text()) == ARGUMENTS
  on_host(dry('stop')[0])
  wait_for('stopped')
  assert '--worker=3' in dry('logs', WORKER='3')[0]


@pytest.mark.parametrize(
  'arguments, environment',
  [
    ([], {'ZONE': 'z1'}),
    (['crate'], {'ZONE': 'z1'}),
    (['run'], {'ZONE': 'z1'}),
    (['create'], {'ZONE': ''}),
  ],
)
def test_mistakes_start_nothing(arguments, environment):
  done = subprocess.run(
    [LAUNCH / 'tpu_pod.sh', *arguments],
    text=True,
    capture_output=True,
    env={'PATH': os.environ['PATH'], **environment},
  )
  assert done.returncode and not done.stdout
  assert 'create' in done.stderr or 'set ZONE' in done.stderr


def test_slurm_passes_the_command_on(tmp_path):
  """With a stand-in for srun that prints what it is to start."""
  srun = tmp_path / 'srun'
  srun.write_text('#!/usr/bin/env bash\nprintf "%s\\n" "$@"\n')
  srun.chmod(0o755)
  script = LAUNCH / 'slurm.sbatch'
  found = subprocess.run(
    ['bash', script, *ARGUMENTS],
    text=True,
    capture_output=True,
    check=True,
    env={'PATH': f'{tmp_path}:{os.environ["PATH"]}'},
  ).stdout.splitlines()
  assert found[found.index('qaq') :] == ['qaq', *ARGUMENTS]
  assert subprocess.run(['bash', script], capture_output=True).returncode
  options = dict(
    line.removeprefix('#SBATCH --').split('=')
    for line in script.read_text().splitlines()
    if line.startswith('#SBATCH --') and '=' in line
  )
  # jax takes the GPU of the task's local number.
  assert options['ntasks-per-node'] == options['gpus-per-node']


def test_the_jobset_fills_its_slice():
  job = yaml.safe_load((LAUNCH / 'gke_jobset.yaml').read_text())
  hosts = job['spec']['replicatedJobs'][0]['template']['spec']
  pod = hosts['template']['spec']
  [container] = pod['containers']
  chips = container['resources']['limits']['google.com/tpu']
  x, y = pod['nodeSelector']['cloud.google.com/gke-tpu-topology'].split('x')
  assert hosts['parallelism'] == hosts['completions']
  assert hosts['parallelism'] * chips == int(x) * int(y)
  stage, config, workdir = container['args']
  assert container['command'] == ['qaq']
  assert stage in ('run', *registry.STAGES)
  recipe, argument = config.removeprefix('--config=').split(':', 1)
  assert (ROOT / recipe).exists()
  (mount,) = [m['mountPath'] for m in container['volumeMounts']]
  assert argument.startswith(f'data={mount}/')
  assert workdir.startswith('--workdir=gs://')


@pytest.mark.skipif(not shutil.which('shellcheck'), reason='no shellcheck')
def test_shellcheck_finds_nothing():
  scripts = [LAUNCH / 'tpu_pod.sh', LAUNCH / 'slurm.sbatch']
  done = subprocess.run(
    ['shellcheck', *scripts], text=True, capture_output=True
  )
  assert not done.returncode, done.stdout
