"""The scoring loop: exact numbers, every row once, few programs, kill -9.

One small input of 30 rows (among them one empty, one too long, one invalid) and
a two-layer model, scored in windows of 8 rows; see `scoring_rig`.
"""

import dataclasses
import itertools
import json
import math
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pyarrow as pa
import pytest
import scoring_rig as rig
import tolerances
from flax import nnx
from jax import monitoring
from scipy import special

from qaq_jax.encoding import published_ifd
from qaq_jax.runtime import progress
from qaq_jax.scoring import batching, kinds, loop, metrics, parts, scorer, store
from qaq_jax.scoring import programs as programs_lib
from qaq_jax.scoring import window as window_lib
from qaq_jax.scoring.options import ScoreOptions

# Of float32 sums in other batches, orders and shardings: nothing in them
# cancels, and a token's is made of about what a blind guess has.
_RELATIVE = tolerances.decoder(rig.config(), 200)
TOLERANCE = dict(
  rtol=_RELATIVE, atol=_RELATIVE * math.log(rig.config().vocab_size)
)
NLL = [f'{k.column}_m' for k in kinds.LIKELIHOODS]
EXACT = ['row', 'n_q_m', 'n_q_given_a_m', 'n_a_m', 'status_m', 'reason_m']

_COMPILED = []
monitoring.register_event_duration_secs_listener(
  lambda event, seconds, **_: (
    _COMPILED.append(event)
    if event == '/jax/core/compile/backend_compile_duration'
    else None
  )
)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  path = tmp_path_factory.mktemp('rig')
  rig.make(path)
  return path


@pytest.fixture(scope='module')
def summary(folder):
  return rig.score(folder)


@pytest.fixture(scope='module')
def table(folder, summary):
  assert summary
  return read(folder / 'scores')


def read(path):
  return pa.concat_tables(parts.read_parts(path))


def assert_close(got, want, rows=None):
  """Equal statuses and counts, sums within the tolerance."""
  if rows is not None:
    got = got.take(rows)
  for name in EXACT[1 if rows is not None else 0 :]:
    assert got[name].to_pylist() == want[name].to_pylist(), name
  worst = 0.0
  for name in NLL:
    a, b = metrics.column(got[name]), metrics.column(want[name])
    np.testing.assert_allclose(a, b, **TOLERANCE)
    worst = max(worst, np.nanmax(np.abs(a - b) / np.abs(b)))
  print(f'largest relative difference {worst:.1e}')


def test_every_row_once_with_status_reason_and_nulls(table, summary):
  assert table['row'].to_pylist() == list(range(30))
  status = table['status_m'].to_pylist()
  assert (status[4], status[11], status[12]) == ('empty', 'too_long', 'invalid')
  rest = [s for i, s in enumerate(status) if i not in (4, 11, 12)]
  assert rest == ['ok'] * 27
  for row in (4, 11, 12):
    values = table.slice(row, 1).to_pylist()[0]
    assert values['reason_m']
    assert all(values[n] is None for n in [*NLL, 'n_q_m', 'n_a_m'])
  ok = table.filter(pa.compute.equal(table['status_m'], 'ok'))
  for name in NLL:
    assert ok[name].null_count == 0
    assert (ok[name].to_numpy() > 0).all()
  assert ok['n_q_m'].to_pylist() == ok['n_q_given_a_m'].to_pylist()
  assert summary['statuses'] == {
    'empty': 1,
    'invalid': 1,
    'ok': 27,
    'too_long': 1,
  }
  assert summary['rows'] == 30 and summary['windows'] == 4
  assert summary['tokens_scored'] == summary['tokens']
  assert 0 <= summary['padding_waste'] < 0.6


def test_equals_four_separate_plain_passes(folder, table):
  """Each term from a pass of its own, whole logits, float64 softmax."""
  rows = [0, 1, 29]
  encoder = rig.encoder(folder)
  encoded = encoder.encode(list(rig.samples(folder).iter_rows(0, 30)))
  passes = [
    (row, term, sequence.ids[:stop], stop - start)
    for row in rows
    for sequence in encoded[row].sequences
    for term, start, stop in sequence.spans
  ]
  assert len(passes) == 12
  tokens = np.zeros((12, 200), np.int32)
  for i, (_, _, ids, _) in enumerate(passes):
    tokens[i, : len(ids)] = ids
  graphdef, params = nnx.split(rig.model())

  @jax.jit
  def plain(params, tokens):
    model = nnx.merge(graphdef, params)
    return model.logits(model(tokens))

  logits = np.asarray(plain(params, tokens), np.float64)[:, :, :421]
  logp = logits - special.logsumexp(logits, axis=2, keepdims=True)
  for i, (row, term, ids, count) in enumerate(passes):
    at = np.arange(len(ids) - count, len(ids))
    want = -logp[i, at - 1, ids[at]].sum()
    got = table[f'nll_{term}_m'][row].as_py()
    np.testing.assert_allclose(got, want, **TOLERANCE)
    (kind,) = (k for k in kinds.LIKELIHOODS if k.name == term)
    assert table[f'{kind.count}_m'][row].as_py() == count


