"""Samples in and out: reading, preparing, random access, writing.

    source = DataSource('pairs.jsonl')
    info = prepare(source, 'work/samples')
    store = SampleStore.open('work/samples')
    for sample in store.iter_rows(100, 200): ...
    write_selected(store, rows, 'work/selected.jsonl')

A row of the input is a non-blank line (JSONL), an element (JSON), or a row
(Parquet, Hugging Face data set). Every one of them is a `Sample`, with a status
where it cannot be scored.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator

from qaq_jax.data import mapping, unscorable
from qaq_jax.data import records as records_lib
from qaq_jax.data.sample_store import SampleStore, write_parts
from qaq_jax.data.selected import write_selected
from qaq_jax.data.types import DataError, DataSource, Sample
from qaq_jax.runtime import console
from qaq_jax.workdir import fingerprint

__all__ = [
  'DataError',
  'DataSource',
  'Sample',
  'SampleStore',
  'prepare',
  'read_samples',
  'write_selected',
]

_NULL = ('split', 'name', 'revision', 'limit')  # in a manifest, not given


def _as_kept(fields):
  return {k: v or None if k in _NULL else v for k, v in fields.items()}


def request_of(source: DataSource) -> dict:
  """What is asked of `prepare`, as its manifest keeps it."""
  return _as_kept(dataclasses.asdict(source))


# Of fields of a request that were added after some samples were prepared.
REQUEST_DEFAULTS = _as_kept(
  {
    field.name: field.default
    for field in dataclasses.fields(DataSource)
    if field.default is not dataclasses.MISSING
  }
)
_PROBE = 100  # records looked at to recognise the columns


def read_samples(source: DataSource) -> Iterator[Sample]:
  """Yields the samples of a source in order, in constant memory.

  Raises:
    DataError: the source cannot be read or its columns cannot be told.
  """
  resolved = records_lib.resolve(source)
  _, samples = _open_samples(source, resolved)
  yield from samples


def prepare(
  source: DataSource,
  out_dir,
  rows_per_part: int = 65536,
) -> dict:
  """Writes the samples of a source to `out_dir` as Parquet parts.

  Streams in constant memory; says which columns were chosen, how many rows
  there are and why some of them cannot be scored. The folder appears (or is
  replaced) in one step when all of it is written, so a killed run leaves
  nothing half done and can simply be started again. Samples that are there
  already, undamaged, of the same options and of files or a commit that have not
  changed since, are kept.

  Args:
    source: what to read.
    out_dir: folder of the result, for `SampleStore.open`.
    rows_per_part: rows per Parquet file. Does not change `content_hash`.

  Returns:
    `rows`, `content_hash` (SHA-256 over every row's content), `columns` (role
    -> column used), `statuses` (status -> rows), `reasons` (list of `reason`,
    `rows` and `first` row, most frequent first), `has_id`, and `source` (path,
    format, files or commit, options).

  Raises:
    DataError: the source cannot be read or its columns cannot be told.
  """
  resolved = records_lib.resolve(source)
  request = request_of(source)
  kept = current(source, out_dir)
  if kept:
    return kept
  columns, samples = _open_samples(source, resolved)
  shown = ', '.join(f'{r} = {c!r}' for r, c in columns.items())
  console.say(f'{source.path} ({resolved["format"]}): {shown or "no rows"}')
  info = {
    'source': {
      'path': source.path,
      **resolved,
      'turns': source.turns,
      'strip': source.strip,
      'limit': request['limit'],
    },
    'columns': columns,
    'request': request,
  }
  info = write_parts(samples, out_dir, rows_per_part, info)
  counts = ', '.join(f'{n} {s}' for s, n in sorted(info['statuses'].items()))
  console.say(f'{info["rows"]} rows ({counts or "none"})')
  for line in unscorable.describe(info):
    console.say(line)
  return info


def current(source: DataSource, out_dir) -> dict | None:
  """What `prepare` returned, if it would write the same samples again."""
  resolved = records_lib.resolve(source)
  kept = _kept(out_dir, request_of(source), resolved)
  if kept:
    console.say(f'{source.path}: unchanged, {kept["rows"]:,} rows are prepared')
    for line in unscorable.describe(kept):
      console.say(line)
  return kept


def _kept(out_dir, request, resolved) -> dict | None:
  """The manifest in `out_dir`, if it is of this request and unchanged input."""
  if not (resolved.get('files') or resolved.get('commit')):
    return None  # nothing tells whether the input is still the same
  try:
    store = SampleStore.open(out_dir)
  except DataError:
    return None
  info = store.info
  if fingerprint.differences(info['request'], request, REQUEST_DEFAULTS):
    return None
  before = info['source']
  if before.get('offline') and not resolved.get('offline'):
    return None  # read from a cache, which may have held a part only
  if any(before.get(k) != v for k, v in resolved.items() if k != 'offline'):
    return None
  try:
    store.check()
  except DataError as e:
    console.say(f'{e}. Now written anew')
    return None
  return info


def _open_samples(source, resolved):
  """(columns, iterator of samples) of a resolved source."""
  records = itertools.islice(
    records_lib.read_records(source, resolved), source.limit or None
  )
  head = list(itertools.islice(records, _PROBE))
  columns = {}
  if head:
    columns = mapping.recognise(head, source.columns, source.path)
  whole = itertools.chain(head, records)
  return columns, (
    mapping.to_sample(row, record, columns, source)
    for row, record in enumerate(whole)
  )
