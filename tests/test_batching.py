"""Batches: every sequence once, whole, in planned shapes, little padding."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qaq_jax.encoding.sequences import Sequence
from qaq_jax.scoring import shapes as shapes_lib
from qaq_jax.scoring.batching import BatchPlan, make_batches, plan_shapes


def items_of(lengths, rng=None):
  """Two sequences per row, with ids and spans that can be told apart."""
  items = []
  for i, n in enumerate(lengths):
    spans = (('a', 1, n),) if n > 1 else ()
    if n > 6:
      spans = (('a', 1, 3), ('b', 4, n))
    items.append(
      (
        i // 2,
        i % 2,
        Sequence('forward', np.full(n, i + 1, np.int32), spans),
      )
    )
  if rng is not None:
    rng.shuffle(items)
  return items


def histogram(lengths):
  return np.bincount(np.asarray(lengths, np.int64))


def natural(n, seed=0):
  """Lengths as instruction data has them: a bulk and a long tail."""
  rng = np.random.default_rng(seed)
  return np.clip(rng.lognormal(4.8, 0.45, n), 20, 900).astype(int)


plans = st.fixed_dictionaries(
  {
    'max_shapes': st.integers(1, 24),
    'tokens_per_batch': st.integers(1, 4096),
    'multiple': st.sampled_from([1, 16, 128]),
    'rows_multiple': st.sampled_from([1, 2, 8]),
    'window': st.sampled_from([None, 1, 16, 100]),
  }
)


@settings(max_examples=150, deadline=None)
@given(
  lengths=st.lists(st.integers(1, 600), max_size=80),
  options=plans,
  seed=st.integers(0, 9),
)
def test_every_sequence_once_whole_and_in_planned_shapes(
  lengths, options, seed
):
  plan = plan_shapes(histogram(lengths), **options)
  assert len(plan.shapes) <= options['max_shapes']
  assert len(set(plan.shapes)) == len(plan.shapes)
  for rows, length in plan.shapes:
    assert length % options['multiple'] == 0
    assert rows % options['rows_multiple'] == 0
    assert rows * length <= max(
      options['tokens_per_batch'], options['rows_multiple'] * length
    )
  items = items_of(lengths, np.random.default_rng(seed))
  batches = make_batches(items, plan)
  seen = {}
  for batch in batches:
    rows, length = plan.shapes[batch.shape_index]
    assert batch.tokens_BT.shape == (rows, length)
    assert batch.spans_B22.shape == (rows, 2, 2)
    assert batch.tokens_BT.dtype == batch.spans_B22.dtype == np.int32
    assert (batch.row_B >= 0).any()
    for i in range(rows):
      n = batch.lengths_B[i]
      assert not batch.tokens_BT[i, n:].any()
      if batch.row_B[i] < 0:
        assert n == 0 and not batch.spans_B22[i].any()
        assert batch.slot_B[i] == -1
      else:
        key = int(batch.row_B[i]), int(batch.slot_B[i])
        assert key not in seen
        seen[key] = (
          batch.tokens_BT[i, :n].tolist(),
          batch.spans_B22[i].tolist(),
        )
  assert len(seen) == len(items)
  for row, slot, sequence in items:
    tokens, spans = seen[row, slot]
    assert tokens == sequence.ids.tolist()
    expected = [[a, b] for _, a, b in sequence.spans]
    assert spans == expected + [[0, 0]] * (2 - len(expected))


@settings(max_examples=40, deadline=None)
@given(
  lengths=st.lists(st.integers(1, 300), min_size=1, max_size=60), options=plans
)
def test_order_of_the_input_does_not_matter(lengths, options):
  plan = plan_shapes(histogram(lengths), **options)
  assert plan == plan_shapes(histogram(lengths), **options)
  one = make_batches(items_of(lengths), plan)
  two = make_batches(items_of(lengths, np.random.default_rng(1)), plan)
  assert len(one) == len(two)
  for a, b in zip(one, two, strict=True):
    assert a.shape_index == b.shape_index
    np.testing.assert_array_equal(a.tokens_BT, b.tokens_BT)
    np.testing.assert_array_equal(a.row_B, b.row_B)


@settings(max_examples=40, deadline=None)
@given(
  lengths=st.lists(st.integers(1, 60), min_size=1, max_size=9),
  shapes=st.lists(
    st.tuples(st.integers(1, 4), st.integers(1, 60)), min_size=1, max_size=4
  ),
)
def test_batches_are_cut_with_the_least_padding(lengths, shapes):
  """Against trying every way of cutting."""
  shapes = sorted({*shapes, (2, 60)}, key=lambda s: (-s[1], -s[0]))
  ordered = sorted(lengths, reverse=True)

  def least(at):
    if at >= len(ordered):
      return 0
    return min(r * t + least(at + r) for r, t in shapes if t >= ordered[at])

  plan = BatchPlan(tuple(shapes), 0.0, (), 1, 1)
  batches = make_batches(items_of(lengths), plan)
  assert sum(b.tokens_BT.size for b in batches) == least(0)


@pytest.mark.parametrize('rows', [500, 4000])
@pytest.mark.parametrize('tokens_per_batch', [2048, 8192])
def test_padding_stays_below_five_percent(rows, tokens_per_batch):
  lengths = natural(2 * rows)
  plan = plan_shapes(
    histogram(lengths), tokens_per_batch=tokens_per_batch, window=2048
  )
  items = items_of(lengths)
  batches = []
  for start in range(0, len(items), 2048):
    batches += make_batches(items[start : start + 2048], plan)
  assert len(plan.shapes) <= 24
  real = sum(b.lengths_B.sum() for b in batches)
  waste = 1 - real / sum(b.tokens_BT.size for b in batches)
  assert waste <= 0.05
  assert abs(waste - plan.waste) < 0.01


def test_more_shapes_pad_less():
  lengths = natural(2000)
  wastes = [
    plan_shapes(histogram(lengths), tokens_per_batch=4096, max_shapes=k).waste
    for k in (1, 4, 12, 24)
  ]
  assert wastes == sorted(wastes, reverse=True) and wastes[0] > 2 * wastes[-1]


def test_lengths_are_multiples_on_request():
  plan = plan_shapes(
    histogram(natural(1000)),
    tokens_per_batch=8192,
    multiple=128,
    rows_multiple=8,
  )
  assert all(r % 8 == 0 and t % 128 == 0 for r, t in plan.shapes)


def test_a_window_that_the_plan_did_not_see_still_fits():
  plan = plan_shapes(histogram(natural(4000)), tokens_per_batch=4096)
  longest = plan.shapes[0][1]
  batches = make_batches(items_of([longest] * 50 + [1]), plan)
  assert sum((b.row_B >= 0).sum() for b in batches) == 51
  with pytest.raises(ValueError, match=rf'row 0.*{longest + 1} tokens'):
    make_batches(items_of([longest + 1]), plan)


def test_empty_and_bad_arguments():
  plan = plan_shapes([], tokens_per_batch=100)
  assert plan.shapes == () and make_batches([], plan) == []
  for name in ('max_shapes', 'tokens_per_batch', 'multiple', 'rows_multiple'):
    with pytest.raises(ValueError, match=name):
      plan_shapes([0, 1], **{'tokens_per_batch': 1, name: 0})


def test_plan_survives_json():
  plan = plan_shapes({10: 5, 700: 2, 33: 1}, tokens_per_batch=512)
  assert BatchPlan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


def test_many_lengths_are_thinned_but_the_longest_stays(monkeypatch):
  monkeypatch.setattr(shapes_lib, '_MAX_CANDIDATES', 8)
  lengths = np.arange(1, 1000)
  plan = plan_shapes(histogram(lengths), tokens_per_batch=4096)
  assert plan.shapes[0][1] == 999
