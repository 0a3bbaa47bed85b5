"""Selecting from many rows: seconds and memory, in memory and by DuckDB.

  python benchmarks/many_rows.py --rows=10000000 --engines=memory,duckdb

Makes a table of two models with random scores (kept in --folder), then runs
each engine in a process of its own: `select.select` or `engine.select`
with diff_high at 25%, reading and report included. Beside them a plain pyarrow
read of the same columns. Equal choices have equal hashes.

  python benchmarks/many_rows.py --rows=10000000 --engines=command

prepares as many made-up pairs of 200 bytes and runs `qaq select`, which also
writes the chosen records.
"""

import argparse
import json
import pathlib
import resource
import subprocess
import sys
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

_GROUP = 1 << 20
COLUMNS = ['row'] + [
  f'{name}_{model}'
  for model in ('strong', 'weak')
  for name in ('status', 'nll_q', 'n_q', 'nll_q_given_a', 'n_q_given_a', 'n_a')
]


def make(path, rows, metadata=None):
  """Writes the table, a million rows at a time."""
  rng = np.random.default_rng(0)
  writer = None
  for at in range(0, rows, _GROUP):
    m = min(_GROUP, rows - at)
    columns = {'row': np.arange(at, at + m)}
    for model in ('strong', 'weak'):
      n_q = rng.integers(5, 200, m).astype(np.int32)
      n_a = rng.integers(20, 400, m).astype(np.int32)
      log_ppl = rng.gamma(4, 0.6, m)
      sums = {
        'nll_q': n_q * log_ppl,
        'nll_q_given_a': n_q * (log_ppl - rng.normal(0.3, 0.3, m)),
        'nll_a': n_a * rng.gamma(4, 0.3, m),
        'nll_a_given_q': n_a * rng.gamma(4, 0.2, m),
      }
      columns |= {f'{k}_{model}': v.astype(np.float32) for k, v in sums.items()}
      columns |= {
        f'n_q_{model}': n_q,
        f'n_q_given_a_{model}': n_q,
        f'n_a_{model}': n_a,
        f'status_{model}': np.where(rng.random(m) < 0.95, 'ok', 'too_long'),
        f'reason_{model}': np.full(m, ''),
      }
    table = pa.table(columns, metadata=metadata)
    if writer is None:
      writer = pq.ParquetWriter(path, table.schema, compression='zstd')
    writer.write_table(table, row_group_size=1 << 16)
  writer.close()


def run(engine, path, memory_gb):
  """One engine, in this process."""
  start = time.perf_counter()
  found = {}
  if engine == 'pyarrow':
    found['bytes'] = pq.read_table(path, columns=COLUMNS).nbytes
  else:
    from qaq_jax.selection import select
    from qaq_jax.selection.sql import engine as engine_lib

    asked = {'rule': 'diff_high', 'budget': {'share': 0.25}, 'seed': 0}
    if engine == 'memory':
      chosen = select.select(str(path), **asked)
    else:
      chosen = engine_lib.select(
        path, temporary=path.parent / 'tmp', memory_gb=memory_gb, **asked
      )
    found['rows'] = len(chosen.rows)
    found['sha256'] = chosen.report['rows_sha256'][:12]
  usage = resource.getrusage(resource.RUSAGE_SELF)
  return {
    'engine': engine,
    'seconds': round(time.perf_counter() - start, 1),
    'cpu_seconds': round(time.process_time(), 1),
    'peak_gb': round(usage.ru_maxrss * 1024 / 1e9, 2),
    **found,
  }


def command(folder, rows):
  """`qaq select` on so many prepared pairs, in a process of its own."""
  from qaq_jax.data import samples
  from qaq_jax.workdir.layout import SAMPLES_KEY, WorkDir

  data, work = folder / f'pairs-{rows}.jsonl', folder / f'work-{rows}'
  if not data.exists():
    text = 'def add(x, y):\\n  return x + y  # and so on\\n' * 3
    with open(data, 'w') as file:
      for i in range(rows):
        file.write(
          f'{{"instruction": "Add up number {i} and another one.", '
          f'"output": "{text}"}}\n'
        )
  recipe = folder / 'recipe.py'
  recipe.write_text(
    'from qaq_jax import config as lib\n\n'
    'def get_config():\n'
    '  c = lib.get_default()\n'
    f'  c.data.path = {str(data)!r}\n'
    '  for name in ("strong", "weak"):\n'
    '    lib.add_model(c, name, lib.embedded_model(name))\n'
    '  return c\n'
  )

  def stage(name):
    subprocess.run(
      [
        sys.executable,
        '-m',
        'qaq_jax.main',
        name,
        f'--config={recipe}',
        f'--workdir={work}',
      ],
      check=True,
      stdout=subprocess.DEVNULL,
    )

  start = time.perf_counter()
  stage('prepare')
  print(f'prepared in {time.perf_counter() - start:.0f} s', flush=True)
  content = samples.SampleStore.open(work / 'samples').content_hash
  make(WorkDir(work).scores, rows, {SAMPLES_KEY: content})
  start = time.perf_counter()
  before = resource.getrusage(resource.RUSAGE_CHILDREN)
  stage('select')
  usage = resource.getrusage(resource.RUSAGE_CHILDREN)
  print(
    json.dumps(
      {
        'engine': 'command',
        'seconds': round(time.perf_counter() - start, 1),
        'cpu_seconds': round(
          usage.ru_utime + usage.ru_stime - before.ru_utime - before.ru_stime, 1
        ),
        'peak_gb': round(usage.ru_maxrss * 1024 / 1e9, 2),
        'written_gb': round((work / 'selected.jsonl').stat().st_size / 1e9, 2),
      }
    )
  )


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--rows', type=int, default=10_000_000)
  parser.add_argument('--folder', type=pathlib.Path, required=True)
  parser.add_argument('--engines', default='pyarrow,memory,duckdb')
  parser.add_argument('--memory-gb', type=float, default=4.0)
  parser.add_argument('--engine', default='')
  args = parser.parse_args()
  path = args.folder / f'scores-{args.rows}.parquet'
  if args.engine:
    print(json.dumps(run(args.engine, path, args.memory_gb)))
    return
  args.folder.mkdir(parents=True, exist_ok=True)
  if args.engines == 'command':
    command(args.folder, args.rows)
    return
  if not path.exists():
    start = time.perf_counter()
    make(path, args.rows)
    print(
      f'{args.rows:,} rows, {path.stat().st_size / args.rows:.0f} bytes '
      f'each, made in {time.perf_counter() - start:.0f} s',
      flush=True,
    )
  for engine in args.engines.split(','):
    subprocess.run(
      [
        sys.executable,
        __file__,
        f'--engine={engine}',
        f'--rows={args.rows}',
        f'--folder={args.folder}',
        f'--memory-gb={args.memory_gb}',
      ],
      check=True,
    )


if __name__ == '__main__':
  main()
