"""Runs samples against a benchmark: verdicts on disk, pass@k with intervals.

Needs no model; on one line:

  python -m qaq_jax.evaluation.harness --samples=samples.jsonl
      --benchmark=humaneval_plus --path=HumanEvalPlus.jsonl.gz
      --allow-code-execution

Verdicts are appended to a results file, one line per sample, by one run at a
time. Run again after a kill, it goes on with the samples that have none.
"""

import argparse
import collections
import contextlib
import dataclasses
import os
import pathlib
import platform
import sys
from concurrent import futures

import tqdm

from qaq_jax.evaluation import (
  benchmarks,
  judge,
  pass_at_k,
  programs,
  references,
)
from qaq_jax.evaluation.options import Options
from qaq_jax.runtime import console
from qaq_jax.sandbox.process import Refused
from qaq_jax.sandbox.sandbox import Sandbox
from qaq_jax.workdir import journal

_VERSION = 2  # of what decides a verdict
_CGROUP_LIMIT = pathlib.Path('/sys/fs/cgroup/memory.max')  # a container's
REFUSAL = (
  'running programs that a model wrote needs --allow-code-execution. They '
  'run contained, see docs/evaluation.md; nothing has been run'
)


def run(
  benchmark: benchmarks.Benchmark,
  samples: list[programs.Sample],
  path: str | os.PathLike,
  options: Options,
) -> dict:
  """Runs every sample that has no verdict yet, and sums up.

  Args:
    benchmark: the tasks.
    samples: programs for them.
    path: results file, JSON lines; appended to when it is there.
    options: how.

  Returns:
    'benchmark', 'containment', 'scores' (see `summarize`), 'failures'
    (verdicts by reason) and 'broken_references' (task ids).

  Raises:
    Refused: programs cannot be contained here.
    StoreError: the results file belongs to another run, another process writes
      to it, or a line of it is damaged.
  """
  sandbox = Sandbox(options.limits, allow_uncontained=options.allow_uncontained)
  console.say(sandbox.containment.describe())
  found = _Results(path, _fingerprint(benchmark, options, sandbox), benchmark)
  with contextlib.closing(found) as results:
    return _judge(benchmark, samples, options, sandbox, results)


def _judge(benchmark, samples, options, sandbox, results) -> dict:
  """`run`, with the results file open."""
  workers = options.workers or _workers(options.limits)
  timing = options.timing.scaled(judge.machine_scale())
  with tqdm.tqdm(desc='references', unit='suite', disable=None) as bar:

    def tick(done, total):
      bar.total = total
      bar.update(done - bar.n)

    known = references.compute(benchmark, sandbox, workers, tick)
  broken = sorted({key[0] for key, r in known.items() if r.error})
  for task_id in broken:
    console.say(f'{task_id}: its own reference solution fails here')

  def work(sample):
    task = benchmark.tasks[sample.task_id]
    suites = {}
    for suite in benchmark.suites:
      reference = known[task.task_id, suite]
      try:
        verdict = judge.judge(
          sandbox,
          benchmark.family,
          task,
          suite,
          sample.program,
          reference,
          timing,
          all_tests=options.all_tests,
        )
      except Refused:
        raise  # of this machine, not of the program
      except Exception as e:  # no program may end the run of all others
        console.say(f'{task.task_id}: {type(e).__name__} while it was judged')
        verdict = judge.unjudged(reference, e)
      suites[suite] = dataclasses.asdict(verdict)
    results.add(sample, suites)

  todo = [sample for sample in samples if sample not in results]
  if len(todo) < len(samples):
    console.say(f'{len(samples) - len(todo)} samples have verdicts already')
  with futures.ThreadPoolExecutor(workers) as pool:
    jobs = [pool.submit(work, sample) for sample in todo]
    try:
      for job in tqdm.tqdm(
        futures.as_completed(jobs),
        total=len(jobs),
        desc=benchmark.name,
        unit='sample',
        disable=None,
      ):
        job.result()
    except BaseException:
      pool.shutdown(wait=False, cancel_futures=True)
      raise
  verdicts = results.of(samples)
  return {
    'benchmark': benchmark.name,
    'md5': benchmark.digest,
    'containment': dataclasses.asdict(sandbox.containment),
    'scores': summarize(benchmark, verdicts),
    'failures': _failures(verdicts),
    'broken_references': broken,
  }


