"""One flipped bit in what a stage reads: told by name with the way back."""

import importlib.util
import json
import pathlib
import shutil
import tarfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_store

from qaq_jax import config as config_lib
from qaq_jax import pipeline
from qaq_jax.data import samples as samples_lib
from qaq_jax.data.types import DataError
from qaq_jax.demo import defects
from qaq_jax.finetune import checkpoints, identity
from qaq_jax.models.hf import source
from qaq_jax.planner import lengths
from qaq_jax.scoring import parts, table
from qaq_jax.selection import select as select_lib
from qaq_jax.selection.rules import neighbours
from qaq_jax.selection.sql import engine
from qaq_jax.stages import artifacts, prepare, training_data
from qaq_jax.workdir import checksums, files
from qaq_jax.workdir.layout import WorkDir

ARCHIVE = (
  pathlib.Path(__file__).parent / 'fixtures/old_workdirs/workdirs.tar.xz'
)
REFUSED = (files.StoreError, DataError)
WORDS = ('damaged', 'cannot be read', 'made with another fingerprint')


def flipped(path, most=150):
  """Flips one bit after the other, spread over a file; yields where."""
  whole = path.read_bytes()
  assert len(whole) > 8
  for number, at in enumerate(range(0, len(whole), -(-len(whole) // most))):
    data = bytearray(whole)
    data[at] ^= 1 << number % 8
    path.write_bytes(data)
    yield at
  path.write_bytes(whole)


def refusals(path, read, good, *, name=None, back='delete', most=150):
  """Number of flipped bits that are refused; the others change nothing."""
  refused = total = 0
  for at in flipped(path, most):
    total += 1
    try:
      assert same(read(), good), at
    except REFUSED as e:
      assert str(name or path) in str(e), (at, e)
      assert any(word in str(e) for word in WORDS), (at, e)
      assert back in str(e), (at, e)
      refused += 1
  assert same(read(), good)
  return refused, total


def same(a, b):
  equal = jax.tree.map(np.array_equal, a, b)
  return all(jax.tree.leaves(equal))


@pytest.fixture(scope='module')
def made(tmp_path_factory):
  """A scored and selected work directory, written by this version."""
  folder = tmp_path_factory.mktemp('made')
  with tarfile.open(ARCHIVE) as archive:
    archive.extractall(folder, filter='data')
  with pytest.MonkeyPatch.context() as patch:
    patch.chdir(folder)
    pipeline.run('score', config(), 'scored')  # joins, and scores nothing
    pipeline.run('select', config(), 'scored')
  assert (folder / 'scored' / 'scores.parquet.qaq.sha256').exists()
  return folder


@pytest.fixture
def work(made, tmp_path, monkeypatch):
  """A copy of it, beside the files that its paths name."""
  shutil.copytree(made, tmp_path / 'copy')
  monkeypatch.chdir(tmp_path / 'copy')
  return WorkDir('scored')


def config():
  spec = importlib.util.spec_from_file_location('recipe', 'recipe.py')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  c = module.get_config()
  for section in (c.score, c.finetune, c.evaluate):
    section.mesh.data = -1  # the folders were begun on one device
  return c


def chosen(engine_name, work):
  c = config()
  c.select.engine = engine_name
  return artifacts.selection(c, work).rows.tolist()


@pytest.mark.parametrize('engine_name', ['memory', 'duckdb'])
def test_score_table(work, engine_name):
  good = chosen('memory', work)
  refused, total = refusals(
    work.scores,
    lambda: chosen(engine_name, work),
    good,
    back='run the score stage',
    most=40 if engine_name == 'duckdb' else 150,
  )
  assert refused == total  # of every bit


@pytest.mark.parametrize('engine_name', ['memory', 'duckdb'])
def test_score_table_of_before_without_a_checksum(work, engine_name):
  """Pages have checksums of their own, which no engine takes on trust."""
  (work.path / 'scores.parquet.qaq.sha256').unlink()
  good = chosen('memory', work)
  whole = work.scores.read_bytes()
  with table.open_table(work.scores) as file:
    columns = [file.metadata.row_group(0).column(i) for i in range(9)]
  for column in columns:
    at = column.data_page_offset + column.total_compressed_size // 2
    data = bytearray(whole)
    data[at] ^= 0x55
    work.scores.write_bytes(data)
    try:
      assert chosen(engine_name, work) == good
      assert engine_name == 'memory'  # which did not need this column
    except files.StoreError as e:
      assert 'scores.parquet is damaged' in str(e)
      assert 'run the score stage' in str(e)


@pytest.mark.parametrize('engine_name', ['memory', 'duckdb'])
def test_table_of_contents_of_a_score_table_of_before(work, engine_name):
  """It has no checksum of its own; the parts say what the columns were."""
  (work.path / 'scores.parquet.qaq.sha256').unlink()
  good = chosen('memory', work)
  whole = work.scores.read_bytes()
  footer = len(whole) - int.from_bytes(whole[-8:-4], 'little') - 8
  step = 37 if engine_name == 'memory' else 149
  refused = 0
  for at in range(footer, len(whole), step):
    data = bytearray(whole)
    data[at] ^= 1 << at % 8
    work.scores.write_bytes(data)
    try:
      assert chosen(engine_name, work) == good, at
    except ValueError as e:
      told = str(e)
      assert 'scores.parquet' in told and 'score' in told, (at, e)
      assert 'score model' not in told, (at, e)
      refused += 1
  assert refused > 3
  # A column under another one's name.
  names = (b'nll_q_given_a_strong', b'nll_a_given_q_strong')
  work.scores.write_bytes(
    whole.replace(names[0], b'#' * 20)
    .replace(*names[::-1])
    .replace(b'#' * 20, names[1])
  )
  with pytest.raises(files.StoreError, match='damaged.*run the score stage'):
    chosen(engine_name, work)
  (work.path / 'scores').rename(work.path / 'moved')  # as it says
  chosen(engine_name, work)


def test_any_table_is_checked_by_both_engines(work, tmp_path):
  """Also called from Python, without a stage."""
  data = bytearray(work.scores.read_bytes())
  data[len(data) // 2] ^= 1
  work.scores.write_bytes(data)
  with pytest.raises(files.StoreError, match='scores.parquet is damaged'):
    select_lib.select(work.scores)
  with pytest.raises(files.StoreError, match='scores.parquet is damaged'):
    engine.select(work.scores, temporary=tmp_path / 'tmp')


def test_selection_is_told_by_its_own_name(work):
  good = artifacts.written_selection(work)
  back = 'delete selection.json, and run the select stage'
  refused, total = refusals(
    work.selection, lambda: artifacts.written_selection(work), good, back=back
  )
  assert refused == total
  for text in ('', '[]', '5', '{}', '{"a', '\0'):
    work.selection.write_text(text)
    with pytest.raises(files.StoreError, match='json is damaged') as caught:
      pipeline.run('report', config(), 'scored')
    assert f'{work.selection} is' in str(caught.value)
    assert 'folder' not in str(caught.value)
  work.selection.unlink()  # as it says
  pipeline.run('select', config(), 'scored')
  assert artifacts.written_selection(work) == good


def test_a_selection_that_cannot_be_read_is_no_obstacle_to_another(
  work, capsys
):
  """Known before anything is chosen or written."""
  good = artifacts.written_selection(work)
  whole = work.selection.read_bytes()
  (work.path / 'selection.json.qaq.sha256').unlink()
  for text in ('{"rows', '{"rule": "x"}', '{"rows_sha256": "", "counts": 5}'):
    work.selection.write_text(text)
    pipeline.run('select', config(), 'scored')
    said = capsys.readouterr().out
    assert 'what was selected before is not known' in said
    assert said.index('not known') < said.index('wrote')
    assert work.selection.read_bytes() == whole
  assert artifacts.written_selection(work) == good


def test_a_folder_in_the_place_of_a_file_is_told(work):
  names = ('selection.json', 'selection.json.qaq.sha256', 'selected.jsonl')
  for name in (*names, 'samples/samples.json'):
    path, kept = work.path / name, work.path / 'kept'
    path.rename(kept)
    path.mkdir()
    with pytest.raises(files.StoreError, match=f'{name} is a folder.*move it'):
      pipeline.run('select', config(), 'scored')
    path.rmdir()
    kept.rename(path)
  pipeline.run('select', config(), 'scored')


def test_file_of_checksums_is_told_by_its_own_name(work):
  beside = work.path / 'selection.json.qaq.sha256'
  good = artifacts.written_selection(work)
  refused, total = refusals(
    beside, lambda: artifacts.written_selection(work), good
  )
  assert refused > 0.7 * total  # white space, and the name of the seal


def test_a_kill_between_a_file_and_its_checksum_is_no_damage(tmp_path):
  path = tmp_path / 'x'
  for text in (b'one', b'two'):
    with checksums.atomic_file(path) as file:
      file.write(text)
  beside = path.with_name('x.qaq.sha256').read_bytes()
  with pytest.raises(KeyboardInterrupt), checksums.atomic_file(path) as file:
    file.write(b'three')
    raise KeyboardInterrupt
  assert path.with_name('x.qaq.sha256').read_bytes() == beside
  checksums.note(path, _written(tmp_path / 'y', b'three'))  # killed after it
  assert path.read_bytes() == b'two' and checksums.check(path, 'back')
  (tmp_path / 'y').replace(path)
  assert checksums.check(path, 'back')
  path.write_bytes(b'one')
  with pytest.raises(
    files.StoreError, match='x is damaged.*x.qaq.sha256.: back'
  ):
    checksums.check(path, 'back')


def test_kills_between_a_file_and_its_checksum_leave_what_is_there(tmp_path):
  """Also twice, and where there was no checksum before."""
  path = tmp_path / 'x'
  path.write_bytes(b'one')
  for text in (b'two', b'three'):
    checksums.note(path, _written(tmp_path / 'y', text))
    assert checksums.check(path, 'back')
  path.write_bytes(b'two')  # no longer what could be there
  checksums.note(path, _written(tmp_path / 'y', b'four'))
  with pytest.raises(files.StoreError, match='x is damaged'):
    checksums.check(path, 'back')


@pytest.mark.parametrize(
  'text',
  ['{}', '{"versions": []}', '{"versions": 5}', '{"versions": [{}]}', '[]'],
)
def test_other_json_is_no_file_of_checksums(tmp_path, text):
  path = tmp_path / 'x'
  with checksums.atomic_file(path) as file:
    file.write(b'one')
  path.with_name('x.qaq.sha256').write_text(text)
  with pytest.raises(files.StoreError, match='x.qaq.sha256 is damaged.*delete'):
    checksums.check(path, 'back')
  with checksums.atomic_file(path) as file:
    file.write(b'two')
  assert checksums.check(path, 'back')


def _written(path, data):
  path.write_bytes(data)
  return path


def test_fingerprint_of_scores(work):
  path = work.parts('strong') / 'fingerprint.json'
  good = artifacts.fingerprints(work)
  refused, total = refusals(
    path,
    lambda: artifacts.fingerprints(work),
    good,
    back='delete this file and run the score stage',
  )
  assert refused > 0.7 * total  # the others are white space
  whole = path.read_bytes()
  path.write_text('{')
  with pytest.raises(files.StoreError, match='strong/fingerprint.json is dam'):
    pipeline.run('select', config(), 'scored')
  path.unlink()  # as it says
  pipeline.run('score', config(), 'scored')
  assert path.read_bytes() == whole


def test_plan_of_scores(tmp_path):
  with test_store.open_store(tmp_path / 'scores' / 's') as opened:
    opened.save_plan({'rows_per_part': 4, 'survey': {'rows': 9}, 'runs': []})
    test_store.fill(opened)
    good = opened.plan
  work = WorkDir(tmp_path)

  def read():
    assert lengths.stored(work, 's') == {'rows': 9}
    with test_store.open_store(tmp_path / 'scores' / 's') as opened:
      opened.done()
      return opened.plan

  path = work.parts('s') / 'plan.json'
  refused, total = refusals(path, read, good, back='delete')
  assert refused > 0.7 * total  # white space, and the name of the seal
  path.write_text(json.dumps(good))  # as version 1cbf695 wrote it
  assert read() == good


@pytest.mark.parametrize('name', ['part-000001.parquet', 'part-000001.npy'])
def test_part_of_scores(tmp_path, name):
  folder = tmp_path / 's'
  values = np.ones((4, 3), np.float16)
  more = {'kinds': test_store.EMBEDDED}
  with test_store.open_store(folder, rows=8, **more) as opened:
    test_store.fill(opened, embeddings=values)

  def read():
    with test_store.open_store(folder, rows=8, **more) as opened:
      opened.done()
    return [t.to_pydict() for t in parts.read_parts(folder)]

  refused, total = refusals(
    folder / name, read, read(), name='part-000001.parquet', most=400
  )
  assert refused > 0.6 * total


def test_prepared_samples(work):
  for name in ('part-000000.parquet', 'samples.json'):

    def read():
      store = samples_lib.SampleStore.open(work.samples)
      return [[s.row, s.query, s.answer, s.raw] for s in store.iter_rows()]

    refused, total = refusals(
      work.samples / name, read, read(), back='run the prepare stage again'
    )
    assert refused == total if name.startswith('part') else refused


def test_mined_pairs(tmp_path):
  """What prepare and compare read of the mine stage."""
  work, c = WorkDir(tmp_path / 'run'), config_lib.get_default()
  paths = work.path / 'demo.jsonl', work.path / 'held_out.jsonl'
  defects.write_demo_data(
    paths[0], rows=20, shares={}, held_out=10, held_out_path=paths[1]
  )
  c.data.path = '{workdir}/demo.jsonl'

  def held_out():
    folder = tmp_path / 'held_out'
    path = '{workdir}/held_out.jsonl'
    return training_data.prepared(c, work, path, folder).content_hash

  reads = lambda: prepare.run(c, work)['content_hash'], held_out  # noqa: E731
  for path, read in zip(paths, reads, strict=True):
    refused, total = refusals(
      path, read, read(), back='run the mine stage again', most=9
    )
    assert refused == total


def test_embeddings(tmp_path):
  path = tmp_path / 'strong.scores.npy'
  good = np.arange(60, dtype=np.float16).reshape(20, 3)
  with checksums.atomic_file(path) as file:
    np.save(file, good)

  def read():
    return np.array(neighbours.as_embeddings(path, 'embeddings'))

  refused, total = refusals(path, read, good, back='run the score stage')
  assert refused == total
  path.with_name(f'{path.name}.qaq.sha256').unlink()
  for data in (path.read_bytes()[:100], b'', b'\0' * 200):
    path.write_bytes(data)
    with pytest.raises(files.StoreError, match='npy is damaged.*score stage'):
      read()


def test_checkpoint(tmp_path):
  state = {
    'a': jnp.asarray(np.random.default_rng(0).normal(size=(8, 9)), jnp.float32),
    'step': jnp.int32(7),
  }
  progress = {'tokens': 5, 'seconds': 1.5, 'window': None}
  store = checkpoints.Checkpoints(tmp_path, keep=1)
  store.save(1, state, progress)
  store.close()
  folder = tmp_path / '1'
  store = checkpoints.Checkpoints(tmp_path, keep=1)
  refused = total = 0
  for path in sorted(folder.rglob('*')):
    if path.is_file() and path.name != 'all.sha256':
      if not path.stat().st_size > 8:
        continue
      found, number = refusals(
        path,
        lambda: store.restore(1, state),
        (state, progress),
        name=folder,
        back='delete this folder to go on',
        most=4,
      )
      refused, total = refused + found, total + number
  store.close()
  assert refused == total > 20


@pytest.mark.parametrize('summed', [True, False])
def test_metadata_of_any_checkpoint(tmp_path, summed):
  """Which one is best is said by files of all of them."""
  store = checkpoints.Checkpoints(tmp_path, keep=4)
  for step, loss in ((1, 1.5), (2, 1.0), (3, 1.25)):
    store.save(step, {'a': jnp.full((3,), float(step))}, {}, loss)
  store.close()
  if not summed:  # of 1cbf695, or killed before they were written
    (tmp_path / '2' / 'all.sha256').unlink()

  def read():
    store = checkpoints.Checkpoints(tmp_path, keep=4, tidy=False)
    store.close()
    return store.latest, store.best

  for name in ('metrics/metrics', '_CHECKPOINT_METADATA'):
    path = tmp_path / '2' / name
    if summed:
      refused, total = refusals(
        path, read, (3, (2, 1.0)), name=tmp_path / '2', most=30
      )
      assert refused == total
    else:
      whole = path.read_bytes()
      other = whole.replace(b'custom', b'custon').replace(b'loss', b'l0ss')
      for text in (b'', b'{"a', b'[]', whole[:-9], other):
        path.write_bytes(text)
        with pytest.raises(files.StoreError, match='2 cannot.*delete this'):
          read()
      path.write_bytes(whole)
  assert read() == (3, (2, 1.0))


def test_fingerprint_of_training(tmp_path):
  path = tmp_path / 'fingerprint.json'
  wanted = {'version': 1, 'options': {'batch_size': 4, 'name': 'x' * 40}}
  identity.check(path, wanted, started=False)
  refused, total = refusals(
    path, lambda: identity.check(path, wanted, started=True) or 0, 0
  )
  assert refused > 0.7 * total  # white space, and the name of the seal
  path.write_text(json.dumps(wanted))  # as version 1cbf695 wrote it
  identity.check(path, wanted, started=True)
  with pytest.raises(files.StoreError, match='version: 1 -> 2'):
    identity.check(path, wanted | {'version': 2}, started=True)


def test_exported_model(work):
  folder = pathlib.Path('strong')
  with checksums.noted(folder):
    pass  # it is there already
  good = source.fingerprint(source.resolve(str(folder)))['files']
  for name in ('model.safetensors', 'tokenizer.json', 'config.json'):

    def read():
      found = source.resolve(str(folder))
      return source.fingerprint(found)['files']

    refused, total = refusals(
      folder / name, read, good, back='export it again', most=20
    )
    assert refused == total
  (folder / 'README.md').write_text('a file of the user')
  pathlib.Path('strong.sha256').write_text(f'{"0" * 64}  strong.tar\n')
  assert source.resolve(str(folder))


def test_what_cannot_be_read_is_not_to_be_deleted(work, tmp_path):
  """A link to itself can't be read, not even by root."""
  strong = work.parts('strong')
  npy = tmp_path / 'x.npy'
  reads = {
    work.scores: lambda: chosen('memory', work),
    work.selection: lambda: artifacts.written_selection(work),
    strong / 'part-000000.parquet': lambda: list(parts.read_parts(strong)),
    strong / 'fingerprint.json': lambda: parts.read_fingerprint(strong),
    strong / 'plan.json': lambda: parts.read_plan(strong),
    work.samples / 'part-000000.parquet': lambda: list(
      samples_lib.SampleStore.open(work.samples).iter_rows()
    ),
    npy: lambda: neighbours.as_embeddings(npy, 'embeddings'),
  }
  np.save(npy, np.ones((2, 2)))
  for path, read in reads.items():
    read()
    kept = path.with_name('kept')
    path.rename(kept)
    path.symlink_to(path.name)
    with pytest.raises((ValueError, OSError)) as caught:
      read()
    said = str(caught.value)
    assert path.name in said, (path, said)
    assert 'damaged' not in said and 'delete' not in said, (path, said)
    path.unlink()
    kept.rename(path)
