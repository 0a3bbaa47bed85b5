"""Runs the stages of a config in a work directory, and keeps the run log."""

import functools
import json
import os
import pathlib
import sys

import jax
import ml_collections

from qaq_jax.runtime import processes, runlog
from qaq_jax.stages import registry
from qaq_jax.workdir import files
from qaq_jax.workdir import mirror as mirror_lib
from qaq_jax.workdir.layout import WorkDir

STAGES = {
  'mine': registry.mine,
  'prepare': registry.prepare,
  'score': registry.score,
  'select': registry.select,
  'finetune': registry.finetune,
  'evaluate': registry.evaluate,
  'compare': registry.compare,
  'audit': registry.audit,
  'analyse': registry.analyse,
  'report': registry.report,
  'plan': registry.plan,
}

# Stages that all processes run together; of the others the first runs each, and
# the rest wait.
_TOGETHER = ('score', 'finetune', 'evaluate', 'compare')
# Of those, the ones whose processes must all see one folder.
_ONE_FOLDER = ('finetune', 'evaluate', 'compare')

# What to do after `qaq run`, by a stage that was in it.
_NEXT = {
  'report': """open {workdir}/report/index.html
      read docs/selection.md, or list the rules: python -m qaq_jax.selection
      choose again, without a model: qaq select --workdir={workdir} \\
        {config} --config.select.rule=rmi_window
      look at single samples: notebooks/probe_rmi.ipynb
      train on what was chosen: qaq finetune --workdir={workdir} \\
        {config}""",
  'finetune': """evaluate the model in {workdir}/{folder}/model: read
      docs/evaluation.md, then qaq evaluate --workdir={workdir} \\
        {config}""",
  'compare': 'read {workdir}/compare/results.md and docs/finetuning.md',
}


def run(
  stage: str,
  config: ml_collections.ConfigDict,
  workdir: str,
  watch: processes.Watch | None = None,
) -> pathlib.Path:
  """Runs one stage, or all of `config.stages`.

  Args:
    stage: a key of STAGES, or 'run' for all that the config lists.
    config: as made by `qaq_jax.config.get_default` and changed.
    workdir: folder of all output, made where it is missing, that all
      processes see; or of an object store, as gs://bucket/run.
    watch: over the processes, where there are several.

  Returns:
    The work directory; of an object store, its local copy.

  Raises:
    ValueError: the config or an input cannot be used; says what to do.
    OSError: a file cannot be read or written.
  """
  names = tuple(config.stages) if stage == 'run' else (stage,)
  unknown = [name for name in names if name not in STAGES]
  if unknown:
    raise ValueError(
      f'config.stages: there is no stage {unknown[0]!r}; there are: '
      + ', '.join(STAGES)
    )
  registry.check(config, names)
  workdir = _open(names, workdir)
  # Process 0 holds the lock; stages of two commands would mix artifacts.
  lock = files.Lock(workdir.path) if jax.process_index() == 0 else None
  try:
    if workdir.mirror:
      _run_mirrored(names, config, workdir, watch)
    else:
      _run(names, config, workdir, watch)
  finally:
    if lock:
      lock.release()
  if stage == 'run' and jax.process_index() == 0:
    given = [a for a in sys.argv if a.startswith('--config=')]
    for name in (n for n in _NEXT if n in names):
      print(
        '\nnext: '
        + _NEXT[name].format(
          workdir=workdir,
          folder=config.finetune.folder,
          config=(given or ['--config=THE_SAME'])[0],
        )
      )
  return workdir.path


def keep_programs() -> None:
  """Keeps compiled programs across runs, unless jax is told where already."""
  if not jax.config.jax_compilation_cache_dir:
    home = os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache'
    jax.config.update(
      'jax_compilation_cache_dir', str(pathlib.Path(home) / 'qaq_jax')
    )
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)


def _open(names, path) -> WorkDir:
  if not mirror_lib.is_remote(path):
    return WorkDir(path)
  single = [name for name in names if name in _ONE_FOLDER]
  if single and jax.process_count() > 1:
    raise ValueError(
      f'--workdir={path}: {single[0]} with several processes needs a folder '
      'that all of them see; copy the work directory to one'
    )
  index = jax.process_index()
  mirror = mirror_lib.Mirror(path, mirror_lib.local_folder(path, index))
  return WorkDir(mirror.path, mirror)


def _run_mirrored(names, config, workdir, watch) -> None:
  """Runs the stages on the local copy; what they wrote is stored."""
  mirror = workdir.mirror
  first = jax.process_index() == 0
  processes.by_the_first(mirror.take_lease, 'lease')
  try:
    mirror.pull()
    processes.barrier('fetched')  # before anything is written
    try:
      _run(names, config, workdir, watch)
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
    print(f'stored in {workdir}')
  processes.barrier('stored')
  if workdir.mirror and jax.process_index():
    workdir.mirror.pull()


def _run(names, config, workdir, watch) -> None:
  if jax.process_index() == 0:
    files.remove_temporaries(workdir.path)
    text = json.dumps(config.to_dict(), indent=2, default=str)
    workdir.config.write_text(text + '\n')
  log = runlog.RunLog(workdir.run_log)
  log.environment()
  if watch is not None:
    watch.on_loss = functools.partial(_on_loss, log, workdir)
  for name in names:
    with log.stage(name):
      work = functools.partial(STAGES[name], config, workdir)
      if name in _TOGETHER:
        result = work()
        processes.barrier(name)  # what the first one joins is there
      else:
        result = processes.by_the_first(work, name)
      log.write('result', stage=name, **(result or {}))
    if workdir.mirror:
      _exchange(workdir)


def _on_loss(log, workdir, text) -> None:
  """Says so in the run log, also where that is an object."""
  log.write('process lost', error=text)
  if workdir.mirror and jax.process_index() == 0:
    workdir.mirror.push_file(workdir.run_log)
    workdir.mirror.give_lease()  # the next run need not wait
