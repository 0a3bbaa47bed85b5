"""The report stage: one page about scores and selection."""

import os

import ml_collections

from qaq_jax import report as report_lib
from qaq_jax.runtime import console
from qaq_jax.stages import artifacts, select
from qaq_jax.workdir.layout import WorkDir


def check(config: ml_collections.ConfigDict) -> None:
  """Refuses what the select stage does: the page shows what is chosen."""
  select.check(config)


def run(config: ml_collections.ConfigDict, workdir: WorkDir) -> dict:
  """One page about scores and selection."""
  path = workdir.report
  table = artifacts.score_columns(config, workdir)
  selection = artifacts.selection(config, workdir, table)
  artifacts.check_selection(config, workdir, selection)
  report_lib.write_report(
    path,
    table,
    selection,
    artifacts.open_samples(config, workdir),
    title=f'{config.select.rule} on {os.path.basename(config.data.path)}',
    info={
      f'{model}: {name}': str(value)
      for model, fingerprint in artifacts.fingerprints(workdir).items()
      for name, value in fingerprint.items()
      if not isinstance(value, dict)
    },
  )
  console.say(f'wrote {path}')
  return {'path': str(path)}
