"""Writes chosen samples as they came in, in one step."""

from __future__ import annotations

import gzip
import os
import pathlib
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from qaq_jax.data.sample_store import SampleStore
from qaq_jax.data.types import DataError
from qaq_jax.workdir import files

_ENDINGS = ('.jsonl', '.jsonl.gz', '.json', '.parquet')


def write_selected(store: SampleStore, rows, path) -> None:
  """Writes the raw records of `rows`, in row order, in one step.

  Args:
    store: the prepared samples.
    rows: increasing row numbers.
    path: ends in .jsonl or .jsonl.gz (one raw record per line; for JSONL input
      the line's own bytes), .json (an array), or, for Parquet input, .parquet
      (the input's rows in the input's own schema).

  Raises:
    ValueError: rows are not increasing or not in the store.
    DataError: another ending, .parquet for other input, or the input changed
      since.
  """
  rows = np.asarray(rows, np.int64)
  if rows.size and (
    rows[0] < 0 or rows[-1] >= store.num_rows or (np.diff(rows) <= 0).any()
  ):
    raise ValueError(
      f'rows must be increasing and within 0..{store.num_rows - 1}'
    )
  path = pathlib.Path(path)
  if not path.name.endswith(_ENDINGS):
    raise DataError(
      f'{path}: config.select.output must end in one of '
      f'{", ".join(_ENDINGS)}, which says the format to write'
    )
  if path.suffix == '.parquet':
    form = store.info['source'].get('format')
    if form != 'parquet':
      raise DataError(
        f'{path}: Parquet output needs Parquet input; the input was {form}. '
        'Let config.select.output end in .jsonl'
      )
    with files.atomic_file(path) as file:
      _write_parquet(store, rows, file)
    return
  as_array = path.suffix == '.json'
  with files.atomic_file(path) as plain:
    # No name and no time in the gzip header: same rows, same bytes.
    out = (
      gzip.GzipFile('', 'wb', fileobj=plain, mtime=0)
      if path.suffix == '.gz'
      else plain
    )
    out.write(b'[\n' if as_array else b'')
    for i, line in enumerate(_raw_lines(store, rows)):
      if as_array:
        out.write((b',\n' if i else b'') + line.rstrip(b'\r'))
      else:
        out.write(line + b'\n')
    out.write(b'\n]\n' if as_array else b'')
    if out is not plain:
      out.close()


def _raw_lines(store, rows, window=4096) -> Iterator[bytes]:
  for start in range(0, store.num_rows, window):
    stop = min(start + window, store.num_rows)
    low, high = np.searchsorted(rows, (start, stop))
    wanted = set(rows[low:high].tolist())
    if wanted:
      for row, line in enumerate(store.iter_raw(start, stop), start):
        if row in wanted:
          yield line


def _write_parquet(store, rows, out):
  """Takes `rows` out of the Parquet input itself, so that types stay."""
  writer, at = None, 0
  try:
    for file in store.info['source']['files']:
      stat = os.stat(file['path'])
      if (stat.st_size, stat.st_mtime_ns) != (file['size'], file['mtime_ns']):
        raise DataError(
          f'{file["path"]} changed since it was prepared; run the prepare '
          'and score stages again, or write .jsonl'
        )
      with pq.ParquetFile(file['path']) as data:
        writer = writer or pq.ParquetWriter(out, data.schema_arrow)
        for batch in data.iter_batches(batch_size=4096):
          low, high = np.searchsorted(rows, (at, at + len(batch)))
          if high > low:
            chosen = batch.take(pa.array(rows[low:high] - at))
            writer.write_batch(chosen.cast(writer.schema))
          at += len(batch)
  finally:
    if writer:
      writer.close()
