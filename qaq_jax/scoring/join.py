"""One score table of all models: a row per input row, in input order."""

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from etils import epath

from qaq_jax.scoring import parts
from qaq_jax.scoring import table as table_lib
from qaq_jax.workdir import checksums, files

_GROUP_ROWS = 1 << 16  # rows of a row group, and all that is held in memory


def join_scores(
  path,
  models: Mapping[str, os.PathLike | str],
  *,
  num_rows: int,
  ids: Callable[[], Iterable[str | int | None]] | None = None,
  derive: Callable[[str], Mapping[str, pa.Array]] | None = None,
  metadata: Mapping[str, str] | None = None,
) -> None:
  """Writes `scores.parquet` from the finished parts of each model.

  Columns: `row`, `id` where given (int64 if all are integers, else string),
  the stored columns of each model, then what `derive` returns. The parts are
  streamed; only derived columns are held in memory. Atomic and deterministic.

  Args:
    path: the table to write.
    models: name -> folder of its parts.
    num_rows: rows of the input.
    ids: returns an iterator over the input's own ids, in row order; it is
      called twice.
    derive: path of the table without derived columns -> name -> array of
      `num_rows` values, `qaq_jax.selection.derived.derive` say.
    metadata: the metadata of the table's schema: what it was made from.

  Raises:
    StoreError: a model's parts are damaged or don't cover the input.
  """
  path = epath.Path(path)
  id_type = None if ids is None else _id_type(ids)

  def raw():
    at = 0
    cursors = [_Cursor(name, folder) for name, folder in models.items()]
    id_iterator = None
    if ids is not None and id_type is not None:
      id_iterator = iter(ids())
    while at < num_rows:
      size = min(_GROUP_ROWS, num_rows - at)
      columns = {'row': pa.array(np.arange(at, at + size))}
      if id_iterator is not None:
        values = [next(id_iterator) for _ in range(size)]
        if id_type == pa.string():
          values = [None if v is None else str(v) for v in values]
        columns['id'] = pa.array(values, id_type)
      for cursor in cursors:
        columns |= cursor.take(size)
      yield columns
      at += size
    for cursor in cursors:
      cursor.finish(num_rows)

  if derive is None:
    _write(path, raw(), metadata)
    return
  # `derive` reads columns off a file, so that it holds only those it needs.
  plain = path.parent / f'.{path.name}.plain{files.TEMPORARY}{os.getpid()}'
  try:
    _write(plain, raw(), opened=files.atomic_file)
    derived = derive(os.fspath(plain))
    _write(path, _with_derived(plain, derived), metadata)
  finally:
    plain.unlink(missing_ok=True)


def _with_derived(path, derived) -> Iterator[dict]:
  with epath.Path(path).open('rb') as file:
    table = pq.ParquetFile(file)
    at = 0
    for group in range(table.num_row_groups):
      columns = table.read_row_group(group)
      size = len(columns)
      result = dict(zip(columns.column_names, columns.columns, strict=True))
      result |= {n: v.slice(at, size) for n, v in derived.items()}
      yield result
      at += size


def _write(path, groups, metadata=None, opened=checksums.atomic_file) -> None:
  with opened(path) as file, contextlib.ExitStack() as stack:
    writer = None
    for columns in groups:
      table = pa.table(dict(columns), metadata=metadata)
      if writer is None:
        writer = stack.enter_context(_writer(file, table.schema))
      writer.write_table(table, row_group_size=_GROUP_ROWS)
    if writer is None:
      schema = pa.schema([pa.field('row', pa.int64())])
      stack.enter_context(_writer(file, schema))


def _writer(file, schema):
  return pq.ParquetWriter(
    file, schema, compression='zstd', write_page_checksum=True
  )


def _id_type(ids):
  """int64 if every id is an integer, string if not, None if there is none."""
  found = None
  for value in ids():
    if value is None:
      continue
    if isinstance(value, str) or not -(2**63) <= value < 2**63:
      return pa.string()
    found = pa.int64()
  return found


