"""Examples -> batches: nothing lost, nothing doubled, order a function."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qaq_jax.encoding.examples import Example
from qaq_jax.finetune import batches, options, packing

# Tokens per sample of a code instruction set are about log-normal: median 350,
# a tenth above 1,100.
_LIKE_REAL = np.clip(
  np.random.default_rng(0).lognormal(np.log(350), 0.9, 2048), 20, 2048
).astype(int)


def _examples(sizes, seed=0):
  rng = np.random.default_rng(seed)
  return [
    Example(
      rng.integers(1, 1000, size).astype(np.int32),
      rng.uniform(0.5, 2, size).astype(np.float32),
      row,
    )
    for row, size in enumerate(sizes)
  ]


def _found(micros):
  """Every segment in the micro-batches: its ids -> its weights."""
  out = []
  for micro in micros:
    tokens, segments = micro['tokens'], micro['segment_ids']
    for row in range(len(tokens)):
      used = int((segments[row] > 0).sum())
      assert not segments[row, used:].any() and not tokens[row, used:].any()
      assert not micro['weights'][row, used:].any()
      numbers = segments[row, :used]
      assert list(np.unique(numbers)) == list(
        range(1, numbers.max(initial=0) + 1)
      )
      assert (np.diff(numbers) >= 0).all()
      for number in np.unique(numbers):
        at = segments[row] == number
        out.append((tokens[row][at], micro['weights'][row][at]))
  return out


@given(
  st.lists(st.integers(2, 64), min_size=1, max_size=60),
  st.sampled_from(options.PACKING),
  st.integers(1, 300),
  st.integers(1, 4),
)
@settings(max_examples=60, deadline=None)
def test_every_example_is_laid_out_once(sizes, kind, tokens, shards):
  examples = _examples(sizes)
  layout = batches.Layout(
    64,
    kind,
    tokens_per_device=tokens,
    shards=shards,
    batch_size=len(examples),
  )
  micros = layout.lay_out(examples)
  shapes = {m['tokens'].shape for m in micros}
  assert shapes <= set(layout.shapes)
  assert not any(rows % shards for rows, _ in shapes)
  found = _found(micros)
  assert len(found) == len(examples)
  key = lambda pair: (len(pair[0]), pair[0].tolist())
  wanted = sorted([(e.ids, e.weights) for e in examples], key=key)
  for (ids, weights), (want, its) in zip(
    sorted(found, key=key), wanted, strict=True
  ):
    np.testing.assert_array_equal(ids, want)
    assert weights[0] == 0  # not a target
    np.testing.assert_array_equal(weights[1:], its[1:])


@given(st.lists(st.integers(1, 50), max_size=80), st.integers(50, 70))
def test_first_fit_decreasing(sizes, capacity):
  rows = packing.first_fit_decreasing(sizes, capacity)
  assert sorted(i for row in rows for i in row) == list(range(len(sizes)))
  filled = [sum(sizes[i] for i in row) for row in rows]
  assert all(0 < f <= capacity for f in filled)
  # No two rows could be one; that also bounds their number by twice the best.
  assert all(
    filled[i] + min(sizes[k] for k in rows[j]) > capacity
    for j in range(len(rows))
    for i in range(j)
  )
  assert rows == packing.first_fit_decreasing(sizes, capacity)


def test_sequence_that_fits_no_row_is_an_error():
  with pytest.raises(ValueError, match='9 tokens.*rows of 8'):
    packing.first_fit_decreasing([3, 9], 8)


def test_density_on_lengths_as_real_ones(capsys):
  examples = _examples(_LIKE_REAL)
  density = {}
  for kind in options.PACKING:
    layout = batches.Layout(2048, kind, tokens_per_device=8192, batch_size=512)
    micros = layout.lay_out(examples[:512])
    density[kind] = sum(len(e.ids) for e in examples[:512]) / sum(
      m['tokens'].size for m in micros
    )
  with capsys.disabled():
    print('\nshare of real tokens, batches of 512:', density)
  assert density['packed'] > 0.97
  assert density['padded'] > 0.75
  small = batches.Layout(2048, 'packed', tokens_per_device=2048, batch_size=16)
  rows = [
    m for i in range(16) for m in small.lay_out(examples[16 * i : 16 * i + 16])
  ]
  assert sum(_LIKE_REAL[:256]) / sum(m['tokens'].size for m in rows) > 0.75


def test_shapes_do_not_depend_on_the_data():
  layout = batches.Layout(512, 'padded', tokens_per_device=1024, batch_size=64)
  assert layout.shapes == (
    (16, 64),
    (8, 128),
    (5, 192),
    (4, 256),
    (2, 384),
    (2, 512),
  )
  assert batches.Layout(512, 'packed', 1024, 4, 64).shapes == ((8, 512),)
  # Never more rows than examples of a batch.
  assert batches.Layout(512, 'packed', 65536, 4, 6).shapes == ((8, 512),)
  assert batches.Layout(20, 'padded', 64, 1, 6).shapes == (
    (6, 8),
    (4, 16),
    (3, 20),
  )


def test_order_is_a_function_of_seed_and_epoch():
  def epoch(seed, number):
    return np.concatenate(
      [
        batches.indices(50, 16, seed=seed, step=4 * number + i)
        for i in range(4)
      ]
    ).tolist()

  first = epoch(0, 0)
  assert sorted(first) == list(range(50))
  assert epoch(0, 0) == first != epoch(0, 1) != epoch(1, 1)
  assert sorted(epoch(3, 7)) == list(range(50))


def test_last_batch_of_an_epoch_is_kept_and_batches_start_anywhere():
  examples = _examples(np.full(50, 8))
  layout = batches.Layout(16, tokens_per_device=32, batch_size=16)
  whole = list(batches.batches(examples, layout, seed=1, first=0, last=8))
  assert [len(b.rows) for b in whole] == [16, 16, 16, 2] * 2
  assert [b.step for b in whole] == list(range(1, 9))
  assert {b.tokens for b in whole} == {128, 16}
  part = list(batches.batches(examples, layout, seed=1, first=5, last=8))
  for a, b in zip(part, whole[5:], strict=True):
    assert a.rows == b.rows
    for x, y in zip(a.micros, b.micros, strict=True):
      for name in x:
        np.testing.assert_array_equal(x[name], y[name])


@pytest.mark.parametrize(
  'options, message',
  [
    ({'packing': 'boxed'}, 'packed'),
    ({'tokens_per_device': 0}, 'at least 1'),
  ],
)
def test_impossible_layouts_are_refused(options, message):
  with pytest.raises(ValueError, match=message):
    batches.Layout(16, **options)
