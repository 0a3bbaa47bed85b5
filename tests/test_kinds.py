"""A new kind of score is one record: added here, scored, stored, described.

The kinds of this test are in no other file: the largest surprise of the answer
and the number of its surprising tokens.
"""

import dataclasses
import pathlib

import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scoring_rig as rig
from flax import nnx
from scipy import special

from qaq_jax.scoring import join, kinds, parts, store

DOCS = pathlib.Path(__file__).resolve().parent.parent / 'docs'


def largest(logp_BT, inside_BT):
  return jnp.max(jnp.where(inside_BT, -logp_BT, -jnp.inf), axis=1)


def above(logp_BT, inside_BT, nats):
  return jnp.sum(inside_BT & (-logp_BT > nats), axis=1)


WORST = kinds.ScoreKind(
  'a_worst',
  'largest -log p of a token of the answer after the query, nats',
  largest,
  column='a_worst_nll',
  span='a_given_q',
)
SURPRISES = kinds.ScoreKind(
  'a_surprises',
  'tokens of the answer after the query with a -log p above 6 nats',
  above,
  column='n_a_surprises',
  dtype=np.int32,
  span='a_given_q',
  parameters={'nats': 6.0},
)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  path = tmp_path_factory.mktemp('rig')
  rig.make(path)
  return path


def add(monkeypatch, *more):
  monkeypatch.setattr(kinds, 'KINDS', (*kinds.KINDS, *more))


def read(path):
  return pa.concat_tables(parts.read_parts(path))


def interrupt(monkeypatch, folder, out, windows, **more):
  """Scores, and stops with so many windows written."""
  real, written = store.ScoreStore.write, []

  def write(self, index, *args):
    if len(written) == windows:
      raise KeyboardInterrupt
    written.append(index)
    real(self, index, *args)

  with monkeypatch.context() as patch:
    patch.setattr(store.ScoreStore, 'write', write)
    with pytest.raises(KeyboardInterrupt):
      rig.score(folder, out, **more)


def surprises(folder):
  """-log p of each answer's tokens: row -> array; whole logits, float64."""
  model = rig.model()
  graphdef, params = nnx.split(model)

  @nnx.jit
  def logits_of(tokens):
    model = nnx.merge(graphdef, params)
    return model.logits(model(tokens))

  found = {}
  for row in rig.encoder(folder).encode(
    list(rig.samples(folder).iter_rows(0, 30))
  ):
    for sequence in row.sequences:
      for span, start, stop in sequence.spans:
        if span != 'a_given_q':
          continue
        tokens = np.zeros((1, 200), np.int32)
        tokens[0, : len(sequence.ids)] = sequence.ids
        logits = np.asarray(logits_of(tokens)[0, :, :421], np.float64)
        logp = logits - special.logsumexp(logits, axis=1, keepdims=True)
        at = np.arange(start, stop)
        found[row.row] = -logp[at - 1, sequence.ids[at]]
  return found


def test_a_kind_is_added_in_one_place(folder, tmp_path, monkeypatch):
  """Scored, interrupted, resumed, joined; held against whole logits."""
  add(monkeypatch, WORST, SURPRISES)
  interrupt(monkeypatch, folder, tmp_path / 'a', 2)
  summary = rig.score(folder, tmp_path / 'a')
  assert (summary['windows_reused'], summary['windows']) == (2, 4)
  join.join_scores(
    tmp_path / 'scores.parquet', {'m': tmp_path / 'a'}, num_rows=30
  )
  table = pq.read_table(tmp_path / 'scores.parquet')
  assert table.schema.field('a_worst_nll_m').type == pa.float32()
  assert table.schema.field('n_a_surprises_m').type == pa.int32()
  want = surprises(folder)
  assert len(want) == 27
  status = table['status_m'].to_pylist()
  worst = table['a_worst_nll_m'].to_pylist()
  count = table['n_a_surprises_m'].to_pylist()
  for row in range(30):
    assert (status[row] == 'ok') == (row in want)
    if row not in want:
      assert worst[row] is count[row] is None
      continue
    np.testing.assert_allclose(
      worst[row], want[row].max(), rtol=2e-6, atol=1e-5
    )
    # A token on the threshold may fall on either side.
    near = np.abs(want[row] - 6) < 1e-4
    sure = int(np.sum((want[row] > 6) & ~near))
    assert sure <= count[row] <= sure + near.sum()
  assert len(set(count)) > 4  # so that the count can be wrong


