"""The stages: functions of (config, work directory), each runnable alone.

A stage reads its input artifacts from the work directory, writes its own
there, prints what a user wants to know and returns it for the run log. The
score stage is in score.py. ConfigDicts stop here: what the stages call
takes plain arguments.
"""

import json
import os
import shutil

import ml_collections

from qaq_jax.data import samples
from qaq_jax.demo import defects
from qaq_jax.models import quantized
from qaq_jax.selection import analyses, budget, strata, summary
from qaq_jax.selection import audit as audit_lib
from qaq_jax.selection.rules import rule as rule_lib
from qaq_jax.stages import artifacts
from qaq_jax.workdir import files
from qaq_jax.workdir.layout import WorkDir

_MAX_LABELS = 20  # columns of the audit's table
# Stages that load config.models.
_LOADING = {'score', 'finetune', 'compare', 'plan'}
DTYPES = ('float32', 'bfloat16')


def check(config: ml_collections.ConfigDict, names=('score',)) -> None:
  """Finds what can be known to be wrong before any work is done.

  Args:
    config: the resolved config.
    names: the stages that will run.

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
    if not model.path and _LOADING & set(names):
      raise ValueError(f'config.models.{name}.path is empty')
    if model.dtype not in DTYPES:
      raise ValueError(
        f'config.models.{name}.dtype is {model.dtype!r}; it is one of '
        + ', '.join(DTYPES)
      )
    if model.quantization not in quantized.SCHEMES:
      raise ValueError(
        f'config.models.{name}.quantization is {model.quantization!r}; it '
        'is one of ' + ', '.join(map(repr, quantized.SCHEMES))
      )
  if config.strata.by not in strata.BY:
    raise ValueError(
      f'config.strata.by is {config.strata.by!r}; it is one of '
      + ', '.join(strata.BY)
    )
  rule = rule_lib.get_rule(config.select.rule)
  budget.Budget.of(config.select.budget.to_dict())
  rule_lib.resolve_options(rule, artifacts.given_options(config))
  for name in config.audit.rules:
    rule_lib.get_rule(name)


def mine(config: ml_collections.ConfigDict, workdir: WorkDir) -> dict:
  """The demo's input: mined pairs with planted defects -> data.path."""
  info = defects.write_demo_data(
    workdir.filled(config.data.path),
    rows=config.mine.rows,
    shares=config.mine.defects.to_dict(),
    seed=config.seed,
    held_out=config.mine.held_out,
    held_out_path=workdir.held_out,
  )
  print(f'mined {info["source"]}')
  planted = ', '.join(f'{n} {name}' for name, n in info['defects'].items())
  print(f'kept {info["rows"]} pairs (hash {info["content_hash"]}): {planted}')
  if info['held_out']:
    print(f'held out {info["held_out"]} other pairs: {workdir.held_out}')
  return info


def prepare(config: ml_collections.ConfigDict, workdir: WorkDir) -> dict:
  """Input data -> prepared samples."""
  source = artifacts.data_source(config, workdir)
  scored = {f.get('samples') for f in workdir.fingerprints().values()}
  info = samples.current(source, workdir.samples)
  if info is None and not scored:
    info = samples.prepare(source, workdir.samples)
  elif info is None:
    # There are scores: other samples must not take the place of theirs.
    candidate = workdir.samples.with_name('samples.candidate')
    info = samples.prepare(source, candidate)
    if info['content_hash'] not in scored:
      shutil.rmtree(candidate)
      raise ValueError(
        f'{workdir.path} holds scores of other samples than {source.path} '
        f'has now ({info["rows"]:,} rows): use another --workdir, or delete '
        'its folder "scores" to score these'
      )
    shutil.rmtree(workdir.samples, ignore_errors=True)
    candidate.rename(workdir.samples)
  if not info['rows']:
    raise ValueError(f'{source.path} has no rows: there is nothing to score')
  return {k: info[k] for k in ('rows', 'statuses', 'content_hash')}


def score(config: ml_collections.ConfigDict, workdir: WorkDir) -> dict:
  """Samples and models -> score table."""
  from qaq_jax.stages import score as score_lib  # loads flax and transformers

  return score_lib.score(config, workdir)


def select(config: ml_collections.ConfigDict, workdir: WorkDir) -> dict:
  """Score table -> chosen samples, in the input's own schema."""
  store = artifacts.open_samples(config, workdir)
  selection = artifacts.selection(config, workdir)
  before = files.read_json(workdir.selection)
  path = workdir.path / config.select.output
  samples.write_selected(store, selection.rows, path)
  report = selection.report | {
    'samples': store.content_hash,
    'scores': workdir.fingerprints(),
  }
  files.write_json(workdir.selection, report)
  print(summary.format_selection(selection.report))
  if not len(selection.rows):
    print('! Nothing was kept.')
  print(f'wrote {path} and {workdir.selection}')
  if before and before['rows_sha256'] != report['rows_sha256']:
    print(f'(before: {before["rule"]}, {before["counts"]["kept"]} rows)')
    if workdir.report.exists():
      print(f'{workdir.report} shows that one still: qaq report makes it anew')
  return {'rule': config.select.rule, 'kept': len(selection.rows)}


