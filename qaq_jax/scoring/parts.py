"""Reading the parts of a score table, with every check they allow."""

import contextlib
import hashlib
import io
import json
import re
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from etils import epath

from qaq_jax.workdir import files, fingerprint

# In the metadata of a part.
HASH_KEY = b'qaq.fingerprint'  # SHA-256 of its run's fingerprint
EMBEDDINGS_KEY = b'qaq.embeddings'  # SHA-256 of the .npy beside it
CONTENT_KEY = b'qaq.content'  # SHA-256 of its rows; see `content`
FINGERPRINT = 'fingerprint.json'
PLAN_BACK = (
  'delete this file and run the score stage: the parts beside it tell what is '
  'needed of it'
)
_PART = re.compile(r'part-(\d{6,})\.parquet')


def list_parts(directory) -> list[int]:
  """Windows that have a part in `directory`, increasing."""
  matches = (_PART.fullmatch(p.name) for p in epath.Path(directory).iterdir())
  return sorted(int(m.group(1)) for m in matches if m)


def damaged(path, why) -> files.StoreError:
  """The error for a part that can't be used."""
  return files.damaged(
    path, why, 'delete it and run again: its rows are scored again'
  )


def content(table: pa.Table) -> bytes:
  """SHA-256 of a part's rows, whatever its file makes of them."""
  total = hashlib.sha256()
  for name, column in zip(table.column_names, table.columns, strict=True):
    total.update(f'{name} {column.type} {len(column)}\n'.encode())
    valid = column.is_valid().combine_chunks()
    total.update(np.packbits(valid.to_numpy(zero_copy_only=False)).data)
    if pa.types.is_string(column.type):
      column = column.combine_chunks().dictionary_encode()
      total.update(json.dumps(column.dictionary.to_pylist()).encode())
      column = column.indices
    total.update(np.ascontiguousarray(column.fill_null(0).to_numpy()).data)
  return total.hexdigest().encode()


def _holds(table, noted):
  try:
    return content(table) == noted
  except (pa.ArrowException, TypeError, ValueError):  # of no type of ours
    return False


def made_by(directory, digest: str) -> bool:
  """Whether a part in `directory` carries the hash of a fingerprint."""
  for index in list_parts(directory):
    path = epath.Path(directory) / f'part-{index:06d}.parquet'
    with (
      contextlib.suppress(pa.ArrowException, OSError, ValueError),
      path.open('rb') as file,
    ):
      metadata = pq.read_schema(file).metadata or {}
      if metadata.get(HASH_KEY) == digest.encode():
        return True
  return False


def read_fingerprint(directory) -> dict | None:
  """The fingerprint of a model's folder; None where there is none yet.

  Raises:
    StoreError: it is damaged, as its parts tell, which carry its hash.
  """
  directory = epath.Path(directory)
  path = directory / FINGERPRINT
  back = (
    'delete this file and run the score stage: with the settings that the '
    'parts beside it were made with it is written again'
  )
  found = files.read_json(path, back)
  if (
    found is not None
    and list_parts(directory)
    and not made_by(directory, fingerprint.digest(found))
  ):
    raise files.damaged(path, 'its parts were made with another one', back)
  return found


def read_plan(directory) -> dict:
  """The plan of a model's folder, with its seal; {} where there is none yet.

  Raises:
    StoreError: it is damaged.
  """
  path = epath.Path(directory) / 'plan.json'
  return files.read_json(path, PLAN_BACK) or {}


def rows_per_part(directory, digest: str) -> int | None:
  """Rows of a window, as the first good part of a fingerprint tells.

  Args:
    directory: a model's folder.
    digest: the hash of the fingerprint.

  Returns:
    None without such a part. Where one part holds all rows, their number: the
    windows are the same.
  """
  for index in list_parts(directory):
    with contextlib.suppress(files.StoreError):
      part = read_part(epath.Path(directory) / f'part-{index:06d}.parquet')
      if len(part) and part.schema.metadata[HASH_KEY] == digest.encode():
        return part['row'][0].as_py() // index if index else len(part)
  return None


def read_part(path, schema: pa.Schema | None = None) -> pa.Table:
  """Reads a part, checking checksums and, where given, its columns.

  Raises:
    StoreError: it is damaged, or whole but with other columns.
  """
  try:
    with epath.Path(path).open('rb') as file:
      table = pq.read_table(file, page_checksum_verification=True)
    _ = table.column_names  # not UTF-8 in some damaged files
  except (pa.ArrowException, OSError, ValueError) as e:
    files.check_readable(path, e)
    raise damaged(path, e) from e
  if table.schema.metadata is None or HASH_KEY not in table.schema.metadata:
    raise damaged(path, 'it has no fingerprint')
  # Pages have checksums; what says where they are and what is in them has none.
  noted = table.schema.metadata.get(CONTENT_KEY)
  if noted is not None and not _holds(table, noted):
    raise damaged(path, 'other rows than were written')
  if schema is not None and not table.schema.equals(schema):
    unlike = set(table.schema) ^ set(schema)
    columns = sorted({f.name for f in unlike}) or table.column_names
    if noted is None:
      raise damaged(path, f'columns {columns}')
    raise files.StoreError(
      f'{path} is whole, but columns {columns} were defined otherwise when it '
      'was written: use another --workdir, set their score kinds back, or '
      f'delete {epath.Path(path).parent} to score again'
    )
  return table


def read_embeddings(part_path, part: pa.Table) -> np.ndarray:
  """Reads the embeddings beside a part, float16 [rows, D], checked.

  Raises:
    StoreError: the file is missing or damaged.
  """
  part_path = epath.Path(part_path)
  path = part_path.with_suffix('.npy')
  try:
    data = path.read_bytes()
  except FileNotFoundError as e:
    raise damaged(part_path, f'{path.name} is missing') from e
  except OSError as e:
    files.check_readable(path, e)
    raise
  digest = hashlib.sha256(data).hexdigest().encode()
  if part.schema.metadata.get(EMBEDDINGS_KEY) != digest:
    raise damaged(part_path, f'{path.name} is not the one written with it')
  return np.load(io.BytesIO(data))


def read_parts(directory) -> Iterator[pa.Table]:
  """Yields the parts of a finished folder in row order.

  Raises:
    StoreError: rows are missing or twice, or a part is damaged.
  """
  directory = epath.Path(directory)
  expected = 0
  hashes = set()
  for index in list_parts(directory) if directory.exists() else ():
    path = directory / f'part-{index:06d}.parquet'
    table = read_part(path)
    hashes.add(table.schema.metadata[HASH_KEY])
    rows = table['row'].to_numpy()
    if len(hashes) > 1 or not np.array_equal(
      rows, np.arange(expected, expected + len(rows))
    ):
      raise damaged(
        path, f'row {expected} was expected first, or it is of another run'
      )
    expected += len(rows)
    yield table
