"""Plants faults, one at a time, and says which of them no test sees.

  python tests/mutants.py [--only TEXT] [--jobs 2] [--list]

Each fault of `faults.py` is one changed piece of text in one file, in a copy of
the tree; the tests that should see it are named with it and run until the first
fails. All of them run without a fault before, so that one that fails anyway
sees nothing. Faults that nobody sees are printed, and the exit status is then
1. `test_mutants.py` holds that every text is still there and every room has
faults.
"""

import argparse
import compileall
import concurrent.futures
import contextlib
import os
import pathlib
import py_compile
import queue
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time

from faults import FAULTS, ROOT, Fault

_SECONDS = 240  # for the tests of one fault


def copy_tree(target: pathlib.Path) -> None:
  """Copies what git tracks or would track."""
  names = subprocess.run(
    ['git', 'ls-files', '-z', '--cached', '--others', '--exclude-standard'],
    cwd=ROOT,
    check=True,
    capture_output=True,
  ).stdout
  for name in names.decode().split('\0'):
    if name and (ROOT / name).is_file():
      (target / name).parent.mkdir(parents=True, exist_ok=True)
      shutil.copyfile(ROOT / name, target / name)
      shutil.copymode(ROOT / name, target / name)


def run_tests(
  tree: pathlib.Path, tests: list[str], seconds: float
) -> tuple[int | None, str]:
  """Runs tests of a copy until the first fails.

  Returns:
    The exit status of pytest, None where it did not end in time, and the line
    that says why.
  """
  environment = os.environ | {
    'PYTHONPATH': str(tree),
    'PYTHONDONTWRITEBYTECODE': '1',
    # Programs that a fault changes have keys of their own: one cache serves.
    'JAX_COMPILATION_CACHE_DIR': os.environ.get('JAX_COMPILATION_CACHE_DIR')
    or str(ROOT / '.jax_cache'),
  }
  words = [sys.executable, '-m', 'pytest', '-x', '-q', '-p', 'no:cacheprovider']
  process = subprocess.Popen(
    [*words, *(f'tests/{test}' for test in tests)],
    cwd=tree,
    env=environment,
    stdin=subprocess.DEVNULL,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    start_new_session=True,
  )
  try:
    output, _ = process.communicate(timeout=seconds)
  except subprocess.TimeoutExpired:
    return None, f'did not end in {seconds:.0f} s'
  finally:
    with contextlib.suppress(ProcessLookupError):  # what the tests started
      os.killpg(process.pid, signal.SIGKILL)
  lines = output.strip().splitlines() or ['']
  told = [line for line in lines if line.startswith(('FAILED', 'ERROR'))]
  return process.returncode, [*told, lines[-1]][0][:100]


def is_seen(fault: Fault, tree: pathlib.Path) -> tuple[bool, str]:
  """Whether a test fails with the fault in a copy of the tree, and why."""
  path = tree / 'qaq_jax' / fault.file
  whole = path.read_text()
  path.write_text(fault.planted(tree))
  try:
    status, why = run_tests(tree, fault.tests.split(), _SECONDS)
  finally:
    path.write_text(whole)
  # Any other status is of tests that were not found or did not end: nobody has
  # looked.
  return status == 1, why


def make_copy(folder: pathlib.Path) -> pathlib.Path:
  """A copy of the tree, compiled so that a changed file is compiled again."""
  copy_tree(folder)
  compileall.compile_dir(
    folder / 'qaq_jax',
    quiet=1,
    invalidation_mode=py_compile.PycInvalidationMode.CHECKED_HASH,
  )
  return folder


def main() -> int:
  """Runs the tests of every fault; returns the exit status."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--only', default='', help='faults whose name has it')
  parser.add_argument('--jobs', type=int, default=2)
  parser.add_argument('--list', action='store_true')
  options = parser.parse_args()
  chosen = [fault for fault in FAULTS if options.only in fault.name]
  if options.list:
    print('\n'.join(f'{fault.name}  ({fault.tests})' for fault in chosen))
    return 0
  start, unseen = time.monotonic(), []
  with tempfile.TemporaryDirectory(prefix='qaq_mutants_') as folder:
    trees = queue.SimpleQueue()
    for number in range(options.jobs):
      trees.put(make_copy(pathlib.Path(folder, str(number))))
    tests = sorted({test for f in chosen for test in f.tests.split()})
    status, why = run_tests(pathlib.Path(folder, '0'), tests, 15 * 60)
    if status:
      print(f'without a fault: pytest ended with {status}: {why}')
      return 2

    def work(fault):
      tree, begun = trees.get(), time.monotonic()
      try:
        return fault, *is_seen(fault, tree), time.monotonic() - begun
      finally:
        trees.put(tree)

    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
      for fault, seen, why, seconds in pool.map(work, chosen):
        sign = 'seen' if seen else 'UNSEEN'
        print(f'{sign:6} {fault.name} ({seconds:.0f} s)\n       {why}')
        sys.stdout.flush()
        if not seen:
          unseen.append(fault)
  used = resource.getrusage(resource.RUSAGE_CHILDREN)
  print(
    f'{len(chosen) - len(unseen)} of {len(chosen)} seen; '
    f'{(time.monotonic() - start) / 60:.1f} min, CPU time '
    f'{(used.ru_utime + used.ru_stime) / 60:.1f} min'
  )
  return 1 if unseen else 0


if __name__ == '__main__':
  sys.exit(main())
