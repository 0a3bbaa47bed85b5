"""Runs the stages of a config in a work directory, and keeps the run log."""

import functools
import json
import os
import pathlib
import shlex
import sys
from collections.abc import Sequence

import jax
import ml_collections

from qaq_jax.models import quantized
from qaq_jax.models.options import check_dtype
from qaq_jax.runtime import console, processes, runlog
from qaq_jax.selection.options import StrataOptions
from qaq_jax.stages import options, registry
from qaq_jax.workdir import files
from qaq_jax.workdir import mirror as mirror_lib
from qaq_jax.workdir.layout import WorkDir

# transformers is here for tokenizers; that torch is missing is no news.
os.environ.setdefault('TRANSFORMERS_NO_ADVISORY_WARNINGS', '1')


def command(
  name: str,
  config: ml_collections.ConfigDict,
  workdir: str,
  given: Sequence[str],
) -> None:
  """As `run`, in a process that does nothing else: one of several, perhaps.

  What the user can mend is told in words; the stack trace is in run.log.

  Raises:
    SystemExit: after an error, whose words it has.
  """
  try:
    stages = registry.named(name, config.stages)
    if all(stage.elsewhere for stage in stages):
      # Nor are its programs kept: those for other chips can't be read back.
      jax.config.update('jax_platforms', 'cpu')
      run(name, config, workdir, given=given)
    else:
      _keep_programs()
      with processes.joined() as watch:
        run(name, config, workdir, watch, given)
  except processes.MENDABLE as e:
    sys.exit(f'qaq {name}: error: {e}')
  except KeyboardInterrupt:
    console.say(f'qaq {name}: {processes.INTERRUPTED}', aside=True)
    sys.exit(130)


def run(
  name: str,
  config: ml_collections.ConfigDict,
  workdir: str,
  watch: processes.Watch | None = None,
  given: Sequence[str] = (),
) -> pathlib.Path:
  """Runs one stage, or all of `config.stages`.

  Args:
    name: a stage's name, or 'run' for all that the config lists.
    config: the config as made by `qaq_jax.config.get_default` and changed.
    workdir: folder of all output, made where it is missing, that all
      processes see; or of an object store, as gs://bucket/run.
    watch: the watch over the processes, where there are several.
    given: the words of the command line behind `qaq`: for the run log, and
      for the commands that are named at the end.

  Returns:
    The work directory; of an object store, its local copy.

  Raises:
    ValueError: the config or an input cannot be used; says what to do.
    OSError: a file cannot be read or written.
  """
  stages = registry.named(name, config.stages)
  _check(config, stages)
  folder = _open(stages, workdir)
  # Process 0 holds the lock; stages of two commands would mix artifacts.
  lock = files.Lock(folder.path) if jax.process_index() == 0 else None
  log = runlog.RunLog(folder.run_log, ['qaq', *given])
  try:
    if folder.mirror:
      _run_mirrored(stages, config, folder, log, watch)
    else:
      _run(stages, config, folder, log, watch)
  finally:
    if lock:
      lock.release()
  if name == registry.RUN:
    words = list(given or (name, f'--workdir={folder}', '--config=THE_SAME'))
    if name in words:
      words.remove(name)
    for hint in filter(None, (stage.next for stage in stages)):
      same = shlex.join(words)
      text = hint.format(workdir=folder, config=config, given=same)
      console.say(f'\nnext: {text}')
  return folder.path


def _keep_programs() -> None:
  """Keeps compiled programs across runs, unless jax is told where already."""
  if not jax.config.values['jax_compilation_cache_dir']:
    home = os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache'
    jax.config.update(
      'jax_compilation_cache_dir', str(pathlib.Path(home) / 'qaq_jax')
    )
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)


def _check(config, stages) -> None:
  """Finds what can be known to be wrong before any work is done."""
  loads_models = any(stage.loads_models for stage in stages)
  for role, name in config.roles.items():
    if name and name not in config.models:
      raise ValueError(
        f'config.roles.{role} is {name!r}; config.models has: '
        + (', '.join(config.models) or 'none')
      )
  for name, model in config.models.items():
    if not model.path and loads_models:
      raise ValueError(f'config.models.{name}.path is empty')
    check_dtype(f'config.models.{name}.dtype', model.dtype)
    if model.quantization not in quantized.SCHEMES:
      raise ValueError(
        f'config.models.{name}.quantization is {model.quantization!r}; it '
        'is one of ' + ', '.join(map(repr, quantized.SCHEMES))
      )
  options.of(StrataOptions, config.strata)
  for module in [stage.load() for stage in stages]:
    if hasattr(module, 'check'):
      module.check(config)


def _open(stages, path) -> WorkDir:
  if not mirror_lib.is_remote(path):
    return WorkDir(path)
  single = [stage.name for stage in stages if stage.one_folder]
  if single and jax.process_count() > 1:
    raise ValueError(
      f'--workdir={path}: {single[0]} with several processes needs a folder '
      'that all of them see; copy the work directory to one'
    )
  index = jax.process_index()
  mirror = mirror_lib.Mirror(path, mirror_lib.local_folder(path, index))
  return WorkDir(mirror.path, mirror)


def _run_mirrored(stages, config, workdir, log, watch) -> None:
  """Runs the stages on the local copy; what they wrote is stored."""
  mirror = workdir.mirror
  first = jax.process_index() == 0
  processes.by_the_first(mirror.take_lease, 'lease')
  try:
    mirror.pull()
    processes.barrier('fetched')  # before anything is written
    try:
      _run(stages, config, workdir, log, watch)
    finally:  # only of a complete copy: what is missing in it is deleted there
      if first:
        mirror.push()
  except ValueError as e:
    # The user knows the store's name, and mends things there.
    text = str(e).replace(str(mirror.path), mirror.url)
    if text == str(e):
      raise
    raise ValueError(text) from e
  finally:
    if first:
      mirror.give_lease()


def _exchange(workdir) -> None:
  """Stores what process 0 wrote, and gives it to the others."""
  if workdir.mirror and jax.process_index() == 0:
    workdir.mirror.push()
    console.say(f'stored in {workdir}')
  processes.barrier('stored')
  if workdir.mirror and jax.process_index():
    workdir.mirror.pull()


def _run(stages, config, workdir, log, watch) -> None:
  if jax.process_index() == 0:
    files.remove_temporaries(workdir.path)
    text = json.dumps(config.to_dict(), indent=2, default=str)
    files.write_atomic(workdir.config, (text + '\n').encode())
  log.environment()
  if watch is not None:
    watch.on_loss = functools.partial(_on_loss, log, workdir)
  for stage in stages:
    with log.stage(stage.name):
      work = functools.partial(stage.load().run, config, workdir)
      if stage.together:
        result = work()
        processes.barrier(stage.name)  # what the first one joins is there
      else:
        result = processes.by_the_first(work, stage.name)
      log.write('result', stage=stage.name, **(result or {}))
    if workdir.mirror:
      _exchange(workdir)


def _on_loss(log, workdir, text) -> None:
  """Says so in the run log, also where that is an object."""
  log.write('process lost', error=text)
  if workdir.mirror and jax.process_index() == 0:
    workdir.mirror.push_file(workdir.run_log)
    workdir.mirror.give_lease()  # the next run need not wait
