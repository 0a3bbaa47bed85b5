"""Outputs and times of the reference solutions, computed once per machine.

They are kept in a cache folder when programs cannot read it, that is when the
sandbox contains reads; else in memory only.
"""

import dataclasses
import gzip
import hashlib
import json
import os
import pathlib
import platform
import socket
import zlib
from collections.abc import Callable
from concurrent import futures

from qaq_jax.evaluation import judge
from qaq_jax.evaluation.benchmarks import Benchmark
from qaq_jax.sandbox.sandbox import Sandbox
from qaq_jax.workdir import files

_VERSION = 2  # of what is kept
# What reading a file that is not the one that was written may raise.
_DAMAGED = (
  OSError,
  EOFError,
  zlib.error,
  ValueError,
  TypeError,
  KeyError,
  AttributeError,
  RecursionError,
)

Key = tuple[str, str]  # task id, suite


def compute(
  benchmark: Benchmark,
  sandbox: Sandbox,
  workers: int,
  tick: Callable[[int, int], None] = lambda done, total: None,
) -> dict[Key, judge.Reference]:
  """Returns the references of every task and suite, from the cache if there.

  Args:
    benchmark: whose tasks.
    sandbox: where they run.
    workers: processes at a time.
    tick: called with the number of suites done and in all.
  """
  path = _cache_path(benchmark)
  keep = sandbox.containment.reads
  found = _read(path) if keep else {}
  keys = [(t, s) for t in benchmark.tasks for s in benchmark.suites]
  missing = [key for key in keys if key not in found]

  def run(key):
    return judge.run_reference(
      sandbox, benchmark.family, benchmark.tasks[key[0]], key[1]
    )

  with futures.ThreadPoolExecutor(workers) as pool:
    jobs = {pool.submit(run, key): key for key in missing}
    for done, job in enumerate(futures.as_completed(jobs), start=1):
      found[jobs[job]] = job.result()
      tick(done, len(missing))
  if missing and keep:
    _write(path, found)
  return {key: found[key] for key in keys}


def _cache_path(benchmark):
  """One file per benchmark file, Python and machine, which times belong to."""
  home = os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache'
  key = json.dumps(
    [
      _VERSION,
      benchmark.digest,
      platform.python_version(),
      socket.gethostname(),
      platform.machine(),
      os.cpu_count(),
    ]
  )
  name = hashlib.sha256(key.encode()).hexdigest()[:16]
  folder = pathlib.Path(home) / 'qaq_jax' / 'references'
  return folder / f'{benchmark.family}-{name}.json.gz'


def _read(path):
  try:
    records = json.loads(gzip.decompress(path.read_bytes()))
    found = {
      (record.pop('task_id'), record.pop('suite')): judge.Reference(**record)
      for record in records
    }
    if all(_good(reference) for reference in found.values()):
      return found
  except _DAMAGED:
    pass  # or absent
  return {}  # computed again


def _good(reference) -> bool:
  parts = (reference.calls, str), (reference.seconds, float | int)
  return isinstance(reference.outputs, list) and all(
    isinstance(values, list) and all(isinstance(v, kind) for v in values)
    for values, kind in parts
  )


def _write(path, found):
  records = [
    {'task_id': task_id, 'suite': suite} | dataclasses.asdict(reference)
    for (task_id, suite), reference in found.items()
    if not reference.error  # tried again the next time
  ]
  files.write_atomic(path, gzip.compress(json.dumps(records).encode(), 1))
