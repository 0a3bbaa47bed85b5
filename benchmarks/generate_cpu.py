"""Generation on this CPU, beside transformers' `generate` on torch.

  python benchmarks/generate_cpu.py

Two models in float32: the random Qwen2-shaped one of `score_cpu.py` (48 million
parameters) and the demo's strong model. Prompts are random ids,
96 to 128 tokens, padded on the left where they are in one batch; both write
--new tokens greedily without a token that stops. Compared are, in turn within
one run, tokens per second of the whole call (prompts read, tokens written,
compiling excluded), and medians of --repeats and of their ratios. Whether both
wrote the same tokens is printed too.

Sampling (temperature 0.8, top-p 0.95) is timed for us and for torch as well.

Figures are of wall time, for an idle machine. On a busy one pin the process to
one core and count its CPU time: `taskset -c 0 ... --clock=cpu`.
"""

import argparse
import importlib.resources
import pathlib
import statistics
import tempfile
import time

import jax.numpy as jnp
import numpy as np
import score_cpu
import torch
import transformers

from qaq_jax.generation.generate import GREEDY, Generator, Sampling
from qaq_jax.models.hf import checkpoint
from qaq_jax.models.hf.read_config import read_config

SAMPLED = Sampling(temperature=0.8, top_p=0.95)


def folders(scratch: pathlib.Path) -> dict[str, pathlib.Path]:
  """Returns the checkpoints by name."""
  model = checkpoint.random_init(
    read_config(score_cpu.CONFIG), mesh=None, seed=0
  )
  checkpoint.save_hf(model, scratch / 'qwen2', dtype=jnp.float32)
  demo = importlib.resources.files('qaq_jax.demo') / 'models' / 'strong'
  return {'48M': scratch / 'qwen2', 'demo': pathlib.Path(str(demo))}


class Torch:
  """transformers' generate, rows padded on the left."""

  def __init__(self, folder):
    self._model = transformers.AutoModelForCausalLM.from_pretrained(
      folder, dtype=torch.float32
    ).eval()

  def __call__(self, prompts, new, options):
    """Returns `new` tokens after each prompt, [B, new]."""
    length = max(map(len, prompts))
    ids = np.zeros((len(prompts), length), np.int64)
    mask = np.zeros_like(ids)
    for row, prompt in enumerate(prompts):
      ids[row, length - len(prompt) :] = prompt
      mask[row, length - len(prompt) :] = 1
    chosen = {'do_sample': False}
    if options.temperature:
      chosen = {
        'do_sample': True,
        'temperature': options.temperature,
        'top_p': options.top_p,
        'top_k': 0,
      }
    with torch.inference_mode():
      out = self._model.generate(
        torch.from_numpy(ids),
        attention_mask=torch.from_numpy(mask),
        max_new_tokens=new,
        eos_token_id=None,
        pad_token_id=0,
        **chosen,
      )
    return out[:, length:].numpy()


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument('--models', default='48M,demo')
  parser.add_argument('--batch-sizes', default='1,16')
  parser.add_argument('--new', type=int, default=64)
  parser.add_argument('--repeats', type=int, default=5)
  parser.add_argument('--clock', choices=('wall', 'cpu'), default='wall')
  args = parser.parse_args()
  clock = time.perf_counter if args.clock == 'wall' else time.process_time
  transformers.utils.logging.disable_progress_bar()
  print(f'torch threads: {torch.get_num_threads()}')
  print(
    '| model | batch | choice | ours, tokens/s | torch, tokens/s |'
    ' faster by | range | same tokens | compiling |'
  )
  with tempfile.TemporaryDirectory() as scratch:
    found = folders(pathlib.Path(scratch))
    for name in args.models.split(','):
      model = checkpoint.load(found[name], mesh=None)
      theirs = Torch(found[name])
      for batch_size in map(int, args.batch_sizes.split(',')):
        ours = Generator(
          model,
          max_new_tokens=args.new,
          batch_size=batch_size,
          prompt_lengths=(128,),
        )
        for choice, options in (('greedy', GREEDY), ('sampled', SAMPLED)):
          compare(
            ours,
            theirs,
            options,
            f'| {name} | {batch_size} | {choice}',
            batch_size,
            args,
            clock,
            model.config.vocab_size,
          )


def compare(ours, theirs, options, label, batch_size, args, clock, vocab):
  """Times both in turn and prints a row."""
  rng = np.random.default_rng(0)
  prompts = [
    rng.integers(0, vocab, n)
    for n in np.linspace(128, 96, batch_size).astype(int)
  ]
  calls = {
    'ours': lambda: [g.ids for g in ours.generate(prompts, options)],
    'torch': lambda: theirs(prompts, args.new, options),
  }
  seconds, tokens, first = {}, {}, {}
  for repeat in range(args.repeats + 1):
    for who, call in calls.items():
      start = clock()
      tokens[who] = call()
      took = clock() - start
      if repeat:
        seconds.setdefault(who, []).append(took)
      else:
        first[who] = took
  ratios = sorted(
    b / a for a, b in zip(seconds['ours'], seconds['torch'], strict=True)
  )
  same = np.mean(
    [
      np.array_equal(a, b)
      for a, b in zip(tokens['ours'], tokens['torch'], strict=True)
    ]
  )
  rate = {
    who: batch_size * args.new / statistics.median(s)
    for who, s in seconds.items()
  }
  compiling = first['ours'] - statistics.median(seconds['ours'])
  print(
    f'{label} | {rate["ours"]:.0f} | {rate["torch"]:.0f} |'
    f' {statistics.median(ratios):.2f}x | {ratios[0]:.2f} to'
    f' {ratios[-1]:.2f} | {"-" if options.temperature else f"{same:.0%}"} |'
    f' {compiling:.1f} s |',
    flush=True,
  )


if __name__ == '__main__':
  main()
