"""The score table of one model on disk: append, resume, exactly once.

A folder holds

  fingerprint.json    everything that can change a number
  plan.json           the batch plan and the division into windows
  part-000000.parquet rows 0 to rows_per_part - 1, and so on
  part-000000.npy     their embeddings (float16 [rows, D]), where asked for

A window of rows is written in one go, when all of it is scored, by a rename:
after a kill at any moment each window is on disk as a whole or not at all, and
a new run scores what is missing. Parts carry the fingerprint's hash and page
checksums, so a part from elsewhere or with a flipped bit is found.
"""

import collections
import hashlib
import io
import json
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from etils import epath

from qaq_jax.scoring import kinds as kinds_lib
from qaq_jax.scoring import parts as parts_lib
from qaq_jax.workdir import files
from qaq_jax.workdir import fingerprint as fingerprint_lib
from qaq_jax.workdir.files import StoreError

STATUSES = ('ok', 'truncated', 'too_long', 'empty', 'invalid', 'non_finite')


def begun_terms(directory) -> list[str] | None:
  """Names of the kinds that a folder of scores was begun with, if it was."""
  found = parts_lib.read_fingerprint(directory)
  return found.get('scored_terms') if found else None


def begun_wording(directory) -> str | None:
  """Reverse instruction that a folder of scores was begun with, if it was."""
  found = parts_lib.read_fingerprint(directory) or {}
  options = found.get('encoder', {}).get('options', {})
  return options.get('reverse_instruction')


