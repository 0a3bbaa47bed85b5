r"""Scoring speed on one GPU, beside transformers on torch. Runs unattended.

  python benchmarks/gpu.py --out=FOLDER [--minutes=12] [--tiny]

Needs jax with CUDA, flax, transformers, and torch with CUDA for the other side;
what is missing is recorded, the rest runs. Random weights in bfloat16 in the
shapes of Qwen2.5-Coder-7B, 0.5B, DeepSeek-Coder-6.7B and Qwen2.5-Coder-1.5B, in
this order; lengths of 1,024 real instruction rows, 512 for the 7B models
(benchmarks/lengths.json: tokens of query and answer of GPTeacher's code
instructions under Qwen2's vocabulary, and of the ChatML turns around them);
four terms.

  ours     two sequences per row, the compiled programs and batches of `qaq
           score`, one batch in flight; reading, tokenizing, writing left out
  torch4   a pass per term, SDPA, length-sorted, logits of all positions
  torch2   the same two sequences as ours, logits of the scored positions only

Each case runs in a process of its own with a time limit, tries the batch sizes
given, and appends a line to FOLDER/results.jsonl at once; the table is printed
after every case. MFU: operations counted by qaq_jax/models/flops.py on real
tokens, over this card's measured rate of an 8192-cubed bfloat16 product, 20 of
them queued, by jax or torch, whichever is faster.

`--tiny` runs every case on the CPU with tiny shapes, to test the script.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

MODELS = {
  '7B': 'Qwen--Qwen2.5-Coder-7B',
  '0.5B': 'Qwen--Qwen2.5-Coder-0.5B',
  '6.7B': 'deepseek-ai--deepseek-coder-6.7b-base',
  '1.5B': 'Qwen--Qwen2.5-Coder-1.5B',
}
TINY = {
  'hidden_size': 64,
  'intermediate_size': 128,
  'num_hidden_layers': 2,
  'num_attention_heads': 4,
  'num_key_value_heads': 2,
  'vocab_size': 512,
}
ROWS = {'7B': 512, '6.7B': 512}  # others 1,024
TOKENS = {
  'ours': (32768, 65536),
  'torch4': (8192, 32768),
  'torch2': (8192, 32768),
}
_SHAPES = 16  # of `qaq score`'s 24: a thousand rows fill no more
_SECONDS = 1.5  # of timing at least, and two runs, per batch size
_QUEUED = 20  # products of one timing: a host's wait would count as the card's


def hf_config(name, tiny):
  path = ROOT / 'tests' / 'fixtures' / 'hf_configs' / f'{MODELS[name]}.json'
  values = json.loads(path.read_text())
  return values | TINY if tiny else values


def sequences(vocab, rows):
  """(ids, spans) of the forward and reverse sequence of each row."""
  import numpy as np

  shape = json.loads((ROOT / 'benchmarks' / 'lengths.json').read_text())
  rng = np.random.default_rng(0)
  out = []
  for n_q, n_a in list(zip(shape['n_q'], shape['n_a'], strict=True))[:rows]:
    for prefix, first, between, second in (
      (shape['prefix_forward'], n_q, shape['between_forward'], n_a),
      (shape['prefix_reverse'], n_a, shape['between_reverse'], n_q),
    ):
      start = prefix + first + between
      ids = rng.integers(0, vocab, start + second).astype(np.int32)
      out.append((ids, ((prefix, prefix + first), (start, start + second))))
  return out


def counted(config, made):
  """Useful operations of all sequences, and their tokens."""
  from qaq_jax.models import flops

  tokens = sum(len(ids) for ids, _ in made)
  attended = sum(len(ids) ** 2 for ids, _ in made)
  scored = sum(b - a for _, spans in made for a, b in spans)
  return sum(flops.forward_flops(config, tokens, attended, scored)), tokens


def rate(multiply, seconds=1.0):
  """Operations per second of one product, the median of several."""
  size, run = multiply()
  run()
  times, end = [], time.perf_counter() + seconds
  while len(times) < 5 or time.perf_counter() < end:
    start = time.perf_counter()
    run()
    times.append((time.perf_counter() - start) / _QUEUED)
    if len(times) > 50:
      break
  return 2 * size**3 / statistics.median(times)


# The cases: each runs in a process of its own and prints one line of JSON.


def case_peak(args):
  size = 256 if args.tiny else 8192

  def by_jax():
    import jax
    import jax.numpy as jnp

    key = jax.random.key(0)
    x = jax.random.normal(key, (size, size)).astype(jnp.bfloat16)
    product = jax.jit(jnp.matmul)

    def run():
      for _ in range(_QUEUED):
        y = product(x, x)
      y.block_until_ready()

    return size, run

  def by_torch():
    import torch

    device = 'cpu' if args.tiny else 'cuda'
    x = torch.randn(size, size, device=device).bfloat16()

    def run():
      for _ in range(_QUEUED):
        torch.matmul(x, x)
      if device == 'cuda':
        torch.cuda.synchronize()

    return size, run

  found = {}
  for name, make in (('jax', by_jax), ('torch', by_torch)):
    try:
      found[name] = rate(make)
    except Exception as e:  # a missing side leaves the other
      found[f'{name}_error'] = repr(e)[:300]
  return found


def case_attention(args):
  """Errors against float32, and seconds, of each implementation."""
  import jax
  import jax.numpy as jnp

  from qaq_jax.models.attention import choose as attention

  rows, length, heads, groups = (
    (2, 128, 4, 2) if args.tiny else (16, 1024, 28, 4)
  )
  keys = jax.random.split(jax.random.key(0), 3)
  q, k, v = (
    jax.random.normal(key, (rows, length, n, 128)).astype(jnp.bfloat16)
    for key, n in zip(keys, (heads, groups, groups), strict=True)
  )
  run = lambda name: jax.jit(
    lambda q, k, v: attention.attention(
      q, k, v, scale=128**-0.5, implementation=name
    )
  )
  exact = run('xla')(*(x.astype(jnp.float32) for x in (q, k, v)))
  found = {}
  device = jax.devices()[0]
  case = attention.Case(
    device.platform, q.dtype, 128, device_kind=device.device_kind
  )
  for name in attention.IMPLEMENTATIONS:
    if attention.refusal(name, case):
      continue
    try:
      function = run(name)
      error = jnp.abs(function(q, k, v) - exact)
      times = []
      for _ in range(10):
        start = time.perf_counter()
        function(q, k, v).block_until_ready()
        times.append(time.perf_counter() - start)
      found[name] = {
        'mean_error': float(error.mean()),
        'max_error': float(error.max()),
        'ms': 1e3 * statistics.median(times),
      }
    except Exception as e:
      found[name] = {'error': repr(e)[:300]}
  return found


def case_ours(args):
  import jax
  import jax.numpy as jnp
  import numpy as np

  from qaq_jax.encoding.sequences import Sequence
  from qaq_jax.models.hf import checkpoint
  from qaq_jax.models.hf.read_config import read_config
  from qaq_jax.scoring import batching
  from qaq_jax.scoring import programs as programs_lib

  cache = pathlib.Path(args.out) / 'jax_cache'
  jax.config.update('jax_compilation_cache_dir', str(cache))
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)
  config = read_config(hf_config(args.model, args.tiny))
  made = sequences(config.vocab_size, args.rows)
  operations, tokens = counted(config, made)
  model = checkpoint.random_init(
    config, mesh=None, dtype=jnp.bfloat16, attention=args.attention
  )
  programs = programs_lib.Programs(model, None)
  del model
  items = [
    (
      i // 2,
      i % 2,
      Sequence('forward', ids, tuple(('q', *span) for span in spans)),
    )
    for i, (ids, spans) in enumerate(made)
  ]
  histogram = np.bincount([len(ids) for ids, _ in made])

  def batches_of(size):
    plan = batching.plan_shapes(
      histogram, max_shapes=_SHAPES, tokens_per_batch=size, multiple=16
    )
    programs.forget()
    programs.compile(plan.shapes)
    return list(batching.make_batches(items, plan)), len(plan.shapes)

  def once(batches):
    flying = None
    for batch in batches:
      out = programs.run(batch.tokens_BT, batch.spans_B22, batch.lengths_B)
      if flying is not None:
        np.asarray(flying['nll_BS'])
      flying = out
    return np.asarray(flying['nll_BS'])

  def measured(size):
    before = programs.compile_seconds
    batches, shapes = batches_of(size)
    assert np.isfinite(once(batches)).all()
    took = programs.compile_seconds - before
    return timed(lambda: once(batches), operations, tokens, len(made) // 2) | {
      'tokens_per_batch': size,
      'shapes': shapes,
      'padding': 1 - tokens / sum(b.tokens_BT.size for b in batches),
      'compile_seconds': took,
    }

  results = []
  for size in args.tokens:
    try:
      results.append(measured(size))
    except Exception as e:
      if not programs_lib.is_out_of_memory(e):
        raise
      results.append(OUT_OF_MEMORY | {'tokens_per_batch': size})
  stats = jax.devices()[0].memory_stats() or {}
  best = fastest(results)
  if args.profile:
    batches, _ = batches_of(best['tokens_per_batch'])
    once(batches)
    best = best | {'profile': profile(lambda: once(batches), args)}
  return best | {'tried': results, 'peak_bytes': stats.get('peak_bytes_in_use')}


OUT_OF_MEMORY = {'rows_per_second': 0.0, 'error': 'out of memory'}


def fastest(results):
  best = max(results, key=lambda r: r['rows_per_second'])
  if 'error' in best:
    sys.exit('no batch size fits into the memory')
  return best


def timed(once, operations, tokens, rows):
  times, end = [], time.perf_counter() + _SECONDS
  while len(times) < 2 or time.perf_counter() < end:
    start = time.perf_counter()
    once()
    times.append(time.perf_counter() - start)
    if len(times) >= 20:
      break
  seconds = statistics.median(times)
  return {
    'seconds': seconds,
    'rows_per_second': rows / seconds,
    'tokens_per_second': tokens / seconds,
    'flops': operations / seconds,
  }


def profile(once, args):
  """Milliseconds by kernel of one pass, the largest first, and idle ones."""
  import collections
  import shutil

  import jax

  folder = pathlib.Path(args.out) / f'trace-{args.model}'
  with jax.profiler.trace(str(folder)):
    once()
  spent, busy = collections.Counter(), []
  for path in folder.rglob('*.xplane.pb'):
    for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
      for line in plane.lines:
        if args.tiny or ('GPU' in plane.name and 'Stream' in line.name):
          for event in line.events:
            spent[event.name] += event.duration_ns / 1e6
            busy.append((event.start_ns, event.start_ns + event.duration_ns))
  shutil.rmtree(folder)  # tens of megabytes; the sums are what is kept
  busy.sort()
  idle, end = 0.0, busy[0][1]
  for start, stop in busy:
    idle += max(start - end, 0) / 1e6
    end = max(end, stop)
  return {'idle': idle} | dict(spent.most_common(25))


def case_torch(args):
  import numpy as np
  import torch
  import transformers

  from qaq_jax.models.hf.read_config import read_config

  device = 'cpu' if args.tiny else 'cuda'
  values = hf_config(args.model, args.tiny)
  config = transformers.AutoConfig.for_model(**values)
  torch.manual_seed(0)
  with torch.device(device):
    model = transformers.AutoModelForCausalLM.from_config(
      config, dtype=torch.bfloat16, attn_implementation='sdpa'
    ).eval()
  made = sequences(values['vocab_size'], args.rows)
  operations, tokens = counted(read_config(values), made)
  passes = made
  if args.side == 'torch4':  # a pass ends with its one scored span
    passes = [
      (ids[:stop], ((start, stop),))
      for ids, spans in made
      for start, stop in spans
    ]
  passes = sorted(passes, key=lambda p: len(p[0]))

  def batches(size):
    out, at = [], len(passes)
    while at:  # longest first
      rows = max(size // len(passes[at - 1][0]), 1)
      out.append(passes[max(at - rows, 0) : at])
      at = max(at - rows, 0)
    return out

  @torch.inference_mode()
  def score(group):
    length = len(group[-1][0])
    ids = np.zeros((len(group), length), np.int64)
    mask = np.zeros((len(group), length), bool)
    for row, (one, spans) in enumerate(group):
      ids[row, : len(one)] = one
      for start, stop in spans:
        mask[row, start - 1 : stop - 1] = True
    ids, mask = (torch.from_numpy(x).to(device) for x in (ids, mask))
    target = torch.roll(ids, -1, 1)
    if args.side == 'torch2':
      hidden = model.model(ids, use_cache=False).last_hidden_state[mask]
      logits = model.lm_head(hidden)
      return torch.nn.functional.cross_entropy(
        logits.float(), target[mask], reduction='none'
      )
    logits = model(ids, use_cache=False).logits
    return torch.nn.functional.cross_entropy(
      logits[mask].float(), target[mask], reduction='none'
    )

  results = []
  for size in args.tokens:
    groups = batches(size)

    def once(groups=groups):
      for group in groups:
        out = score(group)
      out.cpu()

    try:
      for group in (groups[0], groups[-1]):  # the longest first
        score(group).cpu()
      results.append(
        timed(once, operations, tokens, len(made) // 2)
        | {'tokens_per_batch': size}
      )
    except torch.OutOfMemoryError:
      results.append(OUT_OF_MEMORY | {'tokens_per_batch': size})
      torch.cuda.empty_cache()
  best = fastest(results)
  peak = None if device == 'cpu' else torch.cuda.max_memory_allocated()
  return best | {'tried': results, 'peak_bytes': peak}


CASES = {
  'peak': case_peak,
  'attention': case_attention,
  'ours': case_ours,
  'torch4': case_torch,
  'torch2': case_torch,
}


def plan(args):
  """The cases in order of worth: (side, model, flags, seconds at most)."""
  models = args.models.split(',')
  yield 'peak', '', {}, 90
  yield 'attention', '', {}, 90
  for model in models[:2]:
    for side in ('ours', 'torch4'):
      yield side, model, {}, 240
    # Again, with all programs in the cache on disk.
    yield 'ours', model, {'label': 'ours, cached'}, 180
  for model in models[2:]:
    for side in ('ours', 'torch4'):
      yield side, model, {}, 240
  for model in models:
    yield 'torch2', model, {}, 240
  for model in models[:2]:  # where time goes
    yield 'ours', model, {'profile': True, 'label': 'ours, profiled'}, 180
    yield 'ours', model, {'attention': 'xla', 'label': 'ours, xla'}, 180


def run(side, model, flags, seconds, args):
  label = flags.pop('label', side)
  rows = args.rows or ROWS.get(model, 1024)
  command = [
    sys.executable,
    __file__,
    f'--case={side}',
    f'--out={args.out}',
    f'--model={model}',
    f'--rows={rows}',
  ]
  command += [
    f'--{name}' if value is True else f'--{name}={value}'
    for name, value in flags.items()
  ]
  command += ['--tiny'] * args.tiny
  command += [f'--tokens={args.tokens}'] if side == 'ours' else []
  environment = dict(os.environ)
  if args.tiny:
    environment['JAX_PLATFORMS'] = 'cpu'
  start = time.perf_counter()
  try:
    done = subprocess.run(
      command,
      capture_output=True,
      text=True,
      timeout=seconds,
      env=environment,
      check=False,
    )
    # Libraries may print after it.
    lines = [x for x in done.stdout.splitlines() if x.startswith('{"')]
    if done.returncode == 0 and lines:
      found = json.loads(lines[-1])
    else:
      found = {'error': done.stderr.strip()[-600:] or 'it printed no result'}
  except subprocess.TimeoutExpired:
    found = {'error': f'not done after {seconds:.0f} s'}
  return {
    'case': label,
    'model': model,
    'wall': round(time.perf_counter() - start, 1),
    **found,
  }


def table(results):
  """The rows so far, as Markdown."""
  peaks = next((r for r in results if r['case'] == 'peak'), {})
  peak = max(peaks.get('jax', 0), peaks.get('torch', 0))
  lines = [
    '| model | case | rows/s | tokens/s | MFU | batch | peak GiB | compile s |',
    '|---|---|---|---|---|---|---|---|',
  ]
  for r in results:
    if r['case'] in ('peak', 'attention'):
      continue
    if 'error' in r:
      lines.append(f'| {r["model"]} | {r["case"]} | {r["error"][-80:]!r} |')
      continue
    mfu = f'{r["flops"] / peak:.1%}' if peak else '-'
    memory = r.get('peak_bytes')
    compiling = r.get('compile_seconds')
    lines.append(
      f'| {r["model"]} | {r["case"]} | {r["rows_per_second"]:.1f} | '
      f'{r["tokens_per_second"]:,.0f} | {mfu} | '
      f'{r["tokens_per_batch"]:,} | '
      f'{f"{memory / 2**30:.1f}" if memory else "-"} | '
      f'{"-" if compiling is None else f"{compiling:.1f}"} |'
    )
  return '\n'.join(lines)


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument('--out', required=True)
  parser.add_argument('--minutes', type=float, default=12)
  parser.add_argument('--models', default=','.join(MODELS))
  parser.add_argument('--rows', type=int, default=0)
  parser.add_argument('--tokens', default='', help='batch sizes of ours')
  parser.add_argument('--tiny', action='store_true')
  parser.add_argument('--case', choices=CASES)
  parser.add_argument('--model', default='')
  parser.add_argument('--attention', default='auto')
  parser.add_argument('--profile', action='store_true')
  args = parser.parse_args()
  args.rows = args.rows or 24 * args.tiny
  os.makedirs(args.out, exist_ok=True)
  if args.case:
    args.side = args.case
    args.tokens = (
      tuple(map(int, args.tokens.split(',')))
      if args.tokens
      else TOKENS.get(args.case, ())
    )
    if args.tiny:
      args.tokens = (512, 2048)
    print(json.dumps(CASES[args.case](args)))
    return
  end = time.monotonic() + 60 * args.minutes
  results = []
  with open(pathlib.Path(args.out) / 'results.jsonl', 'a') as file:
    for side, model, flags, seconds in plan(args):
      left = end - time.monotonic()
      if left < 20:
        print(f'no time left for {side} {model} and what comes after')
        break
      results.append(run(side, model, flags, min(seconds, left), args))
      file.write(json.dumps(results[-1]) + '\n')
      file.flush()
      print(json.dumps(results[-1])[:1500], flush=True)
      print(table(results), flush=True)


if __name__ == '__main__':
  main()
