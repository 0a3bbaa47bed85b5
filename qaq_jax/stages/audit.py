"""The audit stage: what each rule lets through, by a label."""

import json

import ml_collections

from qaq_jax.runtime import console
from qaq_jax.selection import analyses
from qaq_jax.selection import audit as audit_lib
from qaq_jax.selection.rules import rule
from qaq_jax.stages import artifacts
from qaq_jax.workdir.layout import WorkDir

_MAX_LABELS = 20  # columns of the table


def check(config: ml_collections.ConfigDict) -> None:
  """Refuses an audit of no label or of unknown rules."""
  if not config.audit.label:
    raise ValueError(
      'config.audit.label is empty: name the field of the input that labels '
      'its rows, as in --config.audit.label=defect'
    )
  for name in config.audit.rules:
    rule.get_rule(name, 'config.audit.rules')


def run(config: ml_collections.ConfigDict, workdir: WorkDir) -> dict:
  """What each rule lets through, by a label in the input's records."""
  store = artifacts.open_samples(config, workdir)
  label, share = config.audit.label, config.audit.share
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
  console.say(f'share of each {label!r} kept at {share:.0%}')
  console.say(audit_lib.format_audit(chosen, labels))
  if left_out:
    console.say(f'not in the table, for want of scores: {", ".join(left_out)}')
  return {
    'let_through': audit_lib.let_through(chosen, labels),
    'left_out': left_out,
  }


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