def test_other_batches_and_order_give_the_same_numbers(folder, table, tmp_path):
  rig.score(
    folder,
    tmp_path / 'a',
    options=ScoreOptions(
      tokens_per_batch=700, max_shapes=2, rows_per_part=100, progress=False
    ),
  )
  assert_close(read(tmp_path / 'a'), table)
  rig.make(tmp_path)
  lines = (tmp_path / 'in.jsonl').read_text().splitlines()
  (tmp_path / 'in.jsonl').write_text('\n'.join(reversed(lines)) + '\n')
  rig.samples_lib.prepare(
    rig.DataSource(str(tmp_path / 'in.jsonl'), columns={'id': 'id'}),
    tmp_path / 'samples',
  )
  rig.score(tmp_path)
  assert_close(read(tmp_path / 'scores'), table, rows=list(range(29, -1, -1)))


def test_on_a_mixed_mesh_of_eight_devices(folder, table, tmp_path):
  rig.score(folder, tmp_path / 'a', on=rig.mesh(2, 2, 2))
  assert_close(read(tmp_path / 'a'), table)


def test_no_compilation_in_the_loop_and_few_before(
  folder, tmp_path, monkeypatch
):
  seen = []
  real = loop.run_windows

  def counted(*args):
    before = len(_COMPILED)
    real(*args)
    seen.append(len(_COMPILED) - before)

  monkeypatch.setattr(loop, 'run_windows', counted)
  summary = rig.score(folder, tmp_path / 'a')
  assert seen == [0]
  assert 1 < summary['programs'] <= rig.OPTIONS.max_shapes
  plan = json.loads((tmp_path / 'a' / 'plan.json').read_text())
  assert len(plan['runs'][0]['batches']['shapes']) == summary['programs']
  assert summary['compile_seconds'] > 0


def test_the_listener_hears_compilations():
  before = len(_COMPILED)
  jax.jit(lambda x: x * 3 + len(_COMPILED))(np.ones(5)).block_until_ready()
  assert len(_COMPILED) > before


def test_finished_scores_are_reused_without_the_model(folder, summary, capsys):
  def never():
    raise AssertionError('the model was loaded for nothing')

  options = dataclasses.replace(rig.OPTIONS, progress=True)
  again = rig.score(folder, made=never, options=options)
  assert again['windows_reused'] == again['windows'] == 4
  assert again['statuses'] == summary['statuses']
  assert again['tokens_per_second'] is None
  assert 'scored before' in capsys.readouterr().out


def test_another_model_or_template_is_refused_by_name(folder, summary):
  assert summary
  other = json.loads(json.dumps(rig.FINGERPRINT))
  other['model']['dtype'] = 'bf16'
  with pytest.raises(store.StoreError, match='model.dtype: "f32" -> "bf16"'):
    rig.score(folder, fingerprint=other)
  options = dataclasses.replace(rig.OPTIONS, terms=('q', 'q_given_a'))
  with pytest.raises(store.StoreError, match='scored_terms'):
    rig.score(folder, options=options)


def test_rmi_alone_costs_less_and_gives_the_same(
  folder, table, summary, tmp_path
):
  options = dataclasses.replace(rig.OPTIONS, terms=('q_given_a', 'q'))
  alone = rig.score(folder, tmp_path / 'a', options=options)
  got = read(tmp_path / 'a')
  assert alone['tokens'] < 0.8 * summary['tokens']
  assert got.column_names == table.column_names
  for name in NLL[:2]:
    np.testing.assert_allclose(
      metrics.column(got[name]), metrics.column(table[name]), **TOLERANCE
    )
  assert got['nll_a_m'].null_count == got['n_a_m'].null_count == 30
  with pytest.raises(ValueError, match="score.terms.*'x'.*q_given_a"):
    rig.score(folder, options=dataclasses.replace(options, terms=('x',)))


