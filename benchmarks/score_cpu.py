"""Scoring on this CPU, beside transformers on torch doing four passes.

  python benchmarks/score_cpu.py --data=DATA --tokenizer=FOLDER --rows=500

DATA is any input of `qaq` (JSONL, JSON, Parquet); FOLDER holds a tokenizer.json
of at most 49,152 tokens. The model is random, Qwen2-shaped, float32: 48 million
parameters, 25 million of them the tied embedding.

Compared are, in one run, one after the other in turn, medians of --repeats:

  ours             two sequences per row, as `qaq score` runs: reading,
                   tokenizing and writing parts included, compiling excluded
  torch            a pass per term over ids that are ready, logits of all
                   positions, the loss of the scored ones alone
  torch, kept      the same with `logits_to_keep` naming the scored positions

torch gets the fastest of one row at a time and length-sorted batches, found
on --probe rows; no attention mask, so that it takes its causal fast path. RMI
alone is two terms: two passes for torch, the trimmed sequences for us.

Figures are seconds of wall time, for an idle machine. On a busy one pin the
process to one core and count its CPU time: `taskset -c 0 ... --clock=cpu`.
"""

import argparse
import json
import pathlib
import shutil
import statistics
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
from flax import nnx

from qaq_jax.data import samples as samples_lib
from qaq_jax.data.types import DataSource
from qaq_jax.encoding import encoder as encoder_lib
from qaq_jax.models import sharding
from qaq_jax.models.hf import checkpoint
from qaq_jax.models.hf.read_config import read_config
from qaq_jax.scoring import kinds, parts, scorer
from qaq_jax.scoring.options import ScoreOptions

