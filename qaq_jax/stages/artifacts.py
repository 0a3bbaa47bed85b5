"""Artifacts of a work directory, as a config asks for them.

A stage opens its inputs here: prepared samples, the score table, a selection.
What was made from other settings or inputs is refused, naming the difference.
"""

import os

from qaq_jax.data import samples
from qaq_jax.scoring import join, parts
from qaq_jax.scoring import table as table_lib
from qaq_jax.selection import columns
from qaq_jax.selection import select as select_lib
from qaq_jax.selection.options import SelectOptions
from qaq_jax.selection.rules import external, rule
from qaq_jax.selection.sql import engine
from qaq_jax.stages import options as options_lib
from qaq_jax.workdir import checksums, files, fingerprint
from qaq_jax.workdir.layout import SAMPLES_KEY, WorkDir


def data_source(config, workdir: WorkDir, path: str = '') -> samples.DataSource:
  """`config.data` as the reader takes it.

  Args:
    config: the config.
    workdir: the work directory.
    path: the path of other data that is read by the same rules; '' = the
      config's own.
  """
  c = config.data
  path = workdir.filled(path or c.path)
  return options_lib.of(samples.DataSource, c, path=path)


def check_mined(workdir: WorkDir, path: str) -> None:
  """Compares a file of the mine stage with its checksum, if `path` is one.

  Raises:
    StoreError: it is damaged.
  """
  filled = workdir.filled(path)
  if filled != path and os.path.exists(filled):
    checksums.check(filled, 'delete it and run the mine stage again')


def open_samples(config, workdir: WorkDir) -> samples.SampleStore:
  """The prepared samples, refused if `config.data` says something else.

  Raises:
    ValueError: nothing is prepared, or from another source or options.
  """
  store = samples.SampleStore.open(workdir.samples)
  wanted = samples.request_of(data_source(config, workdir))
  if workdir.mirror and '{workdir}' in config.data.path:
    # The local copy has another name in every process.
    wanted['path'] = store.info['request']['path']
  fingerprint.check(
    store.info['request'],
    wanted,
    what=f'{workdir.samples} was prepared with other settings of config.data',
    back='Run the prepare stage, or give the config of before',
    defaults=samples.REQUEST_DEFAULTS,
  )
  return store


def check_scores(config, workdir: WorkDir) -> None:
  """Refuses a work directory without a score table of its samples.

  Raises:
    ValueError: there is none, or it is of other samples.
    StoreError: it is damaged.
  """
  path = workdir.scores
  if not path.exists():
    raise ValueError(f'{path} does not exist: run the score stage first')
  with table_lib.open_table(path) as file:
    metadata = file.schema_arrow.metadata or {}
    made_from = metadata.get(SAMPLES_KEY.encode(), b'unknown')
  store = open_samples(config, workdir)
  prepared = store.content_hash
  if made_from != prepared.encode():
    raise ValueError(
      f'{path} was made from other samples than {workdir.samples} holds '
      f'now (content {made_from[:16].decode(errors="replace")}, now '
      f'{prepared[:16]}): prepare the old input again, or score the new one '
      'in another --workdir'
    )
  if not checksums.check(path, table_lib.BACK):
    folders = sorted(p.parent for p in workdir.path.glob('scores/*/plan.json'))
    join.check_joined(path, folders, num_rows=store.num_rows)


def score_columns(config, workdir: WorkDir) -> columns.ScoreColumns:
  """The finished score table, stratified as the config says.

  Raises:
    ValueError: there is no score table, or it is of other samples.
  """
  check_scores(config, workdir)
  return columns.ScoreColumns(
    workdir.scores,
    roles=config.roles.to_dict(),
    num_strata=config.strata.num_strata,
    by=config.strata.by,
    include_truncated=config.select.include_truncated,
  )


def selection(
  config, workdir: WorkDir, table: columns.ScoreColumns | None = None
) -> select_lib.Selection:
  """What `config.select` chooses from the score table.

  Args:
    config: the config; its engine says who chooses.
    workdir: the work directory with the score table.
    table: the table, where it is open already.

  Raises:
    ValueError: an unknown engine, or as `select.select`.
  """
  c = options_lib.of(SelectOptions, config.select)
  asked = {
    'rule': c.rule,
    'budget': config.select.budget.to_dict(),
    'seed': config.seed,
    **rule_options(config, workdir, c.rule),
  }
  if c.engine == 'memory':
    table = score_columns(config, workdir) if table is None else table
    return select_lib.select(table, **asked)
  check_scores(config, workdir)
  return engine.select(
    workdir.scores,
    roles=config.roles.to_dict(),
    num_strata=config.strata.num_strata,
    by=config.strata.by,
    include_truncated=c.include_truncated,
    memory_gb=c.memory_gb,
    threads=os.cpu_count() or 1,
    temporary=workdir.path / 'duckdb',
    **asked,
  )


def written_selection(workdir: WorkDir) -> dict | None:
  """What `qaq select` wrote, None without.

  Raises:
    StoreError: it is damaged.
  """
  back = f'delete {workdir.selection.name}, and run the select stage again'
  found = files.read_json(workdir.selection, back)
  if found is not None:
    checksums.check(workdir.selection, back)
  return found


def fingerprints(workdir: WorkDir) -> dict[str, dict]:
  """Model -> fingerprint of its part of the score table.

  Raises:
    StoreError: one is damaged.
  """
  folders = sorted((workdir.path / 'scores').glob('*/fingerprint.json'))
  found = {p.parent.name: parts.read_fingerprint(p.parent) for p in folders}
  return {name: value for name, value in found.items() if value is not None}


def check_selection(config, workdir: WorkDir, selection) -> None:
  """Refuses a selection that is not what `qaq select` wrote.

  Raises:
    ValueError: the work directory holds another selection, or none.
  """
  written = written_selection(workdir) or {}
  if written.get('rows_sha256') != selection.report['rows_sha256']:
    raise ValueError(
      f'{workdir.selection} is of another selection than this config makes '
      f'(there: {written.get("rule", "none yet")}; config: '
      f'{config.select.rule}): run the select stage with this config first'
    )


def rule_options(config, workdir: WorkDir, name: str) -> dict:
  """The options of a rule that `config.select` sets, and what it reads."""
  made, given = rule.get_rule(name), given_options(config)
  given = {k: v for k, v in given.items() if k in made.options}
  options, inputs = rule.resolve_options(made, given), Inputs(config, workdir)
  return options | {k: read(inputs, options) for k, read in made.inputs.items()}


def given_options(config) -> dict:
  """Options of single rules that `config.select` sets."""
  return {
    name: value
    for name, value in config.select.items()
    if name not in rule.FIXED and value is not None
  }


class Inputs:
  """What a run has besides the score table, for `Rule.inputs`.

  Attributes:
    targets_path: where the examples of the target tasks come from; '' = none.
  """

  def __init__(self, config, workdir: WorkDir):
    self._roles, self._workdir = config.roles, workdir
    self.targets_path = config.score.targets_path

  def embeddings(self, model: str, of: str = 'scores'):
    """Path of a model's or role's .npy [rows or targets, D]; None = none."""
    path = self._workdir.embeddings(self._roles.get(model, model), of)
    return path if path.exists() else None

  def field(self, name: str):
    """A numeric field of the input's own records, one value per row."""
    store = samples.SampleStore.open(self._workdir.samples)
    return external.scores_of_samples(store.iter_rows(), store.num_rows, name)