def _workers(limits):
  """As many programs as there are cores, and memory if all used their limit."""
  cores = os.cpu_count() or 1
  if hasattr(os, 'sched_getaffinity'):
    cores = len(os.sched_getaffinity(0))
  memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
  with contextlib.suppress(OSError, ValueError):  # none, or 'max'
    memory = min(memory, int(_CGROUP_LIMIT.read_text()))
  memory >>= 20
  return max(1, min(cores, memory // (limits.memory_mb + limits.tmp_mb)))


def summarize(
  benchmark: benchmarks.Benchmark, verdicts: list[dict]
) -> dict[str, dict]:
  """Returns pass@k of each score that the benchmark has.

  A program passes `..._plus` when it passes the base and the plus tests.

  Args:
    benchmark: the benchmark as run.
    verdicts: lines of a results file.

  Returns:
    Name ('humaneval', 'humaneval_plus') -> 'pass@k' -> value and interval.
  """
  base = benchmark.name.removesuffix('_plus')
  scores = {base: benchmark.suites[:1]}
  if len(benchmark.suites) > 1:
    scores[f'{base}_plus'] = benchmark.suites
  found = {}
  for name, suites in scores.items():
    outcomes = collections.defaultdict(list)
    for verdict in verdicts:
      outcomes[verdict['task_id']].append(
        all(
          verdict['suites'][suite]['status'] == judge.PASS for suite in suites
        )
      )
    found[name] = pass_at_k.summarize(outcomes)
  return found


def _failures(verdicts):
  """Number of samples by what went wrong first, an exception by its name."""
  counts: collections.Counter[str] = collections.Counter()
  for verdict in verdicts:
    for suite, result in verdict['suites'].items():
      if result['status'] != judge.PASS:
        reason = result['reason'].partition(':')[0]
        counts[f'{suite}: {result["status"]}: {reason}'] += 1
  return dict(counts.most_common())


def _fingerprint(benchmark, options, sandbox):
  return {
    'version': _VERSION,
    'benchmark': benchmark.name,
    'md5': benchmark.digest,
    'python': platform.python_version(),
    'all_tests': options.all_tests,
    'timing': dataclasses.asdict(options.timing),
    'limits': dataclasses.asdict(options.limits),
    'layer': sandbox.containment.layer,
    'seccomp': sandbox.containment.seccomp,
  }


class _Results:
  """The verdicts of a results file, by sample."""

  def __init__(self, path, fingerprint, benchmark):
    suite = {'status': str, 'reason': str}
    self._journal = journal.Journal(
      path,
      fingerprint,
      fields={
        'task_id': str,
        'number': int,
        'program': str,
        'suites': dict.fromkeys(benchmark.suites, suite),
      },
      back='delete the line, and its program is run again',
    )
    self._verdicts = {
      (record['task_id'], record['number'], record['program']): record
      for record in self._journal.records
    }

  def _key(self, sample):
    return sample.task_id, sample.number, sample.digest

  def __contains__(self, sample):
    return self._key(sample) in self._verdicts

  def add(self, sample, suites):
    """Keeps the verdicts of a sample; safe from several threads."""
    task_id, number, digest = self._key(sample)
    record = {
      'task_id': task_id,
      'number': number,
      'program': digest,
      'suites': suites,
    }
    self._journal.add(record)
    self._verdicts[task_id, number, digest] = record

  def of(self, samples):
    """Returns the verdicts of `samples`, in their order."""
    return [self._verdicts[self._key(sample)] for sample in samples]

  def close(self):
    """Closes the file."""
    self._journal.close()


def table(scores: dict[str, dict], prompt: str = '') -> str:
  """Returns scores as lines of text, a figure with its interval each.

  Args:
    scores: the scores from `summarize`.
    prompt: 'chat' or 'base', where the prompts are known.
  """
  head = f'{"benchmark":20} {"metric":9} {"%":>6}  {"95 % interval":15} '
  lines = [head + f'{"tasks":>5} {"samples":>7}  prompts']
  for name, metrics in scores.items():
    for metric, m in metrics.items():
      interval = f'{100 * m["low"]:.1f} - {100 * m["high"]:.1f}'
      lines.append(
        f'{name:20} {metric:9} {100 * m["value"]:6.1f}  {interval:15} '
        f'{m["tasks"]:5} {m["samples"]:7}  {prompt or "not known"}'
      )
  return '\n'.join(lines)


def _parse(argv):
  parser = argparse.ArgumentParser(
    prog='python -m qaq_jax.evaluation.harness',
    description='Runs samples against a benchmark.',
  )
  parser.add_argument('--samples', required=True, help='.jsonl or a folder')
  parser.add_argument('--benchmark', required=True, choices=benchmarks.NAMES)
  parser.add_argument('--path', required=True, help='the published file')
  parser.add_argument('--output', default='', help='results, JSON lines')
  parser.add_argument('--prompt', default='', choices=['', 'chat', 'base'])
  parser.add_argument('--workers', type=int, default=Options.workers)
  parser.add_argument('--limit', type=int, default=0, help='first tasks only')
  parser.add_argument('--all-tests', action='store_true')
  parser.add_argument('--allow-missing', action='store_true')
  parser.add_argument('--allow-code-execution', action='store_true')
  parser.add_argument('--allow-uncontained', action='store_true')
  return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
  """The command line."""
  args = _parse(argv)
  try:
    if not args.allow_code_execution:
      raise Refused(REFUSAL)
    benchmark = benchmarks.read(args.benchmark, args.path, limit=args.limit)
    samples = programs.read(
      args.samples, benchmark, allow_missing=args.allow_missing
    )
    stem = args.samples.rstrip('/').removesuffix('.gz').removesuffix('.jsonl')
    output = args.output or f'{stem}.{args.benchmark}.results.jsonl'
    options = Options(
      workers=args.workers,
      all_tests=args.all_tests,
      allow_uncontained=args.allow_uncontained,
    )
    result = run(benchmark, samples, output, options)
  except (ValueError, OSError, Refused) as e:
    sys.exit(f'error: {e}')
  console.say(table(result['scores'], args.prompt))
  for reason, count in result['failures'].items():
    console.say(f'  {count:5} {reason}')
  console.say(f'verdicts: {output}')


if __name__ == '__main__':
  main()