CONFIG = {
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
RMI = ('q', 'q_given_a')
FOUR = tuple(kind.name for kind in kinds.LIKELIHOODS)


def prepare_tokenizer(source: pathlib.Path, folder: pathlib.Path) -> None:
  """Copies a tokenizer, naming an end token where its files name none."""
  shutil.copytree(source, folder)
  path = folder / 'tokenizer_config.json'
  if not path.exists():
    path.write_text(
      json.dumps(
        {
          'tokenizer_class': 'PreTrainedTokenizerFast',
          'eos_token': '<|endoftext|>',
        }
      )
    )


class Ours:
  """Scores with this project, into a new folder each time."""

  def __init__(self, folder, store_, encoder, model, mesh, tokens, max_shapes):
    self._args = store_, encoder, model
    self._folder, self._mesh = folder, mesh
    self._tokens, self._max_shapes = tokens, max_shapes
    self._calls = 0
    self.last = None

  def __call__(self, terms=None):
    """Returns the summary of a run."""
    self._calls += 1
    self.last = self._folder / f'scores-{self._calls}'
    return scorer.score(
      *self._args,
      name='m',
      out_dir=self.last,
      mesh=self._mesh,
      fingerprint={},
      options=ScoreOptions(
        terms=terms,
        tokens_per_batch=self._tokens,
        max_shapes=self._max_shapes,
        progress=self._calls == 1,
      ),
    )


class Torch:
  """A pass per term with transformers."""

  def __init__(self, folder, clock):
    import torch
    import transformers

    self._torch, self._clock = torch, clock
    self._model = transformers.AutoModelForCausalLM.from_pretrained(
      folder, dtype=torch.float32
    ).eval()
    self.threads = torch.get_num_threads()

  def __call__(self, passes, batch_size: int, keep: bool):
    """Sums of -log p of each pass's scored span, and the seconds it took."""
    torch = self._torch
    order = sorted(range(len(passes)), key=lambda i: len(passes[i][0]))
    nll = np.zeros(len(passes))
    start = self._clock()
    with torch.inference_mode():
      for at in range(0, len(order), batch_size):
        group = [passes[i] for i in order[at : at + batch_size]]
        length = max(len(ids) for ids, _ in group)
        ids = np.zeros((len(group), length), np.int64)
        for row, (tokens, _) in enumerate(group):
          ids[row, : len(tokens)] = tokens
        ids = torch.from_numpy(ids)
        # A pass ends with its scored span.
        first = min(len(t) - count for t, count in group) - 1
        if keep:
          kept = torch.arange(first, length - 1)
          logits = self._model(ids, use_cache=False, logits_to_keep=kept).logits
        else:
          first = 0
          logits = self._model(ids, use_cache=False).logits
        for row, (tokens, count) in enumerate(group):
          span = slice(len(tokens) - count, len(tokens))
          scored = slice(span.start - 1 - first, span.stop - 1 - first)
          nll[order[at + row]] = torch.nn.functional.cross_entropy(
            logits[row, scored], ids[row, span], reduction='sum'
          )
    return nll, self._clock() - start


def machine_rate(clock) -> dict[str, float]:
  """float32 operations per second of the model's two largest products."""
  rates = {}
  d, f, v = (
    CONFIG[k] for k in ('hidden_size', 'intermediate_size', 'vocab_size')
  )
  for name, shape in (('head', (1024, d, v)), ('mlp', (2048, d, f))):
    a = jnp.ones(shape[:2])
    b = jnp.ones(shape[1:])
    product = jax.jit(lambda a, b: a @ b)
    product(a, b).block_until_ready()
    times = []
    for _ in range(3 if name == 'head' else 15):
      start = clock()
      product(a, b).block_until_ready()
      times.append(clock() - start)
    rates[name] = 2 * np.prod(shape, dtype=float) / statistics.median(times)
  return rates


def useful_operations(encoded, model) -> float:
  """Multiply-adds twice: products of the layers, causal attention, head."""
  sizes = sum(x.size for x in jax.tree.leaves(nnx.state(model.stacks)))
  config = model.config
  width = config.num_heads * config.head_dim
  total = 0.0
  for row in encoded:
    for sequence in row.sequences:
      n = len(sequence.ids)
      scored = sum(stop - start for _, start, stop in sequence.spans)
      total += 2 * sizes * n
      total += 4 * width * config.num_layers * n * (n + 1) / 2
      total += 2 * config.hidden_size * config.vocab_size * scored
  return total


def passes_of(encoded, terms):
  """(row, term) and (ids up to the scored span's end, its length)."""
  names, passes = [], []
  for row in encoded:
    for sequence in row.sequences:
      for term, start, stop in sequence.spans:
        if term in terms:
          names.append((row.row, term))
          passes.append((sequence.ids[:stop], stop - start))
  return names, passes


def largest_difference(folder, names, nll) -> float:
  """Largest relative difference between our sums and torch's."""
  table = pa.concat_tables(parts.read_parts(folder)).to_pydict()
  return max(
    abs(table[f'nll_{term}_m'][row] - value) / abs(value)
    for (row, term), value in zip(names, nll, strict=True)
  )


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument('--data', required=True)
  parser.add_argument('--tokenizer', required=True, type=pathlib.Path)
  parser.add_argument('--rows', type=int, default=500)
  parser.add_argument('--repeats', type=int, default=3)
  parser.add_argument('--probe', type=int, default=32)
  parser.add_argument('--batch-sizes', default='1,2,4,8,16')
  parser.add_argument('--tokens-per-batch', type=int, default=0)
  parser.add_argument('--max-shapes', type=int, default=24)
  parser.add_argument('--no-torch', action='store_true')
  parser.add_argument('--clock', choices=('wall', 'cpu'), default='wall')
  args = parser.parse_args()
  clock = time.perf_counter if args.clock == 'wall' else time.process_time
  taken = {'wall': 'scoring_seconds', 'cpu': 'scoring_cpu_seconds'}[args.clock]

  folder = pathlib.Path(tempfile.mkdtemp(prefix='score_cpu_'))
  prepare_tokenizer(args.tokenizer, folder / 'tokenizer')
  samples_lib.prepare(
    DataSource(args.data, limit=args.rows), folder / 'samples'
  )
  samples = samples_lib.SampleStore.open(folder / 'samples')
  encoder = encoder_lib.Encoder(folder / 'tokenizer', template='plain')
  encoded = encoder.encode(list(samples.iter_rows(0, samples.num_rows)))
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  model = checkpoint.random_init(read_config(CONFIG), mesh=mesh, seed=0)
  operations = useful_operations(encoded, model)
  ours = Ours(
    folder,
    samples,
    encoder,
    model,
    mesh,
    args.tokens_per_batch,
    args.max_shapes,
  )
  seconds, shares = {}, []

  def note(name, value):
    seconds.setdefault(name, []).append(value)
    print(f'  {name:22} {value:7.1f} s', flush=True)

  theirs, best = None, {}
  if not args.no_torch:
    checkpoint.save_hf(model, folder / 'hf', dtype=jnp.float32)
    theirs = Torch(folder / 'hf', clock)
    step = max(len(encoded) // args.probe, 1)
    for terms, label in ((FOUR, 'four terms'), (RMI, 'RMI')):
      _, few = passes_of(encoded[::step], terms)
      theirs(few[:8], 1, False)
      for keep in (False, True):
        tried = {
          size: theirs(few, size, keep)[1]
          for size in map(int, args.batch_sizes.split(','))
        }
        best[label, keep] = min(tried, key=tried.get)
        print(
          f'torch, {label}, kept={keep}: seconds by batch size',
          {size: round(s, 1) for size, s in tried.items()},
          flush=True,
        )

  for repeat in range(args.repeats):
    print(f'repeat {repeat + 1} of {args.repeats}', flush=True)
    for label, terms in (('four terms', None), ('RMI', RMI)):
      before = machine_rate(clock)
      summary = ours(terms)
      after = machine_rate(clock)
      note(f'ours, {label}', summary[taken])
      if terms is None:
        rate = operations / summary[taken]
        shares.append({k: 2 * rate / (before[k] + after[k]) for k in before})
        print(
          f'  {rate / 1e9:.1f} useful GFLOP/s; the machine: head '
          f'{before["head"] / 1e9:.1f} and {after["head"] / 1e9:.1f}, MLP '
          f'{before["mlp"] / 1e9:.1f} and {after["mlp"] / 1e9:.1f}; padding '
          f'{summary["padding_waste"]:.1%}, {summary["programs"]} programs '
          f'in {summary["compile_seconds"]:.1f} s',
          flush=True,
        )
      if theirs is None:
        continue
      names, passes = passes_of(encoded, terms or FOUR)
      for keep in (False, True):
        nll, took = theirs(passes, best[label, keep], keep)
        note(f'torch, {label}{", kept" if keep else ""}', took)
        if not repeat:
          difference = largest_difference(ours.last, names, nll)
          print(f'  largest relative difference {difference:.1e}')

  tokens = sum(len(s.ids) for e in encoded for s in e.sequences)
  print(
    f'\n{len(encoded)} rows, {tokens:,} tokens, {operations / 1e12:.2f} '
    f'TFLOP of use; medians of {args.repeats}:'
  )
  medians = {k: statistics.median(v) for k, v in seconds.items()}
  for name, value in medians.items():
    label = name.split(', ')[1]
    ratio = value / medians[f'ours, {label}']
    print(f'  {name:24} {value:7.1f} s  {ratio:5.2f}x')
  for kind in ('head', 'mlp'):
    share = statistics.median(s[kind] for s in shares)
    print(f"  share of the machine's rate ({kind} product): {share:.0%}")
  shutil.rmtree(folder)


if __name__ == '__main__':
  main()
