"""Plants faults, one at a time, and says which of them no test sees.

  python tests/mutants.py [--only TEXT] [--jobs 2] [--list]

Each fault is one changed piece of text in one file, in a copy of the tree; the
tests that should see it are named with it and run until the first fails. A
fault that they pass with is printed, and the exit status is then 1. A changed
tree, tests included, is copied anew for each worker. `test_mutants.py` holds
that every text is still there and every room has faults.
"""

import argparse
import concurrent.futures
import dataclasses
import os
import pathlib
import queue
import shutil
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
_SECONDS = 240  # of the tests of one fault; beyond, it counts as seen: a hang


@dataclasses.dataclass(frozen=True)
class Mutant:
  """One fault.

  Attributes:
    file: the file below qaq_jax/.
    old: a text that stands in it once.
    new: what the fault makes of it.
    tests: arguments of pytest: files of tests/, and -k with an expression.
  """

  file: str
  old: str
  new: str
  tests: str

  @property
  def name(self) -> str:
    """The file and the first changed line, for people."""
    return f'{self.file}: {self.old.strip().splitlines()[0][:60]}'

  @property
  def room(self) -> str:
    """The folder below qaq_jax/, or the file where there is none."""
    return self.file.split('/')[0]

  def planted(self, root: pathlib.Path = ROOT) -> str:
    """The file's text with the fault in it.

    Raises:
      ValueError: the text is not there, or more than once.
    """
    text = (root / 'qaq_jax' / self.file).read_text()
    if text.count(self.old) != 1:
      raise ValueError(
        f'{self.file}: {self.old!r} stands in it {text.count(self.old)} times'
      )
    return text.replace(self.old, self.new)


MUTANTS = ()


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


def is_seen(mutant: Mutant, tree: pathlib.Path) -> tuple[bool, str]:
  """Whether a test fails with the fault in a copy of the tree, and why."""
  path = tree / 'qaq_jax' / mutant.file
  whole = path.read_text()
  path.write_text(mutant.planted(tree))
  # Programs of other faults have other keys: the cache is shared.
  environment = os.environ | {
    'PYTHONPATH': str(tree),
    'JAX_COMPILATION_CACHE_DIR': str(ROOT / '.jax_cache'),
    'PYTHONDONTWRITEBYTECODE': '1',
  }
  words = [sys.executable, '-m', 'pytest', '-x', '-q', '-p', 'no:cacheprovider']
  files, *expression = mutant.tests.split(' -k ')
  words += [f'tests/{name}' for name in files.split()]
  words += ['-k', expression[0]] if expression else []
  try:
    done = subprocess.run(
      words,
      cwd=tree,
      env=environment,
      stdin=subprocess.DEVNULL,
      capture_output=True,
      text=True,
      timeout=_SECONDS,
    )
  except subprocess.TimeoutExpired:
    return True, 'the tests did not end'
  finally:
    path.write_text(whole)
  failed = [
    line for line in done.stdout.splitlines() if line.startswith('FAILED')
  ]
  if done.returncode == 1 and failed:
    return True, failed[0][:100]
  if done.returncode == 0:
    return False, f'passed: {mutant.tests}'
  # No test was found, or the tree cannot be imported: nobody has looked.
  last = (done.stdout + done.stderr).strip().splitlines()[-1:]
  return False, f'pytest ended with {done.returncode}: {last}'


def main() -> int:
  """Runs the tests of every fault; returns the exit status."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--only', default='', help='faults whose name has it')
  parser.add_argument('--jobs', type=int, default=2)
  parser.add_argument('--list', action='store_true')
  options = parser.parse_args()
  chosen = [m for m in MUTANTS if options.only in m.name]
  if options.list:
    print('\n'.join(f'{m.name}  ({m.tests})' for m in chosen))
    return 0
  start, unseen = time.monotonic(), []
  with tempfile.TemporaryDirectory(prefix='qaq_mutants_') as folder:
    trees = queue.SimpleQueue()
    for number in range(options.jobs):
      trees.put(pathlib.Path(folder, str(number)))
      copy_tree(pathlib.Path(folder, str(number)))

    def work(mutant):
      tree = trees.get()
      try:
        return mutant, *is_seen(mutant, tree)
      finally:
        trees.put(tree)

    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
      for mutant, seen, why in pool.map(work, chosen):
        print(f'{"seen" if seen else "UNSEEN":6} {mutant.name}\n       {why}')
        if not seen:
          unseen.append(mutant)
  minutes = (time.monotonic() - start) / 60
  print(f'{len(chosen) - len(unseen)} of {len(chosen)} seen, {minutes:.1f} min')
  return 1 if unseen else 0


if __name__ == '__main__':
  sys.exit(main())
