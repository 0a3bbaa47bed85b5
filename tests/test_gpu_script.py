"""benchmarks/gpu.py, on the CPU with tiny shapes: it must run unattended."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

SCRIPT = pathlib.Path(__file__).parent.parent / 'benchmarks' / 'gpu.py'


def run(folder, *flags):
  done = subprocess.run(
    [sys.executable, str(SCRIPT), f'--out={folder}', '--tiny', *flags],
    env=os.environ
    | {
      'JAX_PLATFORMS': 'cpu',
      'XLA_FLAGS': os.environ['XLA_FLAGS']
      + ' --xla_force_host_platform_device_count=1',
    },
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  return done.stdout


def test_our_case_measures_every_batch_size(tmp_path):
  found = json.loads(
    run(tmp_path, '--case=ours', '--model=0.5B', '--rows=6').splitlines()[-1]
  )
  assert [t['tokens_per_batch'] for t in found['tried']] == [512, 2048]
  assert (
    found['rows_per_second']
    == max(t['rows_per_second'] for t in found['tried'])
    > 0
  )
  assert found['compile_seconds'] > 0


@pytest.mark.slow
def test_every_case_runs_to_the_end_and_is_kept(tmp_path):
  pytest.importorskip('torch')
  text = run(tmp_path, '--models=0.5B', '--rows=8')
  lines = [
    json.loads(line)
    for line in (tmp_path / 'results.jsonl').read_text().splitlines()
  ]
  assert [line['case'] for line in lines] == [
    'peak',
    'attention',
    'ours',
    'torch4',
    'ours, cached',
    'torch2',
    'ours, profiled',
    'ours, xla',
  ]
  assert not [line for line in lines if 'error' in line]
  assert lines[0]['jax'] > 0 and lines[0]['torch'] > 0
  assert lines[6]['profile']
  assert '| 0.5B | torch4 |' in text
