"""A new kind of score is one record: added here, scored, stored, described.

The kinds of this test are in no other file: the largest surprise of the answer
and the number of its surprising tokens.
"""

import dataclasses
import functools
import pathlib

import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scoring_rig as rig
import selection_tables
from flax import nnx
from scipy import special

from qaq_jax.encoding import published_ifd, sequences
from qaq_jax.scoring import join, kinds, parts, store
from qaq_jax.scoring import table as table_lib
from qaq_jax.selection import derived

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
    store.StoreError, match=r'kinds.a_surprises.parameters.nats: 6.0 -> 2.0'
  ):
    rig.score(folder, tmp_path / 'a')


def test_a_folder_goes_on_with_the_terms_it_began_with(
  folder, tmp_path, monkeypatch, capsys
):
  options = dataclasses.replace(rig.OPTIONS, terms=('q', 'q_given_a'))
  interrupt(monkeypatch, folder, tmp_path / 'a', 2, options=options)
  capsys.readouterr()
  shown = dataclasses.replace(rig.OPTIONS, progress=True)
  summary = rig.score(folder, tmp_path / 'a', options=shown)
  assert summary['windows_reused'] == 2
  assert (
    f'm: goes on with the terms that {tmp_path / "a"} was begun with: '
    'q, q_given_a\n' in capsys.readouterr().out
  )
  table = read(tmp_path / 'a')
  assert table['nll_q_m'].null_count == 3
  assert table['nll_a_m'].null_count == 30
  rig.score(folder, tmp_path / 'b', options=shown)
  assert 'goes on' not in capsys.readouterr().out
  with pytest.raises(store.StoreError, match='scored_terms'):
    rig.score(
      folder,
      tmp_path / 'a',
      options=dataclasses.replace(rig.OPTIONS, terms=('q',)),
    )


def test_a_finished_folder_outlives_a_new_likelihood(
  folder, tmp_path, monkeypatch
):
  rig.score(folder, tmp_path / 'a')
  new = kinds.likelihood(
    'again', 'answer once more', span='a_given_q', count='n_a'
  )
  add(monkeypatch, new)
  assert rig.score(folder, tmp_path / 'a')['windows_reused'] == 4
  rig.score(folder, tmp_path / 'b')
  table = read(tmp_path / 'b')
  assert table['nll_again_m'].null_count == 3
  assert table['nll_again_m'] == table['nll_a_given_q_m']


def total(values, inside_BT):
  """Of log-probabilities, or of the first component of hidden states."""
  values = values if values.ndim == 2 else values[..., 0]
  return jnp.sum(jnp.where(inside_BT, values, 0.0), axis=1)


def test_kinds_with_one_reduce_may_read_other_values(
  folder, tmp_path, monkeypatch
):
  logp = kinds.ScoreKind('logp_a', 'x', total, column='logp_a', span='a')
  first = dataclasses.replace(
    logp, name='first', column='first', reads='hidden'
  )
  add(monkeypatch, first, logp)
  rig.score(folder, tmp_path / 'both')
  table = read(tmp_path / 'both')
  np.testing.assert_array_equal(
    table['logp_a_m'].drop_null(), -table['nll_a_m'].drop_null().to_numpy()
  )
  assert table['first_m'].null_count == 3
  with monkeypatch.context() as patch:
    patch.setattr(kinds, 'KINDS', (*kinds.LIKELIHOODS, first))
    rig.score(folder, tmp_path / 'alone')
  assert read(tmp_path / 'alone')['first_m'] == table['first_m']


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'column': 'n_q'}, 'two score kinds have the column n_q'),
    ({'column': 'n_x', 'count': 'n_x'}, 'two score kinds have the column n_x'),
    ({'column': 'rmi'}, 'zz: the score table has a column rmi of its own'),
    ({'column': 'ifd_cherry'}, 'a column ifd_cherry of its own'),
    ({'column': 'status'}, 'a column status of its own'),
    ({'count': 'reason'}, 'a column reason of its own'),
    ({'span': 'a_givn_q'}, r"zz: span is 'a_givn_q'; it is one of \['a', "),
    ({'span': ''}, "zz: span is 'zz'"),
    ({'span': 'a_cherry_cond'}, "span is 'a_cherry_cond'"),
    ({'reads': 'hiden'}, r"reads is 'hiden'; .* \['hidden', 'logp'\]"),
    ({'option': 'no_such'}, "option is 'no_such'; .*'embeddings'"),
    ({'option': 'max_length'}, "option is 'max_length'"),
    ({'dtype': bool}, "dtype's kind is 'b'"),
    ({'column': ''}, 'zz: .*set one of the two'),
    (
      {'sequence': 'forward', 'span': '', 'reads': 'hidden'},
      'zz: .*set one of the two',
    ),
    ({'sequence': 'forwards', 'span': '', 'column': ''}, "is 'forwards'"),
    ({'sequence': 'forward', 'span': '', 'column': ''}, 'as hidden states'),
    ({'sequence': 'forward', 'column': '', 'reads': 'hidden'}, "span is 'a'"),
  ],
  ids=str,
)
def test_a_kind_that_cannot_be_is_refused(
  folder, monkeypatch, changes, message
):
  zz = kinds.ScoreKind('zz', 'x', total, column='zz', span='a')
  # Whatever kind stands first.
  wrong = dataclasses.replace(zz, **changes)
  monkeypatch.setattr(kinds, 'KINDS', (wrong, *kinds.LIKELIHOODS))
  with pytest.raises(ValueError, match=message):
    kinds.offered(rig.encoder(folder).options)


