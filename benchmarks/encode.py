"""Tokens per second of making sequences, for any tokenizer folders.

  python benchmarks/encode.py --data=pairs.jsonl TOKENIZER_FOLDER ...

Counts the tokens of both sequences of every row, as the scorer gets them; Q
and A are encoded once and used in both. CPU seconds are of all threads, so
tokens per CPU second hold on a busy machine too.
"""

import argparse
import statistics
import time

from qaq_jax.data import samples
from qaq_jax.encoding import encoder as encoder_lib


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('folders', nargs='+')
  parser.add_argument('--data', required=True)
  parser.add_argument('--template', default='plain')
  parser.add_argument('--runs', type=int, default=5)
  args = parser.parse_args()
  rows = list(samples.read_samples(samples.DataSource(args.data)))
  print(f'{len(rows)} rows of {args.data}, template {args.template}')
  print(f'{"tokenizer":40} {"tokens":>10} {"Mtok/s":>8} {"Mtok/CPU s":>11}')
  for folder in args.folders:
    encoder = encoder_lib.Encoder(
      folder, template=args.template, max_length=1 << 20
    )
    wall, cpu = [], []
    for _ in range(args.runs):
      start = time.perf_counter(), time.process_time()
      tokens = 0
      for at in range(0, len(rows), 1024):
        for row in encoder.encode(rows[at : at + 1024]):
          tokens += sum(len(s.ids) for s in row.sequences)
      wall.append(time.perf_counter() - start[0])
      cpu.append(time.process_time() - start[1])
    print(
      f'{folder[-40:]:40} {tokens:10,} '
      f'{tokens / statistics.median(wall) / 1e6:8.2f} '
      f'{tokens / statistics.median(cpu) / 1e6:11.2f}'
    )


if __name__ == '__main__':
  main()
