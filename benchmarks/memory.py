"""Peak memory of preparing, scoring and joining, by number of rows.

  python benchmarks/memory.py --rows=5000,200000

Each size runs in a process of its own, with a one-layer model and rows of a few
dozen tokens: the figures show what grows with the rows, not what a model needs.
The share that the interpreter and JAX take before the first row is printed too.
"""

import argparse
import json
import pathlib
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time

WORDS = (
  'write',
  'a',
  'function',
  'that',
  'adds',
  'two',
  'numbers',
  'and',
  'returns',
  'the',
  'sum',
)


def peak() -> float:
  """Largest resident memory of this process so far, MiB."""
  size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return size / (2**20 if sys.platform == 'darwin' else 2**10)


def measure(rows: int) -> None:
  """Prepares, scores and joins `rows` rows; prints a line of JSON."""
  import jax
  import tokenizers

  from qaq_jax.data import samples as samples_lib
  from qaq_jax.data.types import DataSource
  from qaq_jax.encoding import encoder as encoder_lib
  from qaq_jax.models import sharding
  from qaq_jax.models.hf import checkpoint
  from qaq_jax.models.hf.read_config import read_config
  from qaq_jax.scoring import join, scorer
  from qaq_jax.scoring.options import ScoreOptions

  folder = pathlib.Path(tempfile.mkdtemp(prefix='memory_'))
  words = tokenizers.models.WordLevel(
    {
      '<|end|>': 0,
      **{w: i + 1 for i, w in enumerate(dict.fromkeys(WORDS))},
      '\n': 30,
      ':': 31,
    },
    '<|end|>',
  )
  tokenizer = tokenizers.Tokenizer(words)
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
  (folder / 'tokenizer').mkdir()
  tokenizer.save(str(folder / 'tokenizer' / 'tokenizer.json'))
  (folder / 'tokenizer' / 'tokenizer_config.json').write_text(
    json.dumps(
      {
        'tokenizer_class': 'PreTrainedTokenizerFast',
        'eos_token': '<|end|>',
      }
    )
  )
  rng = random.Random(0)
  with open(folder / 'in.jsonl', 'w') as file:
    for i in range(rows):
      file.write(
        json.dumps(
          {
            'id': i,
            'instruction': ' '.join(rng.choices(WORDS, k=rng.randint(4, 12))),
            'output': ' '.join(rng.choices(WORDS, k=rng.randint(4, 24))),
          }
        )
        + '\n'
      )
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  model = checkpoint.random_init(
    read_config(
      {
        'model_type': 'qwen2',
        'vocab_size': 128,
        'hidden_size': 16,
        'intermediate_size': 16,
        'num_hidden_layers': 1,
        'num_attention_heads': 2,
        'num_key_value_heads': 1,
        'max_position_embeddings': 512,
        'rms_norm_eps': 1e-6,
        'rope_theta': 1e4,
        'tie_word_embeddings': True,
        'hidden_act': 'silu',
      }
    ),
    mesh=mesh,
  )
  before, start = peak(), time.perf_counter()
  samples_lib.prepare(DataSource(str(folder / 'in.jsonl')), folder / 'samples')
  prepared = peak()
  samples = samples_lib.SampleStore.open(folder / 'samples')
  encoder = encoder_lib.Encoder(
    folder / 'tokenizer', template='plain', reverse_instruction='{answer}'
  )
  summary = scorer.score(
    samples,
    encoder,
    model,
    name='m',
    out_dir=folder / 'scores',
    mesh=mesh,
    fingerprint={},
    options=ScoreOptions(rows_per_part=1024, max_shapes=8, progress=False),
  )
  scored = peak()
  join.join_scores(
    folder / 'scores.parquet',
    {'m': folder / 'scores'},
    num_rows=rows,
    ids=lambda: (s.id for s in samples.iter_rows()),
  )
  print(
    json.dumps(
      {
        'rows': rows,
        'before the first row, MiB': round(before),
        'prepared, MiB': round(prepared),
        'scored, MiB': round(scored),
        'joined, MiB': round(peak()),
        'tokens': summary['tokens'],
        'seconds': round(time.perf_counter() - start),
      }
    ),
    flush=True,
  )
  shutil.rmtree(folder)


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument('--rows', default='5000,200000')
  parser.add_argument('--one', type=int, help='measure in this process')
  args = parser.parse_args()
  if args.one is not None:
    measure(args.one)
    return
  for rows in args.rows.split(','):
    subprocess.run(
      [sys.executable, __file__, '--one', rows],
      check=True,
      stderr=subprocess.DEVNULL,
    )


if __name__ == '__main__':
  main()
