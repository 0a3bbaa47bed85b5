"""Runs the stages of a config in a work directory, and keeps the run log."""

import json
import pathlib

import jax
import ml_collections

from qaq_jax import runlog, stages
from qaq_jax.workdir import WorkDir

STAGES = {
    'mine': stages.mine,
    'prepare': stages.prepare,
    'score': stages.score,
    'select': stages.select,
    'audit': stages.audit,
    'report': stages.report,
}


def run(
    stage: str, config: ml_collections.ConfigDict, workdir: str
) -> pathlib.Path:
  """Runs one stage, or all of `config.stages`.

  Args:
    stage: a key of STAGES, or 'run' for all that the config lists.
    config: as made by `qaq_jax.config.get_default` and changed.
    workdir: folder of all output; created where it is missing.

  Returns:
    The work directory.

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
  stages.check(config)
  workdir = WorkDir(workdir)
  if jax.process_index() == 0:
    text = json.dumps(config.to_dict(), indent=2, default=str)
    workdir.config.write_text(text + '\n')
  log = runlog.RunLog(workdir.run_log)
  log.environment()
  for name in names:
    with log.stage(name):
      result = STAGES[name](config, workdir)
      log.write('result', stage=name, **(result or {}))
  return workdir.path
