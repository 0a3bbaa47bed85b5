"""The select stage: a score table to chosen samples."""

import ml_collections

from qaq_jax.data import samples
from qaq_jax.runtime import console
from qaq_jax.selection import request, summary
from qaq_jax.selection.options import SelectOptions
from qaq_jax.selection.sql import engine
from qaq_jax.stages import artifacts, options
from qaq_jax.workdir import checksums, files
from qaq_jax.workdir.layout import WorkDir


def check(config: ml_collections.ConfigDict) -> None:
  """Refuses what no engine can select, before anything is scored."""
  c = options.of(SelectOptions, config.select)
  budget = config.select.budget.to_dict()
  asked = request.Request.of(
    c.rule, budget, config.seed, artifacts.given_options(config)
  )
  if c.engine == 'duckdb':
    engine.sql_of(asked.rule)
    engine.load()


def run(config: ml_collections.ConfigDict, workdir: WorkDir) -> dict:
  """Score table -> chosen samples, in the input's own schema."""
  before = _before(workdir)
  store = artifacts.open_samples(config, workdir)
  selection = artifacts.selection(config, workdir)
  path = workdir.path / config.select.output
  samples.write_selected(store, selection.rows, path)
  report = selection.report | {
    'samples': store.content_hash,
    'scores': artifacts.fingerprints(workdir),
  }
  files.write_json(workdir.selection, report, checksums.atomic_file)
  console.say(summary.format_selection(selection.report))
  if not len(selection.rows):
    console.say('! Nothing was kept.')
  console.say(f'wrote {path} and {workdir.selection}')
  if before and before[0] != report['rows_sha256']:
    console.say(f'(before: {before[1]}, {before[2]} rows)')
    if workdir.report.exists():
      console.say(
        f'{workdir.report} shows an earlier one: qaq report makes it anew'
      )
  return {'rule': config.select.rule, 'kept': len(selection.rows)}


def _before(workdir) -> tuple[str, str, int] | None:
  """Hash of the rows, rule and number of rows of what will be replaced.

  Damage to it is no obstacle.
  """
  try:
    found = artifacts.written_selection(workdir)
    if found is None:
      return None
    return found['rows_sha256'], found['rule'], found['counts']['kept']
  except (files.StoreError, LookupError, TypeError) as e:
    if workdir.selection.is_dir():
      raise
    console.say(f'! what was selected before is not known: {e!r}')
    return None