class ScoreStore:
  """Writer of one model's score table. Use as a context manager.

  Attributes:
    directory: the folder.
    rows_per_part: rows of a window, from the folder when it has some.
    num_windows: how many windows the input has.
    plan: what `save_plan` saved last, or {}.
    notes: what was found and mended on opening.
  """

  def __init__(
    self,
    directory,
    *,
    model: str,
    fingerprint: Mapping,
    num_rows: int,
    kinds: Sequence[kinds_lib.ScoreKind] = kinds_lib.LIKELIHOODS,
    exclusive: bool = True,
    mirror=None,
  ):
    """Opens or creates the folder.

    Args:
      directory: the folder, `WORKDIR/scores/<model>`.
      model: name in the columns.
      fingerprint: everything that can change a number, as
        `fingerprint.written` gives it.
      num_rows: rows of the input.
      kinds: what is stored; with a vector among them, each part comes with
        embeddings.
      exclusive: take the folder's lock (one process of a group does).
      mirror: the `Mirror` whose local copy the folder is in; each file is
        stored as soon as it is written.

    Raises:
      StoreError: another process writes there, the folder was made with
        another fingerprint (the difference is named), or it is damaged.
    """
    self.directory = epath.Path(directory)
    self.model = model
    self.num_rows = int(num_rows)
    self.kinds = tuple(kinds)
    self.embeddings = any(kind.sequence for kind in kinds)
    self.schema = kinds_lib.score_schema(model, kinds)
    self.notes: list[str] = []
    self._mirror = mirror
    self.directory.mkdir(parents=True, exist_ok=True)
    self._lock = files.Lock(self.directory) if exclusive else None
    try:
      self._open(fingerprint_lib.written(fingerprint), exclusive)
    except BaseException:
      self.close()
      raise

  def _open(self, fingerprint, exclusive):
    if exclusive:
      left = files.remove_temporaries(self.directory)
      if left:
        self.notes.append(f'removed unfinished files: {", ".join(left)}')
    path = self.directory / parts_lib.FINGERPRINT
    old = parts_lib.read_fingerprint(self.directory)
    if old is None:
      if self._parts() and not self._is_of(fingerprint):
        raise StoreError(
          f'{self.directory} holds parts but no fingerprint.json, so nobody '
          'knows what they are: move the folder away or delete it'
        )
      if exclusive:
        files.write_json(path, fingerprint)
        self._store(path)
    else:
      fingerprint_lib.check(
        old,
        fingerprint,
        what=f'{self.directory} holds scores that were made otherwise',
        back='Use another --workdir, set these back, or delete '
        f'{self.directory} to score again.',
      )
    # Of a folder's own, also where keys of now are not in it: its parts say so.
    self._hash = fingerprint_lib.digest(old or fingerprint)
    self._open_plan()

  def _open_plan(self):
    self.plan = parts_lib.read_plan(self.directory)
    sealed = self.plan.pop(files.SEAL, None)
    self.rows_per_part = self.plan.get('rows_per_part')
    if sealed:
      return
    told = parts_lib.rows_per_part(self.directory, self._hash)
    if told is None:
      return
    if self.rows_per_part is None:
      self.rows_per_part = told
      self.notes.append(f'no plan.json: its parts tell of {told} rows each')
    # Of two that are beyond the input, each makes one window.
    elif told != self.rows_per_part and told < self.num_rows:
      raise files.damaged(
        self.directory / 'plan.json',
        f'rows_per_part: {self.rows_per_part}, but its parts have {told}',
        parts_lib.PLAN_BACK,
      )

  def _is_of(self, fingerprint) -> bool:
    """Whether a folder without fingerprint.json has parts of this one."""
    try:
      planned = parts_lib.read_plan(self.directory)
    except StoreError:
      return False
    digest = fingerprint_lib.digest(fingerprint)
    return bool(planned) and parts_lib.made_by(self.directory, digest)

  def __enter__(self):
    return self

  def __exit__(self, *unused):
    self.close()

  def close(self) -> None:
    """Gives the folder's lock back."""
    if self._lock is not None:
      self._lock.release()

  def save_plan(self, plan: Mapping) -> None:
    """Saves the plan; its `rows_per_part` fixes the windows for good."""
    copy = json.loads(json.dumps(plan))
    if self.rows_per_part not in (None, copy['rows_per_part']):
      raise ValueError('the division into windows is fixed once it is saved')
    self.plan = copy
    self.rows_per_part = copy['rows_per_part']
    if self._lock is not None:
      files.write_json(self.directory / 'plan.json', files.seal(copy))
      self._store(self.directory / 'plan.json')

  def _store(self, path):
    if self._mirror is not None:
      self._mirror.push_file(path)

  def refresh(self) -> None:
    """Fetches the parts that other processes wrote."""
    if self._mirror is not None:
      self._mirror.pull(self._mirror.name(self.directory))

  @property
  def num_windows(self) -> int:
    """Windows of the whole input."""
    assert self.rows_per_part is not None, 'windows are those of a plan'
    return -(-self.num_rows // self.rows_per_part)

  def window(self, index: int) -> range:
    """Rows of a window."""
    assert self.rows_per_part is not None, 'windows are those of a plan'
    start = index * self.rows_per_part
    return range(start, min(start + self.rows_per_part, self.num_rows))

  def _path(self, index, suffix='parquet'):
    return self.directory / f'part-{index:06d}.{suffix}'

  def _parts(self):
    return parts_lib.list_parts(self.directory)

  def done(self) -> set[int]:
    """Windows on disk, each read and checked.

    Raises:
      StoreError: a part is damaged or not of this input; it is named.
    """
    parts = self._parts()
    if parts and self.rows_per_part is None:
      raise StoreError(
        f'{self.directory} holds parts but no plan.json, and none of them '
        'can be used; delete the folder to score again'
      )
    for index in parts:
      self.read(index)
    return set(parts)

  def count_statuses(self) -> dict[str, int]:
    """Rows on disk by status."""
    counts: collections.Counter[str] = collections.Counter()
    for index in self._parts():
      table = parts_lib.read_part(self._path(index), self.schema)
      for entry in table[f'status_{self.model}'].value_counts().to_pylist():
        counts[entry['values']] += entry['counts']
    return dict(sorted(counts.items()))

  def read(self, index: int) -> pa.Table:
    """Returns the part of a window, checked."""
    if index >= self.num_windows:
      raise StoreError(
        f'{self._path(index)} is beyond the input, which has {self.num_rows} '
        f'rows; delete it'
      )
    path = self._path(index)
    table = parts_lib.read_part(path, self.schema)
    if table.schema.metadata.get(parts_lib.HASH_KEY) != self._hash.encode():
      raise StoreError(
        f'{path} was made with another fingerprint than its folder; delete '
        'it and its rows are scored again'
      )
    rows = self.window(index)
    if not np.array_equal(
      table['row'].to_numpy(), np.arange(rows.start, rows.stop)
    ):
      raise parts_lib.damaged(
        path, f'its rows are not {rows.start} to {rows.stop - 1}'
      )
    if self.embeddings:
      parts_lib.read_embeddings(path, table)
    return table

  def write(
    self,
    index: int,
    columns: Mapping[str, np.ma.MaskedArray],
    status: Sequence[str],
    reason: Sequence[str],
    embeddings: np.ndarray | None = None,
  ) -> None:
    """Writes the part of a window, whole or not at all.

    Args:
      index: the window.
      columns: name -> masked array with one entry per row; masked is null.
      status: one of STATUSES per row.
      reason: '' for ok.
      embeddings: float16 [rows, D], NaN rows where there is none.
    """
    rows = self.window(index)
    unknown = set(status) - set(STATUSES)
    if unknown:
      raise ValueError(f'unknown status {unknown}')
    arrays = [pa.array(np.arange(rows.start, rows.stop))]
    for field in list(self.schema)[1:-2]:
      values = columns[field.name]
      arrays.append(
        pa.array(
          values.filled(0).astype(field.type.to_pandas_dtype()),
          mask=np.ma.getmaskarray(values),
        )
      )
    arrays += [pa.array(status, pa.string()), pa.array(reason, pa.string())]
    metadata: dict[bytes, str | bytes] = {parts_lib.HASH_KEY: self._hash}
    # The Parquet part makes the window count as done, so it comes last.
    if self.embeddings:
      buffer = io.BytesIO()
      np.save(buffer, np.asarray(embeddings, np.float16))
      data = buffer.getvalue()
      metadata[parts_lib.EMBEDDINGS_KEY] = hashlib.sha256(data).hexdigest()
      files.write_atomic(self._path(index, 'npy'), data)
      self._store(self._path(index, 'npy'))
    table = pa.Table.from_arrays(arrays, schema=self.schema)
    metadata[parts_lib.CONTENT_KEY] = parts_lib.content(table)
    table = table.replace_schema_metadata(metadata)
    if len(table) != len(rows):
      raise ValueError(f'{len(table)} rows for a window of {len(rows)}')
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression='zstd', write_page_checksum=True)
    files.write_atomic(self._path(index), sink.getvalue())
    self._store(self._path(index))
