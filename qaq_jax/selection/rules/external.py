"""Scores that come from elsewhere: a file, or a field of the input's rows."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import numpy as np

from qaq_jax.selection.roles import MissingColumn
from qaq_jax.selection.rules import eligible
from qaq_jax.selection.rules.rule import Candidates, register

# The rules' records are part of what a command line starts with; pyarrow, slow
# to import, is not.
if TYPE_CHECKING:
  import pyarrow as pa


def _read_table(path: str) -> pa.Table:
  import pyarrow.csv as pa_csv
  import pyarrow.json as pa_json
  import pyarrow.parquet as pq

  readers = {
    '.parquet': pq.read_table,
    '.csv': pa_csv.read_csv,
    '.jsonl': pa_json.read_json,
    '.json': pa_json.read_json,
  }
  ending = os.path.splitext(path)[1].lower()
  if ending not in readers:
    raise ValueError(
      f'{path}: scores are read from {", ".join(readers)}, not {ending!r}.'
    )
  return readers[ending](path)


def read_scores(path, columns, name: str, key: str = 'auto'):
  """Reads one score per row from a file and puts it in the table's order.

  Args:
    path: Parquet, CSV or JSONL file with the key and the score.
    columns: ScoreColumns to join with.
    name: the score's column in the file.
    key: 'row', 'id' or 'auto' (row if the file has it, else id).

  Returns:
    float64 [N]; NaN for rows that the file does not have.

  Raises:
    ValueError: a missing column, a doubled key, or nothing in common.
  """
  import pyarrow as pa
  import pyarrow.compute as pc

  path = os.fspath(path)
  table = _read_table(path)
  if key == 'auto':
    key = 'row' if 'row' in table.column_names else 'id'
  for column in (key, name):
    if column not in table.column_names:
      raise ValueError(
        f'{path} has no column {column!r} (it has '
        f'{", ".join(table.column_names)}); set select.key and select.column.'
      )
  if key == 'row':
    own = pa.array(columns.row)
    theirs = pc.cast(table[key], pa.int64())
  elif key == 'id':
    own = columns.ids()
    theirs = pc.cast(table[key], pa.string())
    doubled = len(own) - own.null_count - len(pc.unique(own.drop_null()))
    if doubled:
      raise ValueError(
        f'{doubled} rows of the score table share an id with another: join '
        f"{path} on 'row'."
      )
  else:
    raise ValueError(f"select.key is {key!r}; it is 'row', 'id' or 'auto'.")
  theirs = theirs.combine_chunks()
  if len(pc.unique(theirs)) != len(theirs):
    counts = pc.value_counts(theirs)
    twice = counts.filter(pc.greater(counts.field('counts'), 1))[0].as_py()
    raise ValueError(
      f'{path}: {key} {twice["values"]!r} stands {twice["counts"]} times.'
    )
  place = pc.index_in(own, value_set=theirs).to_numpy(zero_copy_only=False)
  found = np.isfinite(place)
  if len(own) and not found.any():
    raise ValueError(f'{path}: not one {key} of it is in the score table.')
  scores = pc.cast(table[name], pa.float64()).to_numpy()
  out = np.full(len(own), np.nan)
  out[found] = scores[place[found].astype(np.int64)]
  return out


def scores_of_samples(samples, num_rows: int, field: str):
  """Reads a numeric field of the input's own records.

  Args:
    samples: iterable of records with `row` and `raw` (one JSON record).
    num_rows: rows of the input.
    field: the record's key, e.g. 'scar'.

  Returns:
    float64 [num_rows]; NaN where the field is absent or null.

  Raises:
    ValueError: a value that is not a number (names the row), or no record
      has the field.
  """
  out = np.full(num_rows, np.nan)
  for sample in samples:
    try:
      record = json.loads(sample.raw)
    except ValueError:  # a malformed line: status `invalid`, never eligible
      continue
    value = record.get(field) if isinstance(record, dict) else None
    if value is None:
      continue
    if isinstance(value, bool) or not isinstance(value, (int, float)):
      raise ValueError(
        f'Row {sample.row}: field {field!r} is {value!r}, not a number.'
      )
    out[sample.row] = value
  if num_rows and np.isnan(out).all():
    raise MissingColumn(f'No row of the input has a field {field!r}.')
  return out


def _scores_of_input(run, options):
  if options['path'] is not None:
    return None
  return run.field(options['column'])


@register(
  'scar',
  keeps='highest precomputed score of the SCAR style ranker',
  source='SCAR, arXiv 2406.10882',
  needs=('a column of the table, or a file of (row or id, score)',),
  score='scar',
  models=eligible.present_roles,
  options={
    'column': ('scar', 'name of the score in the table or the file'),
    'path': (str, 'Parquet, CSV or JSONL file of scores'),
    'key': ('auto', "join the file on 'row' or 'id'"),
    'scores': (None, 'array [rows] of scores, instead of a file'),
  },
  inputs={'scores': _scores_of_input},
)
def _scar(columns, options, context):
  if options['scores'] is not None:
    score = np.asarray(options['scores'], np.float64)
    if score.shape != (columns.num_rows,):
      raise ValueError(
        f'select.scores has shape {score.shape}; the score table has '
        f'{columns.num_rows} rows.'
      )
  elif options['path'] is not None:
    score = read_scores(
      options['path'], columns, options['column'], options['key']
    )
  elif columns.has(options['column']):
    score = columns.raw(options['column'])
  else:
    raise MissingColumn(
      f'The score table has no column {options["column"]!r}: rank the data '
      'with the PyPI package scar-tool, write (row, scar) to a Parquet, CSV '
      'or JSONL file and set `--config.select.path=FILE`.'
    )
  return Candidates(np.where(np.isfinite(score), score, np.nan))
