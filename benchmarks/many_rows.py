"""Selecting from many rows: seconds and memory, in memory and by DuckDB.

  python benchmarks/many_rows.py --rows=10000000 --engines=memory,duckdb

Makes a table of two models with random scores (kept in --folder), then runs
each engine in a process of its own: `select.select` or `beyond_memory.select`
with diff_high at 25%, reading and report included. Beside them a plain pyarrow
read of the same columns. Equal choices have equal hashes.
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
    f'{name}_{model}' for model in ('strong', 'weak')
    for name in ('status', 'nll_q', 'n_q', 'nll_q_given_a', 'n_q_given_a',
                 'n_a')
]


def make(path, rows):
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
      columns |= {
          f'{k}_{model}': v.astype(np.float32) for k, v in sums.items()
      }
      columns |= {
          f'n_q_{model}': n_q, f'n_q_given_a_{model}': n_q,
          f'n_a_{model}': n_a,
          f'status_{model}': np.where(rng.random(m) < 0.95, 'ok', 'too_long'),
          f'reason_{model}': np.full(m, ''),
      }
    table = pa.table(columns)
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
    from qaq_jax.selection import beyond_memory, select

    asked = {'rule': 'diff_high', 'budget': {'share': 0.25}, 'seed': 0}
    if engine == 'memory':
      chosen = select.select(str(path), **asked)
    else:
      chosen = beyond_memory.select(
          path, temporary=path.parent / 'tmp', memory_gb=memory_gb, **asked
      )
    found['rows'] = len(chosen.rows)
    found['sha256'] = chosen.report['rows_sha256'][:12]
  usage = resource.getrusage(resource.RUSAGE_SELF)
  return {
      'engine': engine, 'seconds': round(time.perf_counter() - start, 1),
      'cpu_seconds': round(time.process_time(), 1),
      'peak_gb': round(usage.ru_maxrss * 1024 / 1e9, 2), **found,
  }


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
  if not path.exists():
    start = time.perf_counter()
    make(path, args.rows)
    print(
        f'{args.rows:,} rows, {path.stat().st_size / args.rows:.0f} bytes '
        f'each, made in {time.perf_counter() - start:.0f} s', flush=True,
    )
  for engine in args.engines.split(','):
    subprocess.run(
        [sys.executable, __file__, f'--engine={engine}',
         f'--rows={args.rows}', f'--folder={args.folder}',
         f'--memory-gb={args.memory_gb}'], check=True,
    )


if __name__ == '__main__':
  main()
