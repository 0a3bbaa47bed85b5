"""Reading the parts of a score table, with every check they allow."""

import hashlib
import io
import re
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from etils import epath

from qaq_jax.workdir.files import StoreError

# In the metadata of a part.
HASH_KEY = b'qaq.fingerprint'  # SHA-256 of its run's fingerprint
EMBEDDINGS_KEY = b'qaq.embeddings'  # SHA-256 of the .npy beside it
_PART = re.compile(r'part-(\d{6,})\.parquet')


def list_parts(directory) -> list[int]:
  """Windows that have a part in `directory`, increasing."""
  matches = (_PART.fullmatch(p.name) for p in epath.Path(directory).iterdir())
  return sorted(int(m.group(1)) for m in matches if m)


def damaged(path, why) -> StoreError:
  """The error for a part that can't be used."""
  return StoreError(
    f'{path} is damaged ({why}); delete it and run again: its rows are '
    'scored again'
  )


def read_part(path, schema: pa.Schema | None = None) -> pa.Table:
  """Reads a part, checking checksums and, where given, its columns.

  Raises:
    StoreError: it is damaged.
  """
  try:
    with epath.Path(path).open('rb') as file:
      table = pq.read_table(file, page_checksum_verification=True)
  except (pa.ArrowException, OSError, ValueError) as e:
    raise damaged(path, str(e).splitlines()[0] if str(e) else repr(e)) from e
  if schema is not None and not table.schema.equals(schema):
    raise damaged(path, f'columns {table.column_names}')
  if table.schema.metadata is None or HASH_KEY not in table.schema.metadata:
    raise damaged(path, 'it has no fingerprint')
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
  except OSError as e:
    raise damaged(part_path, f'{path.name}: {e}') from e
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
