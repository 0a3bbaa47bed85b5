"""A small real scoring run, in this process or, run as a script, in its own.

Tokenizer, samples and model are made from seeds, so that two processes score
the same thing. As a script it can be told to kill itself (SIGKILL, as kill -9)
at the n-th step that touches the disk.
"""

import builtins
import contextlib
import json
import os
import pathlib
import random
import signal
import sys

import jax
import jax.numpy as jnp
import tiny_tokenizers
from flax import nnx

from qaq_jax.data import samples as samples_lib
from qaq_jax.data.types import DataSource
from qaq_jax.encoding import encoder as encoder_lib
from qaq_jax.models import decoder, sharding
from qaq_jax.models.hf.read_config import read_config
from qaq_jax.scoring import scorer
from qaq_jax.scoring.options import ScoreOptions

WORDS = ('add', 'sum', 'i', 'for', '(x)', '= 10', 'return', 'What?', 'name\n')
FINGERPRINT = {'samples': 'a hash', 'model': {'path': 'tiny', 'dtype': 'f32'}}
OPTIONS = ScoreOptions(
  tokens_per_batch=256, max_shapes=3, rows_per_part=8, progress=False
)


def make(folder: pathlib.Path, rows: int = 30, seed: int = 0) -> None:
  """Writes a tokenizer and prepared samples; some rows can't be scored."""
  tiny_tokenizers.byte_level(
    folder / 'tokenizer', special=['<|end|>'], eos='<|end|>', ordinary=[]
  )
  rng = random.Random(seed)

  def text(low, high):
    return ' '.join(rng.choices(WORDS, k=rng.randint(low, high)))

  with open(folder / 'in.jsonl', 'w') as file:
    for i in range(rows):
      record = {'id': i * 10, 'instruction': text(2, 8), 'output': text(3, 25)}
      if i == 4:
        record['output'] = ' '
      if i == 11:
        record['output'] = text(400, 400)
      if i == 12:
        record = {'id': 120, 'instruction': 7, 'output': 'x'}
      file.write(json.dumps(record) + '\n')
  samples_lib.prepare(
    DataSource(str(folder / 'in.jsonl'), columns={'id': 'id'}),
    folder / 'samples',
    rows_per_part=1000,
  )


def samples(folder):
  return samples_lib.SampleStore.open(folder / 'samples')


def encoder(folder, **changes):
  return encoder_lib.Encoder(
    folder / 'tokenizer',
    **(
      {
        'template': 'plain',
        'reverse_instruction': 'Say: {answer}',
        'max_length': 200,
      }
      | changes
    ),
  )


def config():
  return read_config(
    {
      'model_type': 'qwen2',
      'vocab_size': 421,
      'hidden_size': 32,
      'intermediate_size': 48,
      'num_hidden_layers': 2,
      'num_attention_heads': 4,
      'num_key_value_heads': 2,
      'max_position_embeddings': 512,
      'rms_norm_eps': 1e-6,
      'rope_theta': 10000.0,
      'tie_word_embeddings': True,
      'hidden_act': 'silu',
    }
  )


def model(mesh=None):
  made = decoder.Decoder(config(), rngs=nnx.Rngs(3), mesh=mesh)
  made.embedding[...] = made.embedding[...] * 6  # or it predicts nothing
  return made


def mesh(data=1, fsdp=1, tensor=1):
  devices = jax.devices()[: data * fsdp * tensor]
  return sharding.make_mesh(data, fsdp, tensor, devices=devices)


def score(
  folder,
  out='scores',
  *,
  on=None,
  options=OPTIONS,
  fingerprint=FINGERPRINT,
  encode=None,
  made=None,
  **more,
):
  """Scores `folder`'s samples into `folder/out`; returns the summary."""
  on = on or mesh()
  return scorer.score(
    samples(folder),
    encode or encoder(folder),
    made or (lambda: model(on)),
    name='m',
    out_dir=folder / out,
    fingerprint=fingerprint,
    options=options,
    mesh=on,
    **more,
  )


def kill_at(step: int) -> None:
  """Kills this process, without a chance to clean up, at a disk step.

  Steps are: opening a file for writing, half-way through a write, fsync,
  before and after a rename.
  """
  count = [0]

  def tick():
    count[0] += 1
    if count[0] == step:
      os.kill(os.getpid(), signal.SIGKILL)

  class Slow:
    """Writes the first half, ticks, writes the rest."""

    def __init__(self, file):
      self._file = file

    def write(self, data):
      half = len(data) // 2
      self._file.write(data[:half])
      self._file.flush()
      tick()
      return self._file.write(data[half:])

    def __getattr__(self, name):
      return getattr(self._file, name)

  from qaq_jax.workdir import files

  real_replace, real_fsync = os.replace, os.fsync
  real_rename, real_atomic = os.rename, files.atomic_file

  @contextlib.contextmanager
  def atomic(path):
    tick()
    with real_atomic(path) as file:
      yield Slow(file)

  def around(function):
    def inner(*args, **kwargs):
      tick()
      result = function(*args, **kwargs)
      tick()
      return result

    return inner

  os.replace, os.rename = around(real_replace), around(real_rename)
  os.fsync = around(real_fsync)
  files.atomic_file = atomic


if __name__ == '__main__':
  where, killed_at = pathlib.Path(sys.argv[1]), int(sys.argv[2])
  if killed_at:
    kill_at(killed_at)
  score(where)
  builtins.print('finished', jnp.zeros(()).dtype)
