"""Measures the demo's models on pairs that they never saw.

  python -m qaq_jax.demo.measure [--rows=1000] [--models=FOLDER]

Pairs of the demo's own packages, which are not in the training corpus: how
well RMI separates a query's own answer from another answer of about the same
length, as AUROC, for the strong and the weak model.
"""

import os
import pathlib

import jax.numpy as jnp
import tokenizers
from absl import app, flags

from qaq_jax.demo import corpus, defects, mining, separation
from qaq_jax.models.hf import checkpoint
from qaq_jax.runtime import console

_ROWS = flags.DEFINE_integer('rows', 1000, 'Pairs to measure on.')
_MODELS = flags.DEFINE_string(
  'models',
  str(pathlib.Path(__file__).parent / 'models'),
  'Folder with the models strong and weak.',
)


def measure(
  folder: str | os.PathLike, pairs: list[mining.Pair]
) -> dict[str, float]:
  """`separation.separation` of a model in Hugging Face format, float32.

  Args:
    folder: the model with its tokenizer.
    pairs: clean pairs that the model was not trained on.

  Returns:
    `auroc` and mean likelihoods.
  """
  model = checkpoint.load(folder, mesh=None, dtype=jnp.float32)
  tokenizer = tokenizers.Tokenizer.from_file(
    str(pathlib.Path(folder) / 'tokenizer.json')
  )
  part = corpus.pieces(tokenizer)
  return separation.separation(
    model,
    corpus.encode(tokenizer, pairs),
    bos=part['bos'][0],
    before_query=part['before_query'],
  )


def main(argv: list[str]) -> None:
  """Prints a line per model."""
  if len(argv) > 1:
    raise app.UsageError(f'unknown arguments {argv[1:]}')
  mined = mining.mine(limits=defects.DEMO_LIMITS)
  console.say(mining.describe(mined))
  pairs = mining.draw(mined, _ROWS.value)
  console.say(
    f'{len(pairs)} pairs, each with its own and with a swapped answer'
  )
  for name in ('strong', 'weak'):
    result = measure(pathlib.Path(_MODELS.value) / name, pairs)
    figures = ', '.join(f'{k} {v:.3f}' for k, v in result.items())
    console.say(f'{name}: {figures}')


if __name__ == '__main__':
  app.run(main)