def check_joined(path, folders: Iterable, *, num_rows: int) -> None:
  """Compares a table that has no checksum beside it with the parts.

  Its pages have checksums of their own; what says where they are and which
  column is in them has none. A model whose parts are damaged or unfinished, or
  that is not in the table, is not compared.

  Args:
    path: the table.
    folders: the models' folders of parts.
    num_rows: rows of the input.

  Raises:
    StoreError: the table holds something else, or cannot be read.
  """
  with table_lib.open_table(path) as file:
    for folder in folders:
      with contextlib.suppress(_Uncompared):
        _compare(file, path, folder, num_rows)


class _Uncompared(Exception):
  """There is nothing to compare a table with."""


def _compare(file, path, folder, num_rows):
  back = (
    f'{table_lib.BACK}; or, if you changed it yourself, move '
    f'{epath.Path(folder).parent} away'
  )
  cursor, at = _Cursor(epath.Path(folder).name, folder), 0
  names = list(_taken(cursor, 0))
  if not set(names) & set(file.schema_arrow.names):
    return
  groups = range(file.num_row_groups)
  sizes = [file.metadata.row_group(group).num_rows for group in groups]
  if sum(sizes) != num_rows or min(sizes, default=0) < 0:
    raise files.damaged(path, f'{sum(sizes)} of {num_rows} rows', back)
  for group, size in enumerate(sizes):
    wanted = pa.table(
      {'row': np.arange(at, at + size), **_taken(cursor, size)},
    )
    try:
      found = file.read_row_group(group, wanted.column_names)
      same = parts.content(found) == parts.content(wanted)
    except (pa.ArrowException, OSError, ValueError, TypeError) as e:
      files.check_readable(path, e)
      raise files.damaged(path, e, back) from e
    if not same:
      raise files.damaged(path, f'other than the parts in {folder}', back)
    at += size


def _taken(cursor, size):
  try:
    return cursor.take(size)
  except files.StoreError as e:
    raise _Uncompared from e


class _Cursor:
  """Reads a model's parts in slices of any size."""

  def __init__(self, name, folder):
    self._name = name
    self._folder = folder
    self._parts = parts.read_parts(folder)
    self._table = None
    self._read = 0

  def take(self, size) -> dict:
    while self._table is None or len(self._table) < size:
      part = next(self._parts, None)
      if part is None:
        raise files.StoreError(
          f'{self._folder} ends at row {self._read}: scoring with model '
          f'{self._name!r} is not finished; run the score stage'
        )
      self._read += len(part)
      part = part.drop_columns(['row']).replace_schema_metadata()
      self._table = (
        part if self._table is None else pa.concat_tables([self._table, part])
      )
    taken, self._table = self._table.slice(0, size), self._table.slice(size)
    return dict(zip(taken.column_names, taken.columns, strict=True))

  def finish(self, num_rows):
    left = 0 if self._table is None else len(self._table)
    if left or next(self._parts, None) is not None:
      raise files.StoreError(
        f'{self._folder} has more than the {num_rows} rows of the input; it '
        'belongs to another input: use another --workdir'
      )


def join_embeddings(path, folder, *, num_rows: int) -> None:
  """Writes one model's embeddings as one .npy, float16 [rows, D].

  NaN rows are rows without an embedding. Can be opened memory-mapped.

  Args:
    path: the .npy to write.
    folder: the model's parts.
    num_rows: rows of the input.
  """
  folder = epath.Path(folder)
  with checksums.atomic_file(path) as file:
    written = 0
    for index, part in enumerate(parts.read_parts(folder)):
      values = parts.read_embeddings(folder / f'part-{index:06d}.parquet', part)
      if not written:
        np.lib.format.write_array_header_1_0(
          file,
          {
            'descr': np.lib.format.dtype_to_descr(values.dtype),
            'fortran_order': False,
            'shape': (num_rows, values.shape[1]),
          },
        )
      file.write(np.ascontiguousarray(values).tobytes())
      written += len(values)
    if written != num_rows:
      raise files.StoreError(
        f'{folder} has embeddings of {written} rows, the input has '
        f'{num_rows}; run the score stage'
      )
