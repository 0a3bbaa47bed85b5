"""What int8 does to the result: the same rows under every scheme.

  python benchmarks/quantization.py --data=pairs.jsonl [--rows=2000]
      [--strong=FOLDER --weak=FOLDER]

Scores both models in float32, bfloat16, int8 and int8_dynamic (weights and
activations; both computed in float32 here, so that nothing else is rounded),
and compares with float32: mean and largest change of RMI in nats, Spearman of
RMI under the strong model, and which part of the 25% chosen by three rules
stays. The default models are the embedded ones of 2.6M and 0.6M parameters,
the only trained ones that the project has.
"""

import argparse
import pathlib
import tempfile

import numpy as np

from qaq_jax import config as config_lib
from qaq_jax import pipeline
from qaq_jax.selection import analyses, columns, select

SCHEMES = {
  'float32': ('float32', ''),
  'bfloat16': ('bfloat16', ''),
  'int8': ('float32', 'int8'),
  'int8_dynamic': ('float32', 'int8_dynamic'),
}
RULES = ('diff_high', 'rmi_top', 'rmi_window')


def score(args, dtype, scheme, folder) -> columns.ScoreColumns:
  config = config_lib.get_default()
  config_lib.use_demo(config, rows=0)
  config.data.path = str(pathlib.Path(args.data).resolve())
  config.data.limit = args.rows
  for name in ('strong', 'weak'):
    model = config.models[name]
    model.path = getattr(args, name) or model.path
    model.dtype, model.quantization = dtype, scheme
  config.stages = ('prepare', 'score')
  pipeline.run('run', config, folder)
  return columns.ScoreColumns(pathlib.Path(folder) / 'scores.parquet')


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument('--data', required=True)
  parser.add_argument('--rows', type=int, default=0)
  parser.add_argument('--strong', default='')
  parser.add_argument('--weak', default='')
  args = parser.parse_args()
  tables = {}
  with tempfile.TemporaryDirectory() as folder:
    for name, (dtype, scheme) in SCHEMES.items():
      tables[name] = score(args, dtype, scheme, f'{folder}/{name}')
      tables[name].rmi('strong'), tables[name].rmi('weak')  # read while there
    chosen = {
      name: {
        rule: select.select(table, rule=rule, budget={'share': 0.25}).rows
        for rule in RULES
      }
      for name, table in tables.items()
    }
    exact = tables['float32']
    print(f'\n{args.data}: {exact.num_rows:,} rows')
    print(
      '| scheme | mean change of RMI | largest | Spearman | '
      + ' | '.join(RULES)
      + ' |'
    )
    print('|---' * (4 + len(RULES)) + '|')
    for name in list(SCHEMES)[1:]:
      a, b = (t.rmi('strong') for t in (exact, tables[name]))
      good = np.isfinite(a) & np.isfinite(b)
      change = np.abs(a - b)[good]
      spearman = analyses.spearman(a[good], b[good])
      kept = [
        len(np.intersect1d(chosen[name][r], chosen['float32'][r]))
        / len(chosen['float32'][r])
        for r in RULES
      ]
      print(
        f'| {name} | {change.mean():.4f} | {change.max():.3f} | '
        f'{spearman:.5f} | ' + ' | '.join(f'{k:.1%}' for k in kept) + ' |'
      )


if __name__ == '__main__':
  main()