def test_all_terms_and_embeddings(folder, table, tmp_path):
  """Six sequences' columns; the shared ones are as without the others."""
  encoder = rig.encoder(
    folder, ifd_cherry=True, ifd_superfilter=True, embeddings=True
  )
  summary = rig.score(folder, tmp_path / 'a', encode=encoder)
  got = read(tmp_path / 'a')
  assert_close(got, table)
  forms = published_ifd.FORMS.values()
  for term in itertools.chain(*(form.terms for form in forms)):
    values = metrics.column(got[f'nll_{term}_m'])
    assert np.isfinite(values).sum() >= 20, term
    assert np.isfinite(metrics.column(got[f'n_{term}_m'])).sum() >= 20
  assert summary['sequences'] > 4 * 27
  vectors = np.load(tmp_path / 'a' / 'part-000000.npy')
  assert vectors.shape == (8, 32) and vectors.dtype == np.float16
  assert np.isnan(vectors[4]).all()
  norms = np.linalg.norm(vectors[[0, 1, 7]].astype(np.float32), axis=1)
  np.testing.assert_allclose(norms, 1, atol=2e-3)


def test_a_row_that_is_not_finite_spoils_no_other(folder, table, tmp_path):
  encoded = rig.encoder(folder).encode(
    list(rig.samples(folder).iter_rows(0, 30))
  )
  held = [{i for s in row.sequences for i in s.ids.tolist()} for row in encoded]
  rare = {
    i: [r for r, ids in enumerate(held) if i in ids]
    for ids in held
    for i in ids
  }
  token, rows = min(rare.items(), key=lambda item: abs(len(item[1]) - 4))
  assert 0 < len(rows) < 20

  # The head gets a clean table of its own: a poisoned row of a tied one would
  # be in every logsumexp.
  def poisoned():
    model = rig.model(rig.mesh())
    model.config = dataclasses.replace(model.config, tie_embeddings=False)
    clean = model.embedding[...]
    model.head = nnx.Param(clean)
    table = np.array(clean)
    table[token] = np.nan
    model.embedding[...] = jax.device_put(table, clean.sharding)
    return model

  summary = rig.score(folder, tmp_path / 'a', made=poisoned)
  got = read(tmp_path / 'a')
  assert summary['statuses']['non_finite'] == len(rows)
  for row in range(30):
    values = got.slice(row, 1).to_pylist()[0]
    if row in rows:
      assert values['status_m'] == 'non_finite'
      assert 'not finite' in values['reason_m']
      assert all(values[n] is None for n in [*NLL, 'n_q_m', 'n_a_m'])
    else:
      want = table.slice(row, 1).to_pylist()[0]
      assert values['status_m'] == want['status_m']
      for name in NLL:
        if want[name] is None:
          assert values[name] is None
        else:
          np.testing.assert_allclose(values[name], want[name], **TOLERANCE)


def test_a_term_that_no_batch_scored_is_named(folder):
  """A window whose last batch never came is not written with nulls."""
  samples = list(rig.samples(folder).iter_rows(0, 2))
  encoded = rig.encoder(folder).encode(samples)
  items = [
    (row.row, slot, sequence)
    for row in encoded
    for slot, sequence in enumerate(row.sequences)
  ]
  longest = max(len(sequence.ids) for _, _, sequence in items)
  plan = batching.BatchPlan(((1, longest),), 0.0, (), longest, 1)
  batches = batching.make_batches(items, plan)
  assert len(batches) == 4  # one sequence each

  def scored(batches):
    window = window_lib.Window(0, range(2), encoded, batches, kinds.LIKELIHOODS)
    for batch in batches:
      ones = np.ones((len(batch.row_B), 2), np.float32)
      window.add(batch, {'nll_BS': ones})
    return window.columns('m', kinds.LIKELIHOODS)

  _, statuses, _ = scored(batches)
  assert statuses == ['ok', 'ok']
  for batch in batches:
    (row,), (slot,) = batch.row_B, batch.slot_B
    terms = sorted(term for term, _, _ in encoded[row].sequences[slot].spans)
    with pytest.raises(
      ValueError, match=re.escape(f'row {row}: {terms} was not scored')
    ):
      scored([b for b in batches if b is not batch])


