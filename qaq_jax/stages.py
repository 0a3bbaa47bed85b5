"""The stages: functions of (config, work directory), each runnable alone.

A stage reads its input artifacts from the work directory, writes its own
there, prints what a user wants to know and returns it for the run log.
ConfigDicts stop here: what the stages call takes plain arguments.
"""

import json
import pathlib

import ml_collections

from qaq_jax.data import samples
from qaq_jax.demo import defects
from qaq_jax.scoring import files
from qaq_jax.selection import analyses, budget, columns, external, registry
from qaq_jax.selection import audit as audit_lib
from qaq_jax.selection import select as select_lib
from qaq_jax.selection import summary

SAMPLES = 'samples'
SCORES = 'scores.parquet'
SELECTED = 'selected.jsonl'
SELECTION = 'selection.json'


def check(config: ml_collections.ConfigDict) -> None:
  """Finds what can be known to be wrong before any work is done.

  Raises:
    ValueError: names the field and what to do.
  """
  for role, name in config.roles.items():
    if name and name not in config.models:
      raise ValueError(
          f'config.roles.{role} is {name!r}; config.models has: '
          + (', '.join(config.models) or 'none')
      )
  for name, model in config.models.items():
    if not model.path:
      raise ValueError(f'config.models.{name}.path is empty')
  registry.get_rule(config.select.rule)
  budget.Budget.of(config.select.budget.to_dict())
  for rule in config.audit.rules:
    registry.get_rule(rule)


def mine(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> dict:
  """The demo's input: mined pairs with planted defects -> data.path."""
  info = defects.write_demo_data(
      data_path(config, workdir),
      rows=config.mine.rows,
      shares=config.mine.defects.to_dict(),
      seed=config.seed,
  )
  print(f'mined {info["source"]}')
  planted = ', '.join(f'{n} {name}' for name, n in info['defects'].items())
  print(f'kept {info["rows"]} pairs (hash {info["content_hash"]}): {planted}')
  return info


def prepare(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> dict:
  """Input data -> WORKDIR/samples."""
  c = config.data
  source = samples.DataSource(
      path=data_path(config, workdir),
      format=c.format,
      split=c.split,
      name=c.name,
      revision=c.revision,
      columns=c.columns.to_dict(),
      turns=c.turns,
      strip=c.strip,
      limit=c.limit,
  )
  info = samples.prepare(source, workdir / SAMPLES)
  return {k: info[k] for k in ('rows', 'statuses', 'content_hash')}


def score(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> dict:
  """WORKDIR/samples -> WORKDIR/scores/<model>, WORKDIR/scores.parquet."""
  from qaq_jax import scoring_stage  # loads flax and transformers

  return scoring_stage.score(config, workdir)


def select(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> dict:
  """WORKDIR/scores.parquet -> WORKDIR/selected.jsonl, selection.json."""
  store = samples.SampleStore.open(workdir / SAMPLES)
  selection = _selection(config, workdir)
  samples.write_selected(store, selection.rows, workdir / SELECTED)
  report = selection.report | {
      'samples': store.content_hash,
      'scores': _fingerprints(workdir),
  }
  files.write_json(workdir / SELECTION, report)
  print(summary.format_selection(selection.report))
  print(f'wrote {workdir / SELECTED} and {workdir / SELECTION}')
  return {'rule': config.select.rule, 'kept': len(selection.rows)}


def audit(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> dict:
  """What each rule lets through, by a label in the input's records."""
  store = samples.SampleStore.open(workdir / SAMPLES)
  labels = [_label(line, config.audit.label) for line in store.iter_raw()]
  selections = analyses.select_all(
      score_columns(config, workdir),
      config.audit.rules or None,
      budget=budget.Budget(share=config.audit.share),
      seed=config.seed,
  )
  chosen = {rule: s.rows for rule, s in selections.items()}
  print(f'share of each {config.audit.label!r} kept at {config.audit.share:.0%}')
  print(audit_lib.format_audit(chosen, labels))
  return {'let_through': audit_lib.let_through(chosen, labels)}


def report(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> dict:
  """One page about scores and selection: WORKDIR/report/index.html."""
  from qaq_jax import report as report_lib

  path = workdir / 'report' / 'index.html'
  report_lib.write_report(
      path,
      score_columns(config, workdir),
      _selection(config, workdir),
      samples.SampleStore.open(workdir / SAMPLES),
      title=f'{config.select.rule} on {pathlib.Path(config.data.path).name}',
      info={
          f'{model}: {name}': str(value)
          for model, fingerprint in _fingerprints(workdir).items()
          for name, value in fingerprint.items()
          if not isinstance(value, dict)
      },
  )
  print(f'wrote {path}')
  return {'path': str(path)}


def data_path(config, workdir: pathlib.Path) -> str:
  """`config.data.path` with the work directory filled in."""
  return config.data.path.replace('{workdir}', str(workdir))


def score_columns(config, workdir: pathlib.Path) -> columns.ScoreColumns:
  """The finished score table, stratified as the config says.

  Raises:
    ValueError: there is no score table yet.
  """
  path = workdir / SCORES
  if not path.exists():
    raise ValueError(f'{path} does not exist: run the score stage first')
  return columns.ScoreColumns(
      path,
      roles=config.roles.to_dict(),
      num_strata=config.strata.num_strata,
      by=config.strata.by,
      include_truncated=config.select.include_truncated,
  )


def _selection(config, workdir: pathlib.Path) -> select_lib.Selection:
  return select_lib.select(
      score_columns(config, workdir),
      rule=config.select.rule,
      budget=config.select.budget.to_dict(),
      seed=config.seed,
      **rule_options(config, workdir),
  )


def embeddings_path(workdir: pathlib.Path, model: str, of: str = 'samples'):
  """Pooled embeddings of the samples, or of the targets, under a model."""
  return workdir / 'embeddings' / f'{model}.{of}.npy'


def rule_options(config, workdir: pathlib.Path) -> dict:
  """The options of `config.select` that are set, and what a rule reads."""
  fixed = ('rule', 'budget', 'include_truncated')
  options = {k: v for k, v in config.select.items() if k not in fixed}
  if config.select.rule == 'rds_plus':
    model = options['model'] or 'strong'
    model = config.roles.get(model, model)
    if not config.score.targets_path:
      raise ValueError(
          'rule rds_plus needs examples of the target tasks: set '
          'config.score.embeddings=True and config.score.targets_path'
      )
    options |= {
        'embeddings': embeddings_path(workdir, model),
        'targets': embeddings_path(workdir, model, 'targets'),
        'targets_path': config.score.targets_path,
    }
  if config.select.rule == 'scar' and not options['path']:
    options['scores'] = _input_scores(workdir, options['column'] or 'scar')
  return options


def _input_scores(workdir: pathlib.Path, field: str):
  """A numeric field of the input's own records, one value per row."""
  store = samples.SampleStore.open(workdir / SAMPLES)
  return external.scores_of_samples(store.iter_rows(), store.num_rows, field)


def _label(line: bytes, field: str) -> str:
  record = json.loads(line)
  if field not in record:
    raise ValueError(
        f'config.audit.label is {field!r}, but a record has no such field; it '
        f'has: {", ".join(record)}'
    )
  return str(record[field])


def _fingerprints(workdir: pathlib.Path) -> dict:
  """Model -> fingerprint of its part of the score table."""
  found = (workdir / 'scores').glob('*/fingerprint.json')
  return {p.parent.name: json.loads(p.read_text()) for p in sorted(found)}
