r"""How fast one core tokenizes: what each process of a pod does with all rows.

  TOKENIZERS_PARALLELISM=false taskset -c 0 python benchmarks/tokenization.py \
      --data=DATA/gpteacher_codegen_instruct.json.gz --tokenizer=DATA/qwen2 \
      --template=chatml

Prints tokens of all sequences (forward and reverse, templates included) per CPU
second of reading prepared rows, encoding and batching, the median of several
turns, and the chips that would take as much.
"""

import argparse
import collections
import statistics
import tempfile
import time

from qaq_jax.data import samples
from qaq_jax.data.types import DataSource
from qaq_jax.encoding import encoder as encoder_lib
from qaq_jax.scoring import batching

CHIP_FLOPS = 197e12  # bf16 of a TPU v5e
UTILISATION = 0.5  # assumed


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument('--data', required=True)
  parser.add_argument('--tokenizer', required=True)
  parser.add_argument('--template', default='plain')
  parser.add_argument('--rows', type=int, default=4000)
  parser.add_argument('--repeats', type=int, default=5)
  args = parser.parse_args()
  encoder = encoder_lib.Encoder(
    args.tokenizer, template=args.template, max_length=2048
  )
  with tempfile.TemporaryDirectory() as folder:
    samples.prepare(DataSource(args.data, limit=args.rows), folder + '/s')
    store = samples.SampleStore.open(folder + '/s')
    plan = plan_of(store, encoder)
    turns = [one_turn(store, encoder, plan) for _ in range(args.repeats)]
  rate = statistics.median(turns)
  print(f'{rate:,.0f} tokens per CPU second')
  for parameters in (0.5e9, 6.7e9):
    chip = UTILISATION * CHIP_FLOPS / (2 * parameters)
    print(
      f'{parameters / 1e9:g}B: {chip:,.0f} tokens/s per v5e chip at '
      f'{UTILISATION:.0%}; one core feeds {rate / chip:.1f} chips'
    )


def windows(store, encoder):
  """(row, slot, sequence) of each 512 rows."""
  for start in range(0, store.num_rows, 512):
    rows = store.iter_rows(start, min(start + 512, store.num_rows))
    yield [
      (row.row, slot, sequence)
      for row in encoder.encode(list(rows))
      for slot, sequence in enumerate(row.sequences)
    ]


def plan_of(store, encoder) -> batching.BatchPlan:
  """Shapes for the rows' lengths, which a run makes once."""
  lengths = collections.Counter(
    len(sequence.ids)
    for window in windows(store, encoder)
    for _, _, sequence in window
  )
  return batching.plan_shapes(
    lengths,
    max_shapes=6,
    tokens_per_batch=65536,
    multiple=128,
    rows_multiple=8,
    window=1024,
  )


def one_turn(store, encoder, plan) -> float:
  """Tokens per CPU second of one pass over the rows."""
  started, tokens = time.process_time(), 0
  for window in windows(store, encoder):
    tokens += sum(
      int(batch.lengths_B.sum())
      for batch in batching.make_batches(window, plan)
    )
  return tokens / (time.process_time() - started)


if __name__ == '__main__':
  main()