def test_a_term_is_scored_once_and_over_the_tokens_of_its_like(folder):
  (row,) = rig.encoder(folder).encode(list(rig.samples(folder).iter_rows(0, 1)))
  sequences = [(row.row, slot, s) for slot, s in enumerate(row.sequences)]
  length = max(len(s.ids) for s in row.sequences)
  plan = batching.BatchPlan(((2, length),), 0.0, (), length, 1)
  (batch,) = batching.make_batches(sequences, plan)
  ones = {'nll_BS': np.ones((2, 2), np.float32)}

  window = window_lib.Window(0, range(1), [row], [batch], kinds.LIKELIHOODS)
  window.add(batch, ones)
  with pytest.raises(ValueError, match='row 0: term .* was scored twice'):
    window.add(batch, ones)

  # An encoder that has lost a token of the answer in one of the sequences.
  forward, *others = row.sequences
  (query, (term, start, stop)) = forward.spans
  short = dataclasses.replace(forward, spans=(query, (term, start, stop - 1)))
  wrong = dataclasses.replace(row, sequences=(short, *others))
  window = window_lib.Window(0, range(1), [wrong], [batch], kinds.LIKELIHOODS)
  window.add(batch, ones)
  size = stop - start
  words = f'row 0: the terms of n_a are over {size} and {size - 1} tokens'
  with pytest.raises(ValueError, match=words):
    window.columns('m', kinds.LIKELIHOODS)


def test_truncated_rows(folder, tmp_path):
  encoder = rig.encoder(folder, on_long='truncate_context', max_length=120)
  rig.score(folder, tmp_path / 'a', encode=encoder)
  got = read(tmp_path / 'a').to_pylist()
  cut = [r for r in got if r['status_m'] == 'truncated']
  assert cut and got[11]['status_m'] in ('truncated', 'too_long')
  for row in cut:
    assert row['reason_m'].startswith('answer cut to')
    assert row['n_a_m'] < 120 and row['nll_a_m'] > 0


def test_out_of_memory_halves_the_batches_and_goes_on(
  folder, table, tmp_path, monkeypatch, capsys
):
  """The device refuses batches of more than two rows, and then all."""
  real = programs_lib.Programs.run
  limit = [2]

  def small_device(self, tokens_BT, *rest):
    if len(tokens_BT) > limit[0]:
      raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory')
    return real(self, tokens_BT, *rest)

  monkeypatch.setattr(programs_lib.Programs, 'run', small_device)
  options = dataclasses.replace(rig.OPTIONS, progress=True)
  rig.score(folder, tmp_path / 'a', options=options)
  assert_close(read(tmp_path / 'a'), table)
  assert 'out of memory' in capsys.readouterr().out
  plan = json.loads((tmp_path / 'a' / 'plan.json').read_text())
  assert {r['origin'] for r in plan['runs']} == {'first', 'out of memory'}
  assert plan['runs'][-1]['tokens_per_batch'] < 256
  limit[0] = 0
  with pytest.raises(programs_lib.OutOfMemory, match=r'row \d+.*max_length'):
    rig.score(folder, tmp_path / 'b')


