"""A training step on this CPU, beside transformers on torch.

  python benchmarks/train_cpu.py --repeats=5

Both make the same update: same weights, same rows of random ids, AdamW in
float32 with the gradient clipped at norm 1. Cases are the demo's strong model
(2.6M parameters) and a random Qwen2 shape of 48M (see score_cpu.py), at a few
batch shapes; the loss counts all tokens, or the second half of each row, as in
fine-tuning on responses (torch computes all logits either way).

torch runs with its fused AdamW, and the threads that jax has. Steps are timed
in turn, `--steps` of ours and of torch, and the ratio is taken within a repeat:
a machine that does other work disturbs both. Before that, losses and gradient
norms of three updates are compared. On a busy machine pin the process to one
core and count its CPU time: `taskset -c 0 ... --clock=cpu`.
"""

import argparse
import pathlib
import statistics
import tempfile
import time

import jax.numpy as jnp
import numpy as np
import score_cpu
import torch
import transformers

from qaq_jax.finetune import optimizer as optimizer_lib
from qaq_jax.finetune import step as step_lib
from qaq_jax.models.hf import checkpoint
from qaq_jax.models.hf.read_config import read_config

DEMO = pathlib.Path(__file__).parent.parent / 'qaq_jax/demo/models/strong'
RATE = 1e-4
# model, rows, tokens per row, part of each row whose loss counts
CASES = (
  ('demo', 16, 256, 1.0),
  ('demo', 16, 256, 0.5),
  ('demo', 8, 1024, 0.5),
  ('48m', 4, 256, 1.0),
  ('48m', 4, 256, 0.5),
  ('48m', 2, 1024, 0.5),
)


def make_batch(vocab_size: int, rows: int, length: int, counted: float):
  """Returns a micro-batch of random ids."""
  rng = np.random.default_rng(0)
  weights = np.zeros((rows, length), np.float32)
  weights[:, max(length - int(length * counted), 1) :] = 1.0
  return {
    'tokens': rng.integers(0, vocab_size, (rows, length)).astype(np.int32),
    'segment_ids': np.ones((rows, length), np.int32),
    'weights': weights,
  }


class Ours:
  """Training with this project."""

  def __init__(self, folder, batch, remat):
    options = optimizer_lib.OptimizerOptions(weight_decay=0.01)
    self._trainer = step_lib.Trainer(
      checkpoint.load(folder, mesh=None, dtype=jnp.float32),
      optimizer_lib.make(options),
      step_lib.StepOptions(remat=remat),
    )
    self._state, self._batch = self._trainer.state, batch

  def step(self):
    """Makes an update; returns loss and norm of the gradient."""
    self._state, metrics = self._trainer.update(self._state, self._batch, RATE)
    return float(metrics['loss']), float(metrics['grad_norm'])


class Torch:
  """Training with transformers."""

  def __init__(self, folder, batch, remat):
    self._model = transformers.AutoModelForCausalLM.from_pretrained(
      folder, dtype=torch.float32
    ).train()
    if remat:
      self._model.gradient_checkpointing_enable()
    named = list(self._model.named_parameters())
    plain = [p for n, p in named if n.endswith('bias') or 'norm' in n]
    kept = {id(p) for p in plain}
    self._optimizer = torch.optim.AdamW(
      [
        {
          'params': [p for _, p in named if id(p) not in kept],
          'weight_decay': 0.01,
        },
        {'params': plain, 'weight_decay': 0.0},
      ],
      lr=RATE,
      fused=True,
    )
    ids = torch.from_numpy(batch['tokens']).long()
    labels = torch.where(torch.from_numpy(batch['weights']) > 0, ids, -100)
    self._ids, self._labels = ids, labels

  def step(self):
    """Makes an update; returns loss and norm of the gradient."""
    self._optimizer.zero_grad(set_to_none=True)
    loss = self._model(self._ids, labels=self._labels, use_cache=False).loss
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(self._model.parameters(), 1.0)
    self._optimizer.step()
    return loss.item(), norm.item()


def measure(folder, case, steps, repeats, remat, clock):
  """Prints one line of the table."""
  name, rows, length, counted = case
  vocab_size = checkpoint.read_config(folder).vocab_size
  batch = make_batch(vocab_size, rows, length, counted)
  sides = {'ours': Ours(folder, batch, remat)}
  sides['torch'] = Torch(folder, batch, remat)
  for _ in range(3):  # the first compiles
    ours, theirs = sides['ours'].step(), sides['torch'].step()
    np.testing.assert_allclose(ours, theirs, rtol=1e-3)
  seconds = {'ours': [], 'torch': []}
  for _ in range(repeats):
    for side, model in sides.items():
      start = clock()
      for _ in range(steps):
        model.step()
      seconds[side].append((clock() - start) / steps)
  ratios = [
    t / o for o, t in zip(seconds['ours'], seconds['torch'], strict=True)
  ]
  ours, theirs = (statistics.median(seconds[s]) for s in ('ours', 'torch'))
  print(
    f'| {name} | {rows} x {length} | {counted:.0%} | {1e3 * ours:.0f} ms |'
    f' {1e3 * theirs:.0f} ms | {statistics.median(ratios):.2f}x |'
    f' {min(ratios):.2f} to {max(ratios):.2f} |',
    flush=True,
  )


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument('--repeats', type=int, default=5)
  parser.add_argument('--steps', type=int, default=2)
  parser.add_argument('--cases', default='', help='numbers, from 0; all')
  parser.add_argument('--remat', action='store_true')
  parser.add_argument('--clock', choices=('wall', 'cpu'), default='wall')
  args = parser.parse_args()
  clock = time.perf_counter if args.clock == 'wall' else time.process_time
  transformers.utils.logging.disable_progress_bar()
  print(f'{torch.get_num_threads()} threads')
  print(
    '| model | rows x tokens | loss on | ours | torch | ours is faster by'
    ' | range |\n|---|---|---|---|---|---|---|'
  )
  chosen = [int(n) for n in args.cases.split(',') if n] or range(len(CASES))
  with tempfile.TemporaryDirectory() as folder:
    config = read_config(score_cpu.CONFIG)
    folders = {'demo': DEMO, '48m': pathlib.Path(folder)}
    checkpoint.save_hf(
      checkpoint.random_init(config, mesh=None), folder, dtype=jnp.float32
    )
    for number in chosen:
      case = CASES[number]
      measure(
        folders[case[0]], case, args.steps, args.repeats, args.remat, clock
      )


if __name__ == '__main__':
  main()
