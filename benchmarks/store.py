"""Writing and reading score stores, beside plain pyarrow.

  python benchmarks/store.py --folder=FOLDER [--rows=1000000]

Writes the parts of one model with made-up scores, as `qaq score` does (checked,
checksummed, each whole or not at all and on disk before the next), joins them
into a score table, and reads the columns that diff_high needs. Beside it
`pyarrow.parquet` writes the same table in one call and reads it back.
"""

import argparse
import pathlib
import shutil
import time

import numpy as np
import pyarrow.parquet as pq

from qaq_jax.scoring import join, store
from qaq_jax.selection import columns

_PART = 8192


def clocked(label, call):
  start = time.perf_counter()
  call()
  print(f'| {label} | {time.perf_counter() - start:.2f} s |', flush=True)


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument('--folder', required=True)
  parser.add_argument('--rows', type=int, default=1_000_000)
  args = parser.parse_args()
  folder = pathlib.Path(args.folder) / 'store'
  shutil.rmtree(folder, ignore_errors=True)
  rng = np.random.default_rng(0)
  n_q = rng.integers(5, 200, args.rows).astype(np.int32)
  status = np.where(rng.random(args.rows) < 0.95, 'ok', 'too_long')
  parts = store.ScoreStore(
    folder / 'strong',
    model='strong',
    fingerprint={'made': 'up'},
    num_rows=args.rows,
  )
  parts.save_plan({'rows_per_part': _PART})
  values = {
    name: n_q
    if name.startswith('n_')
    else (n_q * rng.gamma(4, 0.6, args.rows)).astype(np.float32)
    for name in parts.schema.names[1:-2]
  }

  def write_parts():
    for index in range(parts.num_windows):
      rows = parts.window(index)
      here = slice(rows.start, rows.stop)
      missing = status[here] != 'ok'
      parts.write(
        index,
        {k: np.ma.masked_array(v[here], missing) for k, v in values.items()},
        list(status[here]),
        [''] * len(rows),
      )

  path = folder / 'scores.parquet'
  print('| what | seconds |\n|---|---|')
  with parts:
    clocked(f'{parts.num_windows} parts', write_parts)
  clocked(
    'joined',
    lambda: join.join_scores(
      path, {'strong': folder / 'strong'}, num_rows=args.rows
    ),
  )
  table = pq.read_table(path)
  clocked(
    'pyarrow writes the table',
    lambda: pq.write_table(
      table,
      folder / 'plain.parquet',
      compression='zstd',
      row_group_size=1 << 16,
    ),
  )
  clocked('RMI read', lambda: columns.ScoreColumns(path).rmi('strong'))
  clocked(
    'pyarrow reads the same columns',
    lambda: pq.read_table(
      path,
      columns=['status_strong']
      + [
        f'{n}_strong' for n in ('nll_q', 'n_q', 'nll_q_given_a', 'n_q_given_a')
      ],
    ),
  )


if __name__ == '__main__':
  main()