def test_batch_size_is_the_largest_that_fits(monkeypatch):
  programs = programs_lib.Programs(rig.model(rig.mesh()), rig.mesh())
  real = programs.memory((2, 16))
  size = sum(x.nbytes for x in jax.tree.leaves(programs._params))
  assert size < real < size + (1 << 20)  # parameters, and little else
  assert programs.memory_limit() > 1 << 28

  class Fake:
    platform, shards = 'cpu', 2

    def compile(self, shapes):
      for shape in shapes:
        self.memory(shape)

    def memory(self, shape):
      rows, length = shape
      if rows * length > 5000:
        raise programs_lib.OutOfMemory('the compiler says no')
      return rows * length

    def memory_limit(self):
      return limit

  def shapes(tokens):
    return [(max(tokens // t // 2, 1) * 2, t) for t in (300, 50)]

  limit = 2000
  assert programs_lib.fit(Fake(), shapes, 16384)[0] == 1024 * 2
  limit = 100
  with pytest.raises(programs_lib.OutOfMemory, match='300 tokens.*max_length'):
    programs_lib.fit(Fake(), shapes, 16384)
  assert programs_lib.fit(Fake(), lambda tokens: [], 0)[1] == 0


def test_the_compiler_knows_the_options_for_gpus():
  add = jax.jit(lambda x: x + 1).lower(jax.numpy.ones(3))
  add.compile(programs_lib._LOOPS_IN_GRAPHS)
  with pytest.raises(jax.errors.JaxRuntimeError, match='NO_SUCH'):
    add.compile({'xla_gpu_enable_command_buffer': 'NO_SUCH'})


def test_plan_is_printed_first(folder, tmp_path, capsys):
  result = scorer.plan(
    rig.samples(folder),
    rig.encoder(folder),
    name='m',
    options=rig.OPTIONS,
    platform='cpu',
  )
  text = capsys.readouterr().out
  assert 'm: 30 rows (empty 1, invalid 1, ok 27, too_long 1);' in text
  assert re.search(r'predicted padding \d+\.\d%', text)
  assert re.search(r'\d+x\d+: \d+', text)
  assert result['sequences'] == 54
  assert len(result['batches']['shapes']) <= 3
  options = dataclasses.replace(rig.OPTIONS, progress=True)
  rig.score(folder, tmp_path / 'a', options=options)
  out, err = capsys.readouterr()
  assert 'programs compiled in' in out and 'MiB per device' in out
  assert 'score m' in err and 'padding' in err and 'rows 30/30' in err


def test_no_rows_and_no_scorable_rows(tmp_path):
  for rows in (0, 1):
    where = tmp_path / str(rows)
    where.mkdir()
    rig.make(where, rows=1)
    text = '{"id": 1, "instruction": "x", "output": " "}\n' * rows
    if not rows:
      continue
    (where / 'in.jsonl').write_text(text)
    rig.samples_lib.prepare(
      rig.DataSource(str(where / 'in.jsonl'), columns={'id': 'id'}),
      where / 'samples',
    )
    summary = rig.score(where)
    assert summary['statuses'] == {'empty': 1}
    assert summary['programs'] == 0
    assert read(where / 'scores')['nll_q_m'].null_count == 1


def test_the_thread_that_works_ahead():
  assert list(progress.ahead(range(5))) == list(range(5))

  def failing():
    yield 1
    raise OSError('disk gone')

  ready = progress.ahead(failing())
  assert next(ready) == 1
  with pytest.raises(OSError, match='disk gone'):
    next(ready)
  made = []

  def endless():
    while True:
      made.append(1)
      yield 1

  ready = progress.ahead(endless())
  next(ready)
  ready.close()
  time.sleep(0.3)
  count = len(made)
  time.sleep(0.3)
  assert count == len(made) <= 4


ROOT = pathlib.Path(__file__).resolve().parent.parent


def start(folder, step):
  return subprocess.Popen(
    [sys.executable, 'tests/scoring_rig.py', str(folder), str(step)],
    cwd=ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    env={**os.environ, 'PYTHONPATH': str(ROOT)},  # installed or not
  )


def files_of(path):
  return {
    p.name: p.read_bytes() for p in path.iterdir() if not p.name.startswith('.')
  }


def test_killed_again_and_again_it_ends_bit_identical(
  folder, summary, tmp_path
):
  """kill -9 in mid-write, around renames, and from outside.

  Compared with the uninterrupted run of this process.
  """
  assert summary
  rig.make(tmp_path)
  for step in (2, 15, 21):
    process = start(tmp_path, step)
    _, err = process.communicate()
    assert process.returncode == -signal.SIGKILL, err
  for _ in range(3):
    process = start(tmp_path, 0)
    before = len(list((tmp_path / 'scores').glob('part-*')))
    while process.poll() is None:  # from outside, when there is one more part
      if len(list((tmp_path / 'scores').glob('part-*'))) > before:
        process.kill()
      time.sleep(0.005)
    _, err = process.communicate()
    if process.returncode != 0:
      break
    shutil.rmtree(tmp_path / 'scores')  # it was faster than the kill
  assert process.returncode == -signal.SIGKILL, err
  process = start(tmp_path, 0)
  out, err = process.communicate()
  assert 'finished' in out, err
  want, got = files_of(folder / 'scores'), files_of(tmp_path / 'scores')
  assert set(got) == set(want)
  for name in want:
    assert got[name] == want[name], name


def test_resumed_on_another_device_count(folder, table, tmp_path, monkeypatch):
  real = store.ScoreStore.write
  written = []

  def stop_after_two(self, index, *args):
    if len(written) == 2:
      raise KeyboardInterrupt
    written.append(index)
    real(self, index, *args)

  monkeypatch.setattr(store.ScoreStore, 'write', stop_after_two)
  with pytest.raises(KeyboardInterrupt):
    rig.score(folder, tmp_path / 'a')
  monkeypatch.setattr(store.ScoreStore, 'write', real)
  summary = rig.score(folder, tmp_path / 'a', on=rig.mesh(2, 2, 2))
  assert summary['windows_reused'] == 2
  assert_close(read(tmp_path / 'a'), table)
  plan = json.loads((tmp_path / 'a' / 'plan.json').read_text())
  assert [r['layout']['mesh']['tensor'] for r in plan['runs']] == [1, 2]
