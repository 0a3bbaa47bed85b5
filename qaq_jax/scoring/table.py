"""Opening score tables, checked: a damaged one must not choose samples."""

import glob
import os

import pyarrow as pa
import pyarrow.parquet as pq

from qaq_jax.workdir import checksums, files

# Columns of a model that are made when its parts are joined, of theirs.
DERIVED = ('rmi', 'ifd', 'r_ifd', 'stratum', 'rank')
BACK = 'delete it and run the score stage, which joins it again without a model'


def open_table(path) -> pq.ParquetFile:
  """Opens a score table for reading single columns.

  The file is compared with the checksum beside it; without one, pages are with
  their own when they are read.

  Raises:
    StoreError: it is damaged, or cannot be read.
  """
  return _open(path, pages=not checksums.check(path, BACK))


def _open(path, pages):
  try:
    return pq.ParquetFile(
      path, memory_map=True, page_checksum_verification=pages
    )
  except FileNotFoundError:
    raise
  except (pa.ArrowException, OSError, UnicodeError) as e:
    raise _refusal(path, e) from e


def read_column(file: pq.ParquetFile, path, name: str) -> pa.ChunkedArray:
  """Reads a column of an open table.

  Raises:
    StoreError: a page of it is damaged.
  """
  try:
    return file.read(columns=[name]).column(0)
  except (pa.ArrowException, OSError, UnicodeError) as e:
    raise _refusal(path, e) from e


def check(pattern) -> None:
  """Checks the tables that another program is to read, which does not check.

  Args:
    pattern: a path, or a glob of paths.

  Raises:
    StoreError: one is damaged, or cannot be read.
  """
  for path in sorted(glob.glob(os.fspath(pattern))):
    if checksums.check(path, BACK):
      continue
    with _open(path, pages=True) as file:
      for group in range(file.num_row_groups):
        try:
          file.read_row_group(group)
        except (pa.ArrowException, OSError, UnicodeError) as e:
          raise _refusal(path, e) from e


def _refusal(path, error):
  files.check_readable(path, error)
  return files.damaged(path, error, BACK)