def test_asked_for_alone_it_gives_the_same_for_fewer_tokens(
  folder, tmp_path, monkeypatch
):
  add(monkeypatch, WORST)
  both = rig.score(folder, tmp_path / 'a')
  options = dataclasses.replace(rig.OPTIONS, terms=('a_worst',))
  alone = rig.score(folder, tmp_path / 'b', options=options)
  assert alone['sequences'] * 2 == both['sequences']
  got, want = read(tmp_path / 'b'), read(tmp_path / 'a')
  np.testing.assert_allclose(
    got['a_worst_nll_m'].to_pandas(),
    want['a_worst_nll_m'].to_pandas(),
    rtol=2e-6,
    atol=1e-5,
  )
  assert got.column_names == want.column_names
  assert got['nll_a_given_q_m'].null_count == 30
  options = dataclasses.replace(rig.OPTIONS, terms=('a_worse',))
  with pytest.raises(ValueError, match="'a_worse'.*a_given_q, a_worst$"):
    rig.score(folder, tmp_path / 'c', options=options)


def test_an_older_folder_goes_on_without_the_kind(
  folder, tmp_path, monkeypatch
):
  """And one that was begun with it is not mixed with rows that lack it."""
  interrupt(monkeypatch, folder, tmp_path / 'a', 2)
  rig.score(folder, tmp_path / 'b')
  with monkeypatch.context() as patch:
    add(patch, WORST)
    summary = rig.score(folder, tmp_path / 'a')
    assert summary['windows_reused'] == 2
    options = dataclasses.replace(rig.OPTIONS, terms=('a', 'a_worst'))
    with pytest.raises(store.StoreError, match='scored_terms'):
      rig.score(folder, tmp_path / 'a', options=options)
    interrupt(monkeypatch, folder, tmp_path / 'c', 2)
  for path in (tmp_path / 'b').glob('part-*'):
    assert path.read_bytes() == (tmp_path / 'a' / path.name).read_bytes()
  with pytest.raises(store.StoreError, match='scored_terms'):
    rig.score(folder, tmp_path / 'c')


def test_another_parameter_is_refused_by_name(folder, tmp_path, monkeypatch):
  with monkeypatch.context() as patch:
    add(patch, SURPRISES)
    interrupt(monkeypatch, folder, tmp_path / 'a', 2)
  add(monkeypatch, dataclasses.replace(SURPRISES, parameters={'nats': 2.0}))
  with pytest.raises(
    store.StoreError, match=r'kinds.a_surprises.nats: 6.0 -> 2.0'
  ):
    rig.score(folder, tmp_path / 'a')


def largest_of_another_kind(logp_BT, inside_BT):
  return jnp.max(jnp.where(inside_BT, logp_BT, -jnp.inf), axis=1)


largest_of_another_kind.__name__ = 'largest'


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'column': 'x'}, 'the name a_worst'),
    ({'name': 'x'}, 'the column a_worst_nll'),
    (
      {'name': 'x', 'column': 'x', 'reduce': largest_of_another_kind},
      'x: .* `reduce` that is called largest',
    ),
  ],
  ids=['name', 'column', 'reduce'],
)
def test_two_kinds_that_would_overwrite_each_other_are_refused(
  folder, tmp_path, monkeypatch, changes, message
):
  add(monkeypatch, WORST, dataclasses.replace(WORST, **changes))
  with pytest.raises(ValueError, match=message):
    rig.score(folder, tmp_path / 'a')


def test_the_documented_table_is_that_of_the_records():
  lines = (DOCS / 'scoring.md').read_text().splitlines()
  table = kinds.describe()
  start = lines.index(table[0])
  assert lines[start : start + len(table)] == table
  assert not lines[start + len(table)].startswith('|')
