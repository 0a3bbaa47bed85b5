"""The score store: whole parts, refusals that name what is wrong, the join."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from qaq_jax.scoring import join, kinds, metrics, parts, store
from qaq_jax.selection import derived
from qaq_jax.workdir import files

FINGERPRINT = {
  'model': {'path': 'a', 'dtype': 'float32'},
  'encoder': {'options': {'max_length': 2048}},
}


EMBEDDED = (*kinds.LIKELIHOODS, kinds.EMBEDDING)


def open_store(
  path, *, rows=10, per_part=4, fingerprint=FINGERPRINT, model='m', **more
):
  opened = store.ScoreStore(
    path, model=model, fingerprint=fingerprint, num_rows=rows, **more
  )
  if opened.rows_per_part is None:
    opened.save_plan({'rows_per_part': per_part, 'runs': []})
  return opened


def columns_of(rows, model='m', stored=kinds.LIKELIHOODS):
  """Columns with row 3 null, and other values everywhere."""
  out = {}
  for i, kind in enumerate(k for k in stored if k.column):
    values = np.arange(rows.start, rows.stop) * 1.25 + i
    mask = np.arange(rows.start, rows.stop) == 3
    out[f'{kind.column}_{model}'] = np.ma.array(
      values.astype(np.float32), mask=mask
    )
    out[f'{kind.count}_{model}'] = np.ma.array(
      np.full(len(rows), 5 if 'q' in kind.name[:1] else 7, np.int32), mask=mask
    )
  return out


def fill(opened, windows=None, **more):
  indices = range(opened.num_windows) if windows is None else windows
  for w in indices:
    rows = opened.window(w)
    status = ['empty' if r == 3 else 'ok' for r in rows]
    opened.write(
      w,
      columns_of(rows, opened.model, opened.kinds),
      status,
      ['' if s == 'ok' else 'empty_answer' for s in status],
      **more,
    )


def test_parts_hold_every_row_once_with_nulls_and_types(tmp_path):
  with open_store(tmp_path / 's') as opened:
    assert opened.num_windows == 3
    assert list(opened.window(2)) == [8, 9]
    fill(opened)
    assert opened.done() == {0, 1, 2}
    assert opened.count_statuses() == {'empty': 1, 'ok': 9}
  table = pa.concat_tables(parts.read_parts(tmp_path / 's'))
  assert table['row'].to_pylist() == list(range(10))
  assert table.schema.field('nll_q_m').type == pa.float32()
  assert table.schema.field('n_q_m').type == pa.int32()
  assert table.column_names == [
    'row',
    'nll_q_m',
    'nll_q_given_a_m',
    'nll_a_m',
    'nll_a_given_q_m',
    'n_q_m',
    'n_q_given_a_m',
    'n_a_m',
    'status_m',
    'reason_m',
  ]
  row = table.slice(3, 1).to_pylist()[0]
  assert row['status_m'] == 'empty' and row['nll_q_m'] is None
  assert row['n_a_m'] is None and row['reason_m'] == 'empty_answer'
  assert table['nll_q_m'].null_count == 1


def test_another_fingerprint_is_refused_and_the_difference_named(tmp_path):
  with open_store(tmp_path / 's') as opened:
    fill(opened)
  other = json.loads(json.dumps(FINGERPRINT))
  other['encoder']['options']['max_length'] = 1024
  other['extra'] = 'x'
  del other['model']['dtype']
  with pytest.raises(store.StoreError) as e:
    open_store(tmp_path / 's', fingerprint=other)
  message = str(e.value)
  assert 'encoder.options.max_length: 2048 -> 1024' in message
  assert 'extra: (absent) -> "x"' in message
  assert 'model.dtype: "float32" -> (absent)' in message
  assert 'another --workdir' in message and str(tmp_path / 's') in message
  # Nothing was touched, and the lock was given back.
  with open_store(tmp_path / 's') as opened:
    assert opened.done() == {0, 1, 2}


def test_windows_stay_as_they_were_first_divided(tmp_path):
  with open_store(tmp_path / 's', per_part=4) as opened:
    fill(opened, [1])
  with open_store(tmp_path / 's', per_part=999) as opened:
    assert opened.rows_per_part == 4
    assert opened.done() == {1}
    with pytest.raises(ValueError, match='fixed'):
      opened.save_plan({'rows_per_part': 5})


def test_left_over_temporaries_are_removed(tmp_path):
  with open_store(tmp_path / 's') as opened:
    fill(opened, [0])
  (tmp_path / 's' / '.part-000001.parquet.tmp-77').write_bytes(b'half')
  (tmp_path / 's' / 'notes.txt').write_text("a user's own file")
  with open_store(tmp_path / 's') as opened:
    assert opened.done() == {0}
    assert '.part-000001.parquet.tmp-77' in opened.notes[0]
  assert sorted(p.name for p in (tmp_path / 's').iterdir()) == [
    '.lock',
    'fingerprint.json',
    'notes.txt',
    'part-000000.parquet',
    'plan.json',
  ]


@pytest.mark.parametrize('damage', ['flip', 'cut', 'empty', 'rows', 'other'])
def test_a_damaged_part_is_named(tmp_path, damage):
  with open_store(tmp_path / 's') as opened:
    fill(opened)
  path = tmp_path / 's' / 'part-000001.parquet'
  data = bytearray(path.read_bytes())
  if damage == 'flip':  # inside a data page
    data[len(data) // 8] ^= 0x10
    path.write_bytes(data)
  elif damage == 'cut':
    path.write_bytes(data[: len(data) // 2])
  elif damage == 'empty':
    path.write_bytes(b'')
  elif damage == 'rows':
    (tmp_path / 's' / 'part-000000.parquet').replace(path)
  else:
    with open_store(tmp_path / 't', fingerprint={'x': 1}) as opened:
      fill(opened)
    (tmp_path / 't' / 'part-000001.parquet').replace(path)
  with (
    open_store(tmp_path / 's') as opened,
    pytest.raises(store.StoreError, match='part-000001.parquet.*delete it'),
  ):
    opened.done()
  path.unlink()
  with open_store(tmp_path / 's') as opened:  # as the message says
    assert 1 not in opened.done()


def test_parts_without_fingerprint_or_plan_are_refused(tmp_path):
  with open_store(tmp_path / 's') as opened:
    fill(opened)
  (tmp_path / 's' / 'plan.json').write_text('{"rows_per')
  with pytest.raises(store.StoreError, match='plan.json is damaged'):
    open_store(tmp_path / 's')
  (tmp_path / 's' / 'fingerprint.json').unlink()
  with pytest.raises(store.StoreError, match='no fingerprint.json'):
    open_store(tmp_path / 's')


def test_a_part_that_does_not_say_what_it_is_of_is_refused(tmp_path):
  with open_store(tmp_path / 's') as opened:
    fill(opened)
  path = tmp_path / 's' / 'part-000001.parquet'
  pq.write_table(pq.read_table(path).replace_schema_metadata(), path)
  with pytest.raises(
    store.StoreError, match='part-000001.parquet .*it has no fingerprint'
  ):
    list(parts.read_parts(tmp_path / 's'))


def test_parts_without_their_plan_or_with_other_columns_are_refused(tmp_path):
  with open_store(tmp_path / 's') as opened:
    fill(opened)
  with (
    open_store(tmp_path / 's', kinds=kinds.LIKELIHOODS[:2]) as opened,
    pytest.raises(store.StoreError, match='part-000000.parquet .*columns'),
  ):
    opened.done()
  (tmp_path / 's' / 'plan.json').unlink()
  for path in (tmp_path / 's').glob('part-*.parquet'):
    whole = path.read_bytes()  # pages come first
    path.write_bytes(whole[:20] + bytes(40) + whole[60:])
  with (
    store.ScoreStore(
      tmp_path / 's', model='m', fingerprint=FINGERPRINT, num_rows=10
    ) as opened,
    pytest.raises(store.StoreError, match='holds parts but no plan.json'),
  ):
    opened.done()


@pytest.mark.parametrize('lost', [(), (0,), (0, 1)])
def test_parts_tell_how_they_divide_the_input(tmp_path, lost):
  folder = tmp_path / 's'
  with open_store(folder) as opened:
    fill(opened)
  for index in lost:
    (folder / f'part-{index:06d}.parquet').unlink()
  plan = folder / 'plan.json'
  plan.unlink()

  def reopen():
    return store.ScoreStore(
      folder, model='m', fingerprint=FINGERPRINT, num_rows=10
    )

  with reopen() as opened:
    assert opened.rows_per_part == 4
    assert opened.done() == {0, 1, 2} - set(lost)
    assert 'no plan.json' in opened.notes[0]
    opened.save_plan({'rows_per_part': 4, 'runs': []})
  # One without a seal, as 1cbf695 wrote it, is compared with them.
  plan.write_text('{"rows_per_part": 5, "runs": []}')
  with pytest.raises(store.StoreError, match='plan.json is damaged.*this file'):
    reopen()
  plan.write_text('{"rows_per_part": 4, "runs": []}')
  with reopen() as opened:
    assert opened.done() == {0, 1, 2} - set(lost)


def test_a_part_of_another_run_is_refused_by_name(tmp_path):
  """The right rows, but scored by another model: one file copied over."""
  other = json.loads(json.dumps(FINGERPRINT))
  other['model']['path'] = 'b'
  for name, fingerprint in (('s', FINGERPRINT), ('other', other)):
    with open_store(tmp_path / name, fingerprint=fingerprint) as opened:
      fill(opened)
  part = tmp_path / 's' / 'part-000001.parquet'
  part.write_bytes((tmp_path / 'other' / part.name).read_bytes())
  with pytest.raises(
    store.StoreError, match=f'{part.name} is damaged.*of another run.*delete it'
  ):
    list(parts.read_parts(tmp_path / 's'))


def test_a_part_beyond_the_input_is_refused_by_name(tmp_path):
  with open_store(tmp_path / 's', rows=10) as opened:
    fill(opened)
  with (
    open_store(tmp_path / 's', rows=8) as opened,
    pytest.raises(
      store.StoreError, match='part-000002.parquet is beyond .* 8 rows'
    ),
  ):
    opened.done()


def test_an_unknown_status_or_a_missing_row_is_not_written(tmp_path):
  with open_store(tmp_path / 's') as opened:
    rows = opened.window(0)
    with pytest.raises(ValueError, match='status'):
      opened.write(0, columns_of(rows), ['fine'] * 4, [''] * 4)
    with pytest.raises((ValueError, pa.ArrowInvalid)):
      opened.write(0, columns_of(range(3)), ['ok'] * 3, [''] * 3)
    assert opened.done() == set()


def test_two_processes_cannot_write_and_a_dead_one_does_not_lock(tmp_path):
  (tmp_path / 's').mkdir()
  code = (
    'import sys, time; from qaq_jax.workdir import files; '
    f'lock = files.Lock({str(tmp_path / "s")!r}); print("held", flush=True); '
    'time.sleep(60)'
  )
  root = pathlib.Path(__file__).resolve().parent.parent
  holder = subprocess.Popen(
    [sys.executable, '-c', code],
    stdout=subprocess.PIPE,
    text=True,
    cwd=root,
  )
  try:
    assert holder.stdout.readline() == 'held\n'
    with pytest.raises(store.StoreError, match=f'pid {holder.pid} '):
      open_store(tmp_path / 's')
  finally:
    holder.send_signal(signal.SIGKILL)
    holder.wait()
  assert (tmp_path / 's' / '.lock').exists()  # left over, and harmless
  for _ in range(50):
    try:
      open_store(tmp_path / 's').close()
      break
    except store.StoreError:  # the system is still burying the process
      time.sleep(0.1)
  else:
    pytest.fail('a dead process keeps the lock')


def test_atomic_file_leaves_the_old_one_on_failure(tmp_path):
  path = tmp_path / 'x.json'
  files.write_json(path, {'a': 1})
  with pytest.raises(RuntimeError), files.atomic_file(path) as file:
    file.write(b'half')
    raise RuntimeError
  assert files.read_json(path) == {'a': 1}
  assert [p.name for p in tmp_path.iterdir()] == ['x.json']


def two_models(tmp_path, rows=10):
  for name, per_part in (('strong', 4), ('weak', 3)):
    with open_store(
      tmp_path / name, rows=rows, per_part=per_part, model=name
    ) as opened:
      fill(opened)
  return {n: tmp_path / n for n in ('strong', 'weak')}


def test_join_has_a_row_per_input_row_and_derived_columns(tmp_path):
  models = two_models(tmp_path)
  ids = [7, 7, None, 3, 4, 5, 6, 7, 8, 9]

  def derive(path):
    assert 'diff' not in pq.read_schema(path).names
    return derived.derive(
      path,
      ('strong', 'weak'),
      {'strong': 'strong', 'weak': 'weak'},
      num_strata=2,
    )

  join.join_scores(
    tmp_path / 'scores.parquet',
    models,
    num_rows=10,
    ids=lambda: iter(ids),
    derive=derive,
  )
  table = pq.read_table(tmp_path / 'scores.parquet')
  assert table['row'].to_pylist() == list(range(10))
  assert table['id'].to_pylist() == ids
  assert table.schema.field('id').type == pa.int64()
  names = table.column_names
  assert names[:4] == ['row', 'id', 'nll_q_strong', 'nll_q_given_a_strong']
  for name in (
    'rmi_strong',
    'ifd_weak',
    'r_ifd_weak',
    'stratum_strong',
    'rank_weak',
    'diff',
    'sum',
  ):
    assert names.index(name) > names.index('reason_weak')
    assert table[name][3].as_py() is None
  np.testing.assert_allclose(
    table['rmi_strong'].to_numpy()[0],
    metrics.rmi([0.0], [5], [1.0], [5])[0],
  )
  assert [p.name for p in tmp_path.glob('.*')] == []
  again = tmp_path / 'again.parquet'
  join.join_scores(
    again, models, num_rows=10, ids=lambda: iter(ids), derive=derive
  )
  assert again.read_bytes() == (tmp_path / 'scores.parquet').read_bytes()


@pytest.mark.parametrize(
  'ids, kind',
  [(['a', 3], pa.string()), ([2**70, 1], pa.string()), ([None] * 2, None)],
  ids=str,
)
def test_ids_keep_their_type_where_all_agree(tmp_path, ids, kind):
  with open_store(tmp_path / 'm', rows=2) as opened:
    fill(opened)
  path = tmp_path / 'scores.parquet'
  join.join_scores(
    path, {'m': tmp_path / 'm'}, num_rows=2, ids=lambda: iter(ids)
  )
  table = pq.read_table(path)
  if kind is None:
    assert 'id' not in table.column_names
  else:
    assert table.schema.field('id').type == kind
    assert table['id'].to_pylist() == [str(i) for i in ids]


def test_join_refuses_what_is_incomplete_or_of_another_input(tmp_path):
  with open_store(tmp_path / 'm') as opened:
    fill(opened, [0, 1])
  path = tmp_path / 'scores.parquet'
  with pytest.raises(store.StoreError, match="ends at row 8.*'m'"):
    join.join_scores(path, {'m': tmp_path / 'm'}, num_rows=10)
  with open_store(tmp_path / 'm') as opened:
    fill(opened, [2])
  for rows in (9, 8):  # a part of a window too many, and a whole one
    with pytest.raises(store.StoreError, match=f'more than the {rows} rows'):
      join.join_scores(path, {'m': tmp_path / 'm'}, num_rows=rows)
  (tmp_path / 'm' / 'part-000001.parquet').unlink()
  with pytest.raises(store.StoreError, match='part-000002.*row 4'):
    join.join_scores(path, {'m': tmp_path / 'm'}, num_rows=10)
  with pytest.raises(store.StoreError, match='ends at row 0'):
    join.join_scores(path, {'m': tmp_path / 'nowhere'}, num_rows=10)
  assert not path.exists()


def test_embeddings_are_beside_the_parts_and_join_to_one_array(tmp_path):
  values = np.random.default_rng(0).normal(size=(10, 6)).astype(np.float16)
  values[3] = np.nan
  with open_store(tmp_path / 'm', kinds=EMBEDDED) as opened:
    for w in range(opened.num_windows):
      fill(opened, [w], embeddings=values[list(opened.window(w))])
    assert opened.done() == {0, 1, 2}
  out = tmp_path / 'embeddings.npy'
  join.join_embeddings(out, tmp_path / 'm', num_rows=10)
  np.testing.assert_array_equal(np.load(out, mmap_mode='r'), values)
  with pytest.raises(store.StoreError, match='of 10 rows, the input has 11'):
    join.join_embeddings(tmp_path / 'more.npy', tmp_path / 'm', num_rows=11)
  assert not (tmp_path / 'more.npy').exists()
  part = tmp_path / 'm' / 'part-000002.npy'
  data = bytearray(part.read_bytes())
  data[-1] ^= 1
  part.write_bytes(data)
  with (
    open_store(tmp_path / 'm', kinds=EMBEDDED) as opened,
    pytest.raises(store.StoreError, match='part-000002.parquet.*npy'),
  ):
    opened.done()
  os.unlink(part)
  with pytest.raises(store.StoreError, match='part-000002'):
    join.join_embeddings(out, tmp_path / 'm', num_rows=10)
