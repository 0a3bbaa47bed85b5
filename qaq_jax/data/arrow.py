"""Parquet files and Arrow tables <-> records that JSON can hold.

Types that JSON lacks become: dates and times ISO 8601 text, durations seconds,
decimals text, bytes base64 text, NaN and infinities null.
"""

from __future__ import annotations

import base64
import datetime
import decimal
import json
import math
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from qaq_jax.data.types import DataError, Record

_BATCH = 256  # rows decoded at a time


def read_parquet(path: str) -> Iterator[Record]:
  """Records of one Parquet file, a batch of rows in memory at a time."""
  with _open(path) as file:
    for batch in file.iter_batches(batch_size=_BATCH):
      yield from table_records(batch)


def check_same_columns(paths: list[str]) -> None:
  """Raises a `DataError` naming the first file with other column names."""
  first = None
  for path in paths:
    with _open(path) as file:
      names = file.schema_arrow.names
    if first is None:
      first = names
    elif names != first:
      raise DataError(
        f'{path}: its columns {names} differ from those of {paths[0]}: {first}'
      )


def table_records(table: pa.Table | pa.RecordBatch) -> Iterator[Record]:
  """Rows of an Arrow table as records."""
  for value in table.to_pylist():
    value = to_json(value)
    yield Record(dump_line(value), value)


def dump_line(value) -> str:
  """One line of JSON: non-ASCII text as it is, lone surrogates escaped."""
  line = json.dumps(value, ensure_ascii=False)
  if not line.isascii() and any('\ud800' <= c <= '\udfff' for c in line):
    line = json.dumps(value)
  return line


def to_json(value):
  """`value` with types that JSON lacks replaced (module docstring)."""
  if value is None or isinstance(value, (str, bool, int)):
    return value
  if isinstance(value, float):
    return value if math.isfinite(value) else None
  if isinstance(value, dict):
    return {str(k): to_json(v) for k, v in value.items()}
  if isinstance(value, (list, tuple)):
    return [to_json(v) for v in value]
  if isinstance(value, (datetime.date, datetime.time)):
    return value.isoformat()
  if isinstance(value, datetime.timedelta):
    return value.total_seconds()
  if isinstance(value, decimal.Decimal):
    return str(value)
  if isinstance(value, (bytes, bytearray, memoryview)):
    return base64.b64encode(bytes(value)).decode('ascii')
  return str(value)


def _open(path: str) -> pq.ParquetFile:
  try:
    return pq.ParquetFile(path)
  except (pa.ArrowInvalid, OSError) as e:
    raise DataError(f'{path}: not a readable Parquet file ({e})') from e
