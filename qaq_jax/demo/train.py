r"""Trains a demo model from a recipe; see configs/train_demo.py.

  python -m qaq_jax.demo.train --config=configs/train_demo.py:strong \
      --workdir=DIR

A killed run continues when started again. Learning curve in
WORKDIR/metrics.jsonl, the model in Hugging Face format in WORKDIR/model.
"""

import os
import pathlib

import jax.numpy as jnp
import tokenizers
from absl import app, flags
from flax import nnx
from ml_collections import config_flags

from qaq_jax.demo import corpus, separation
from qaq_jax.demo import tokenizer as tokenizer_lib
from qaq_jax.finetune import loop, optimizer, step
from qaq_jax.models.decoder import Decoder
from qaq_jax.models.hf import checkpoint
from qaq_jax.models.hf.read_config import read_config
from qaq_jax.runtime import console
from qaq_jax.workdir import files

_CONFIG = config_flags.DEFINE_config_file(
  'config',
  None,
  'Recipe, as in configs/train_demo.py:strong.',
  lock_config=True,
)
_WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of all output.')


def load_or_train_tokenizer(pairs, vocab_size: int, path: pathlib.Path):
  """The tokenizer in file `path`, made from the pairs when missing."""
  if not path.exists():
    # Queries are short: twice, so that their words get tokens of their own.
    texts = (t for p in pairs for t in (p.query, p.query, p.answer))
    tokenizer = tokenizer_lib.train_tokenizer(texts, vocab_size)
    tokenizer_lib.save_tokenizer(tokenizer, path.parent, max_length=1024)
  return tokenizers.Tokenizer.from_file(str(path))


def model_config(sizes: dict, tokenizer, max_length: int) -> dict:
  """A Qwen3 config.json of the given sizes for the tokenizer."""
  return {
    'model_type': 'qwen3',
    'architectures': ['Qwen3ForCausalLM'],
    'vocab_size': tokenizer.get_vocab_size(),
    'hidden_size': sizes['hidden_size'],
    'intermediate_size': sizes['intermediate_size'],
    'num_hidden_layers': sizes['num_layers'],
    'num_attention_heads': sizes['num_heads'],
    'num_key_value_heads': sizes['num_heads'],
    'head_dim': sizes['head_dim'],
    'max_position_embeddings': max_length,
    'rope_theta': 10000.0,
    'rms_norm_eps': 1e-6,
    'hidden_act': 'silu',
    'attention_bias': False,
    'use_sliding_window': False,
    'tie_word_embeddings': True,
    'bos_token_id': tokenizer.token_to_id(tokenizer_lib.BOS),
    'eos_token_id': tokenizer.token_to_id(tokenizer_lib.EOS),
    'pad_token_id': tokenizer.token_to_id(tokenizer_lib.PAD),
  }


def train(config, workdir: str | os.PathLike) -> dict:
  """Mines, trains, exports; returns the final measures."""
  folder = pathlib.Path(workdir)
  folder.mkdir(parents=True, exist_ok=True)
  options = corpus.CorpusOptions(**config.corpus)
  train_pairs, held_out = corpus.load_or_mine(options, folder)
  tokenizer = load_or_train_tokenizer(
    train_pairs, options.vocab_size, folder / 'tokenizer' / 'tokenizer.json'
  )
  examples = corpus.make_examples(
    tokenizer,
    train_pairs,
    forward_share=options.forward_share,
    query_weight=options.query_weight,
  )
  every = max(len(held_out) // options.max_held_out, 1)
  measured = corpus.encode(tokenizer, held_out[::every])
  part = corpus.pieces(tokenizer)

  def evaluate(model):
    return separation.separation(
      model, measured, bos=part['bos'][0], before_query=part['before_query']
    )

  model = Decoder(
    read_config(model_config(config.model, tokenizer, 1024)),
    rngs=nnx.Rngs(config.seed),
    dtype=jnp.dtype(config.dtype),
  )
  console.say(f'{len(train_pairs)} training, {len(measured)} held-out pairs')
  optimizer_options = optimizer.OptimizerOptions(**config.optimizer)
  trainer = step.Trainer(
    model, optimizer.make(optimizer_options), step.StepOptions(remat=False)
  )
  fitted = loop.fit(
    trainer,
    trainer.state,
    examples,
    folder,
    options=loop.FitOptions(seed=config.seed, **config.loop),
    optimizer_options=optimizer_options,
    measure_fn=lambda state: evaluate(trainer.model(state)),
    name=config.name,
  )
  out = folder / 'model'
  checkpoint.save_hf(trainer.model(fitted.state), out, dtype=jnp.bfloat16)
  tokenizer_lib.save_tokenizer(tokenizer, out, max_length=1024)
  # What counts is the file: measured on the rounded weights.
  loaded = checkpoint.load(out, mesh=None, dtype=jnp.float32)
  result = evaluate(loaded)
  files.write_json(folder / 'result.json', result)
  console.say(f'exported to {out}: {result}')
  return result


def main(argv: list[str]) -> None:
  """Runs the recipe."""
  if len(argv) > 1:
    raise app.UsageError(f'unknown arguments {argv[1:]}')
  assert _WORKDIR.value is not None  # marked as required
  train(_CONFIG.value, _WORKDIR.value)


if __name__ == '__main__':
  flags.mark_flags_as_required(['config', 'workdir'])
  app.run(main)