def test_a_reduce_without_a_name_is_its_kinds_own(
  folder, tmp_path, monkeypatch
):
  zz = kinds.ScoreKind(
    'zz', 'x', functools.partial(above, nats=6.0), column='zz', span='a_given_q'
  )
  add(monkeypatch, dataclasses.replace(zz, dtype=np.int32), SURPRISES)
  rig.score(folder, tmp_path / 'a')
  table = read(tmp_path / 'a')
  assert table['zz_m'] == table['n_a_surprises_m']


def test_spans_and_columns_that_kinds_are_held_against(folder):
  """Those that the encoder makes and that are joined."""
  encoder = rig.encoder(folder, ifd_cherry=True, ifd_superfilter=True)
  (row,) = encoder.encode(list(rig.samples(folder).iter_rows(0, 1)))
  found = {s.kind: tuple(term for term, _, _ in s.spans) for s in row.sequences}
  wanted = dict(sequences.TERMS)
  for form in published_ifd.FORMS.values():
    wanted |= {term.removeprefix('a_'): (term,) for term in form.terms}
  assert found == wanted
  made = derived.derive(selection_tables.make_table(9), ['strong'])
  assert [*made] == [f'{name}_strong' for name in table_lib.DERIVED]


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'span': 'q'}, r'kinds.a_worst.span: "a_given_q" -> "q"'),
    ({'dtype': np.float64}, r'kinds.a_worst.dtype: .* -> "float64"'),
    ({'reads': 'hidden', 'reduce': total}, r'kinds.a_worst.reads'),
  ],
  ids=['span', 'dtype', 'reads'],
)
def test_another_definition_is_refused_by_name(
  folder, tmp_path, monkeypatch, changes, message
):
  with monkeypatch.context() as patch:
    add(patch, WORST)
    interrupt(patch, folder, tmp_path / 'a', 2)
  add(monkeypatch, dataclasses.replace(WORST, **changes))
  with pytest.raises(store.StoreError, match=message):
    rig.score(folder, tmp_path / 'a')


def test_another_column_is_no_damage(folder, tmp_path, monkeypatch):
  with monkeypatch.context() as patch:
    add(patch, WORST)
    interrupt(patch, folder, tmp_path / 'a', 2)
  add(monkeypatch, dataclasses.replace(WORST, column='a_worst'))
  with pytest.raises(
    store.StoreError,
    match=r"is whole, but columns \['a_worst_m', 'a_worst_nll_m'\] were",
  ):
    rig.score(folder, tmp_path / 'a')


def test_only_what_differs_from_the_shipped_kinds_is_in_the_fingerprint():
  names = [k.name for k in kinds.KINDS if k.column]
  assert kinds.fingerprint(kinds.KINDS) == {'scored_terms': names}
  other = dataclasses.replace(kinds.EMBEDDING, parameters={'power': 2.0})
  assert kinds.fingerprint([other]) == {
    'scored_terms': [],
    'kinds': {'embedding': {'parameters': {'power': 2.0}}},
  }


def not_a_number(logp_BT, inside_BT):
  return jnp.sum(jnp.where(inside_BT, logp_BT, 0.0), axis=1) * jnp.nan


def test_what_is_not_finite_is_named_as_its_kind(folder, tmp_path, monkeypatch):
  bad = dataclasses.replace(WORST, reduce=not_a_number)
  add(monkeypatch, bad)
  rig.score(folder, tmp_path / 'a')
  table = read(tmp_path / 'a')
  assert table['status_m'][0].as_py() == 'non_finite'
  assert table['reason_m'][0].as_py() == 'a_worst_nll is not finite'


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
