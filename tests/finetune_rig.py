"""A small real fine-tuning run, in this process or, as a script, in its own.

Model and examples are made from seeds, so that two processes train the same
thing. As a script it can be told to kill itself (SIGKILL, as kill -9, or
SIGTERM) at an update, at an evaluation, or while a checkpoint is written.

  python finetune_rig.py FOLDER [WHERE:STEP[:SIGNAL]]
"""

import os
import pathlib
import signal
import sys

import jax
import numpy as np
import tolerances
from flax import nnx

from qaq_jax.encoding.examples import Example
from qaq_jax.finetune import checkpoints, loop, optimizer, step
from qaq_jax.models import decoder, sharding
from qaq_jax.models.hf.read_config import read_config

VOCAB = 40
OPTIONS = loop.FitOptions(
  batch_size=8,
  epochs=3,
  max_length=32,
  tokens_per_device=64,
  log_every=3,
  eval_every=6,
  save_every=4,
  keep=2,
  progress=False,
)
OPTIMIZER = optimizer.OptimizerOptions(learning_rate=0.02, warmup_ratio=0.1)


def model(mesh=None, dtype='float32'):
  config = read_config(
    {
      'model_type': 'qwen3',
      'vocab_size': VOCAB,
      'hidden_size': 32,
      'intermediate_size': 48,
      'num_hidden_layers': 2,
      'num_attention_heads': 2,
      'num_key_value_heads': 2,
      'head_dim': 16,
      'max_position_embeddings': 64,
      'rope_theta': 10000.0,
      'rms_norm_eps': 1e-6,
      'hidden_act': 'silu',
      'attention_bias': False,
      'tie_word_embeddings': True,
    }
  )
  return decoder.Decoder(config, rngs=nnx.Rngs(0), mesh=mesh, dtype=dtype)


def curve_limit():
  """Of losses and norms, relative: every update adds its gradient's error."""
  return 24 * tolerances.decoder(model().config, 32, gradient=True)


def mesh(data=1, fsdp=1, tensor=1):
  devices = jax.devices()[: data * fsdp * tensor]
  return sharding.make_mesh(data, fsdp, tensor, devices=devices)


def examples(number=60, seed=0):
  """Counting upwards from a random start: easy to learn."""
  rng = np.random.default_rng(seed)
  found = []
  for row in range(number):
    size = int(rng.integers(4, 17))
    ids = (rng.integers(VOCAB) + np.arange(size)) % VOCAB
    weights = rng.choice([0.0, 1.0, 3.0], size)
    weights[-1] = 1.0
    found.append(Example(ids.astype(np.int32), weights.astype(np.float32), row))
  return found


def trainer(mesh=None, optimizer_options=OPTIMIZER):
  return step.Trainer(
    model(mesh),
    optimizer.make(optimizer_options),
    step.StepOptions(remat=False),
  )


def fit(
  folder,
  *,
  on=None,
  options=OPTIONS,
  optimizer_options=OPTIMIZER,
  data=None,
  made=None,
  **more,
):
  """Trains in `folder`; returns the FitResult."""
  made = made or trainer(on, optimizer_options)
  more.setdefault('validation', examples(20, seed=1))
  return loop.fit(
    made,
    made.state,
    examples() if data is None else data,
    folder,
    options=options,
    optimizer_options=optimizer_options,
    **more,
  )


def kill_at(where: str, number: int, how: int) -> dict:
  """Makes this process send itself a signal; returns arguments for `fit`.

  Args:
    where: 'update' (dispatched, not yet fetched), 'evaluate' or 'save'
      (started, not yet on disk).
    number: the update, from 1.
    how: the signal.
  """

  def kill(found):
    if found == number:
      os.kill(os.getpid(), how)

  if where == 'evaluate':
    return {'measure_fn': lambda state: kill(int(state.step)) or {}}
  if where == 'save':
    real_save = checkpoints.Checkpoints.save

    def save(self, step, *args):
      real_save(self, step, *args)
      kill(step)

    checkpoints.Checkpoints.save = save
  elif where == 'update':
    real_update = loop._Loop._update

    def update(self, batch):
      metrics = real_update(self, batch)
      kill(batch.step)
      return metrics

    loop._Loop._update = update
  else:
    raise ValueError(where)
  return {}


if __name__ == '__main__':
  more = {}
  if len(sys.argv) > 2:
    where, number, how = sys.argv[2].split(':')
    more = kill_at(where, int(number), getattr(signal, how))
  result = fit(pathlib.Path(sys.argv[1]), **more)
  print('finished', result.steps, result.best_step)
