"""How far the plan's prediction is off, where it can be checked: on this CPU.

  python benchmarks/plan_check.py

The predictor of `qaq plan` gets this machine as a chip: its measured rate of a
float32 product of 1,024 x 1,024 matrices, and of copying memory. Each line
compares its seconds for a batch with the median of the same compiled program's
runs. The share of the peak that is assumed is 1 here, so `measured / predicted`
is the reciprocal of the utilisation that the step reached.
"""

import argparse
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from qaq_jax import config as config_lib
from qaq_jax.finetune import mfu
from qaq_jax.models.hf import checkpoint
from qaq_jax.models.hf.read_config import read_config
from qaq_jax.planner import predict
from qaq_jax.planner.footprint import Mesh
from qaq_jax.runtime import chips
from qaq_jax.scoring import programs as programs_lib

_48M = {
  'model_type': 'qwen2',
  'architectures': ['Qwen2ForCausalLM'],
  'vocab_size': 49152,
  'hidden_size': 512,
  'intermediate_size': 1408,
  'num_hidden_layers': 8,
  'num_attention_heads': 8,
  'num_key_value_heads': 2,
  'max_position_embeddings': 4096,
  'rms_norm_eps': 1e-6,
  'rope_theta': 1e6,
  'tie_word_embeddings': True,
  'hidden_act': 'silu',
  'bos_token_id': 0,
  'eos_token_id': 0,
}


def this_machine(clock) -> chips.Chip:
  """This CPU as a chip."""
  peak, _ = mfu.peak_flops('float32')
  x = np.ones(1 << 26, np.float32)
  times = []
  for _ in range(5):
    start = clock()
    x.copy()
    times.append(clock() - start)
  rate = 2 * x.nbytes / min(times)
  return chips.Chip('cpu', (), 'cpu', peak, peak, peak, 0, rate, 1.0)


def measured(programs, shape, scored, vocab, clock, repeats) -> float:
  """Median seconds of a batch whose middle is scored."""
  rows, length = shape
  rng = np.random.default_rng(0)
  tokens = rng.integers(0, vocab, shape)
  spans = np.zeros((rows, 2, 2), int)
  spans[:, 0] = length - round(scored * length), length
  programs.compile([shape])
  times = []
  for _ in range(repeats + 1):
    start = clock()
    out = programs.run(tokens, spans, np.full(rows, length))
    jax.block_until_ready(out)
    times.append(clock() - start)
  return statistics.median(times[1:])


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument('--repeats', type=int, default=5)
  parser.add_argument('--clock', choices=('wall', 'cpu'), default='wall')
  args = parser.parse_args()
  clock = time.perf_counter if args.clock == 'wall' else time.process_time
  chip = this_machine(clock)
  print(
    f'{chip.flops / 1e9:.0f} GFLOP/s, {chip.bandwidth / 1e9:.1f} GB/s, '
    f'{args.clock} time'
  )
  assumed = predict.Assumptions(1.0, 1.0, 1.0)
  models = {
    'demo strong, 2.6M': checkpoint.load(
      config_lib.embedded_model('strong'), mesh=None
    ),
    'Qwen2 shape, 48M': checkpoint.random_init(
      read_config(_48M), mesh=None, dtype=jnp.float32
    ),
  }
  print('| model | rows x tokens | scored | predicted | measured | ratio |')
  print('|---|---|---|---|---|---|')
  for name, model in models.items():
    programs = programs_lib.Programs(model, None)
    for shape in ((32, 64), (8, 256), (4, 1024)):
      for scored in (0.25, 0.75):
        step = predict.scoring_step(
          model.config,
          Mesh(),
          chip,
          shape,
          scored,
          assumed,
          dtype='float32',
        )
        took = measured(
          programs,
          shape,
          scored,
          model.config.vocab_size,
          clock,
          args.repeats,
        )
        print(
          f'| {name} | {shape[0]} x {shape[1]} | {scored:.0%} | '
          f'{step.seconds * 1e3:.0f} ms | {took * 1e3:.0f} ms | '
          f'{took / step.seconds:.2f} |',
          flush=True,
        )


if __name__ == '__main__':
  main()