def audit(config: ml_collections.ConfigDict, workdir: WorkDir) -> dict:
  """What each rule lets through, by a label in the input's records."""
  store = artifacts.open_samples(config, workdir)
  label, share = config.audit.label, config.audit.share
  if not label:
    raise ValueError(
      'config.audit.label is empty: name the field of the input that labels '
      'its rows, as in --config.audit.label=defect'
    )
  labels = [
    _label(line, label, row) for row, line in enumerate(store.iter_raw())
  ]
  kinds = len(set(labels))
  if kinds > _MAX_LABELS:
    raise ValueError(
      f'config.audit.label: {label!r} has {kinds} different values; a label '
      f'has at most {_MAX_LABELS}'
    )
  table = artifacts.score_columns(config, workdir)
  found, left_out = analyses.select_all(
    table,
    tuple(config.audit.rules),
    budget={'share': share},
    seed=config.seed,
    options=lambda name: artifacts.rule_options(config, workdir, name),
  )
  chosen = {name: selection.rows for name, selection in found.items()}
  print(f'share of each {label!r} kept at {share:.0%}')
  print(audit_lib.format_audit(chosen, labels))
  if left_out:
    print(f'not in the table, for want of scores: {", ".join(left_out)}')
  return {
    'let_through': audit_lib.let_through(chosen, labels),
    'left_out': left_out,
  }


def finetune(config: ml_collections.ConfigDict, workdir: WorkDir) -> dict:
  """Chosen samples -> trained and exported model."""
  from qaq_jax.stages import (
    finetune as finetune_lib,  # loads flax and transformers
  )

  return finetune_lib.finetune(config, workdir)


def evaluate(config: ml_collections.ConfigDict, workdir: WorkDir) -> dict:
  """Model -> programs for the benchmarks, and their pass@k where allowed."""
  from qaq_jax.stages import (
    evaluate as evaluate_lib,  # loads flax and transformers
  )

  return evaluate_lib.evaluate(config, workdir)


def plan(config: ml_collections.ConfigDict, workdir: WorkDir) -> dict:
  """Config and topology -> memory, batch, hours, before a pod is started."""
  from qaq_jax.stages import plan as plan_lib  # loads flax and transformers

  return plan_lib.plan(config, workdir)


def compare(config: ml_collections.ConfigDict, workdir: WorkDir) -> dict:
  """Rules x budgets x seeds -> one table of held-out losses."""
  from qaq_jax.stages import (
    compare as compare_lib,  # loads flax and transformers
  )

  return compare_lib.run(config, workdir)


def analyse(config: ml_collections.ConfigDict, workdir: WorkDir) -> dict:
  """Rank correlations of scores and overlaps of rules."""
  table = artifacts.score_columns(config, workdir)
  correlations = analyses.correlations(table)
  print('Spearman rank correlations:')
  for c in correlations:
    print(
      f'  RMI ({c["model"]}) with {c["score"]} ({c["other"]}): '
      f'{c["spearman"]:+.4f}'
    )
  share = config.analyse.share
  found, left_out = analyses.select_all(
    table,
    budget={'share': share},
    seed=config.seed,
    options=lambda name: artifacts.rule_options(config, workdir, name),
  )
  rows = {name: selection.rows for name, selection in found.items()}
  shared = analyses.overlap(rows, of='first')
  print(
    f'Overlap at {share:.0%}: of the rows that the rule on the left keeps, '
    'those that the rule above keeps too:'
  )
  print(analyses.format_overlap(list(rows), shared))
  result = {
    'spearman': correlations,
    'overlap': {
      'share': share,
      'of': 'rows of the first rule',
      'rules': list(rows),
      'matrix': [[round(float(x), 6) for x in line] for line in shared],
      'left_out': left_out,
    },
  }
  files.write_json(workdir.analyses, result)
  print(f'wrote {workdir.analyses}')
  return {'spearman': correlations}


def report(config: ml_collections.ConfigDict, workdir: WorkDir) -> dict:
  """One page about scores and selection."""
  from qaq_jax import report as report_lib

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
      for model, fingerprint in workdir.fingerprints().items()
      for name, value in fingerprint.items()
      if not isinstance(value, dict)
    },
  )
  print(f'wrote {path}')
  return {'path': str(path)}


def _label(line: bytes, field: str, row: int) -> str:
  """A record's label; a line that is no record is labelled so."""
  try:
    record = json.loads(line)
  except ValueError:
    return 'unreadable'
  if not isinstance(record, dict):
    return 'unreadable'
  if field not in record:
    raise ValueError(
      f'config.audit.label is {field!r}, but row {row} has no such field; it '
      f'has: {", ".join(record)}'
    )
  return str(record[field])
