"""Likelihoods: against plain computations, sharded, bounded, isolated.

A tiny Qwen2-shaped model with an odd vocabulary, so that the padded ids, the
blocks of the vocabulary and the tail chunks are all in play. Weights are
scaled up: near-uniform predictions would hide mistakes.
"""

import functools
import importlib.util
import json
import math
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_models
import tolerances
from flax import nnx
from scipy import special

from qaq_jax.models import decoder, sharding
from qaq_jax.models.hf import checkpoint
from qaq_jax.models.hf.read_config import read_config
from qaq_jax.scoring import head as head_lib
from qaq_jax.scoring import kinds, likelihood

VOCAB = 389  # padded to 512
ALL = (*kinds.LIKELIHOODS, kinds.EMBEDDING)
CHUNKS = head_lib.HeadChunks(rows=16, vocab=128)


def tiny_config(**changes):
  hf = dict(
    model_type='qwen2',
    vocab_size=VOCAB,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=512,
    rms_norm_eps=1e-6,
    rope_theta=10000.0,
    tie_word_embeddings=True,
    hidden_act='silu',
  )
  return read_config(hf | changes)


def tolerance(config, length=96):
  """Of log-probabilities and of their sums, which nothing cancels.

  What a token's is made of is about as large as that of a blind guess.
  """
  relative = tolerances.decoder(config, length)
  return dict(rtol=relative, atol=relative * math.log(config.vocab_size))


TOLERANCE = tolerance(tiny_config())


def tiny_model(mesh=None, config=None):
  model = decoder.Decoder(config or tiny_config(), rngs=nnx.Rngs(3), mesh=mesh)
  for _, value in nnx.iter_graph(model):
    if isinstance(value, nnx.Param) and value[...].ndim > 1:
      value[...] = value[...] * 4  # embeddings of 0.02 predict next to nothing
  return model


def make_batch(seed, lengths, width, *, pad=0):
  """Random rows of `lengths` in `width` columns, with two spans each."""
  rng = np.random.default_rng(seed)
  tokens = np.full((len(lengths), width), pad, np.int32)
  spans = np.zeros((len(lengths), 2, 2), np.int32)
  for b, n in enumerate(lengths):
    tokens[b, :n] = rng.integers(0, VOCAB, n)
    cuts = np.sort(rng.choice(np.arange(1, n), 4, replace=False))
    spans[b] = cuts.reshape(2, 2)
  return tokens, spans, np.asarray(lengths, np.int32)


@functools.cache
def _jitted(graphdef, chunks):
  return jax.jit(
    functools.partial(
      likelihood.batch_likelihood,
      graphdef,
      chunks=chunks,
      kinds=ALL,
      logp=True,
    )
  )


def run(model, tokens, spans, lengths, *, mesh=None, chunks=CHUNKS):
  graphdef, params = nnx.split(model)
  function = _jitted(graphdef, chunks)
  if mesh is None:
    return jax.device_get(function(params, tokens, spans, lengths))
  rows = jax.sharding.NamedSharding(
    mesh, jax.sharding.PartitionSpec(('data', 'fsdp'))
  )
  with jax.set_mesh(mesh):
    args = [jax.device_put(x, rows) for x in (tokens, spans, lengths)]
    return jax.device_get(function(params, *args))


@functools.cache
def _plain(graphdef):
  def logits(params, tokens):
    model = nnx.merge(graphdef, params)
    return model.logits(model(tokens))

  return jax.jit(logits)


def plain_logp(model, sequences):
  """Every token's log-probability, in float64, from whole logits [T, V].

  Always the one shape [8, 64], so that one program serves every test.
  """
  tokens = np.zeros((8, 64), np.int32)
  for b, sequence in enumerate(sequences):
    tokens[b, : len(sequence)] = sequence
  graphdef, params = nnx.split(model)
  logits = np.asarray(_plain(graphdef)(params, tokens), np.float64)
  logits = logits[:, :, :VOCAB]
  logp = logits - special.logsumexp(logits, axis=2, keepdims=True)
  return [
    logp[b, np.arange(len(s) - 1), s[1:]] for b, s in enumerate(sequences)
  ]


def expected(model, tokens, spans, lengths):
  nll = np.zeros(spans.shape[:2])
  rows = [row[:n] for row, n in zip(tokens, lengths, strict=True)]
  for b, logp in enumerate(plain_logp(model, rows)):
    for s, (start, stop) in enumerate(spans[b]):
      nll[b, s] = -logp[start - 1 : max(stop - 1, 0)].sum()
  return nll


LENGTHS = [60, 37, 8, 51, 22, 60, 9, 44]


@pytest.fixture(scope='module')
def model():
  return tiny_model()


@pytest.fixture(scope='module')
def batch():
  return make_batch(0, LENGTHS, 64)


@pytest.fixture(scope='module')
def result(model, batch):
  return run(model, *batch)


def test_equals_a_plain_computation(model, batch, result):
  want = expected(model, *batch)
  assert want.min() > 1  # the model is far from certain, and from uniform
  np.testing.assert_allclose(result['nll_BS'], want, **TOLERANCE)


def test_logp_is_zero_outside_the_spans_and_sums_to_nll(batch, result):
  tokens, spans, _ = batch
  logp = np.asarray(result['logp_BT'], np.float64)
  for b in range(len(tokens)):
    inside = np.zeros(tokens.shape[1], bool)
    for s, (start, stop) in enumerate(spans[b]):
      inside[start:stop] = True
      np.testing.assert_allclose(
        -logp[b, start:stop].sum(), result['nll_BS'][b, s], **TOLERANCE
      )
    assert (logp[b, ~inside] == 0).all()
    assert (logp[b, inside] < 0).all()


def test_no_span_is_zero_and_edges_are_scored(model):
  """Spans from token 1 to the end, one token long, adjacent, and absent."""
  tokens, _, lengths = make_batch(1, [64] * 8, 64)
  spans = np.zeros((8, 2, 2), np.int32)
  spans[0] = [[1, 64], [0, 0]]
  spans[1] = [[63, 64], [0, 0]]
  spans[2] = [[1, 8], [8, 64]]
  got = run(model, tokens, spans, lengths)
  np.testing.assert_allclose(
    got['nll_BS'], expected(model, tokens, spans, lengths), **TOLERANCE
  )
  assert (got['nll_BS'][3:] == 0).all()
  nothing = run(model, tokens, spans * 0, lengths)
  assert (nothing['nll_BS'] == 0).all()


def test_composition_bucket_and_order_do_not_matter(model, batch, result):
  """Other neighbours, other padding, other order, other chunk sizes."""
  tokens, spans, lengths = batch
  order = np.random.default_rng(5).permutation(len(lengths))
  wider = np.full((len(lengths), 96), 7, np.int32)  # other padding ids too
  wider[:, : tokens.shape[1]] = np.where(
    np.arange(tokens.shape[1]) < lengths[:, None], tokens, 7
  )
  alone = run(model, tokens[:1, :60], spans[:1], lengths[:1])
  for got, want in (
    (
      run(model, tokens[order], spans[order], lengths[order]),
      {k: v[order] for k, v in result.items()},
    ),
    (run(model, wider, spans, lengths), result),
    (run(model, *batch, chunks=head_lib.HeadChunks(67, 200)), result),
    (alone, {k: v[:1] for k, v in result.items()}),
  ):
    np.testing.assert_allclose(got['nll_BS'], want['nll_BS'], **TOLERANCE)
    np.testing.assert_allclose(
      got['embedding_BD'].astype(np.float32),
      want['embedding_BD'].astype(np.float32),
      atol=2 * tolerances.FLOAT16,
    )


def test_one_reading_of_the_logits_equals_two(model, batch, result):
  """What GPUs do; the last blocks of 64 ids are nothing but padding."""
  chunks = head_lib.HeadChunks(16, 64, one_pass=True)
  got = run(model, *batch, chunks=chunks)
  np.testing.assert_allclose(got['nll_BS'], result['nll_BS'], **TOLERANCE)
  np.testing.assert_allclose(got['logp_BT'], result['logp_BT'], **TOLERANCE)

  broken = tiny_model()
  broken.final_norm_scale[...] = broken.final_norm_scale[...].at[0].set(np.nan)
  assert not np.isfinite(run(broken, *batch, chunks=chunks)['nll_BS']).any()


def test_two_sequences_equal_four_separate_passes(model):
  """NLL(Q) of [head Q mid A] is that of [head Q] alone: nothing looks ahead."""
  rng = np.random.default_rng(8)
  head, mid, query, answer, other = (
    rng.integers(0, VOCAB, n).astype(np.int32) for n in (5, 4, 11, 23, 6)
  )

  def pieces(*parts):
    ends = np.cumsum([len(p) for p in parts])
    return np.concatenate(parts), ends

  forward, f = pieces(head, query, mid, answer)
  reverse, r = pieces(head, other, answer, mid, query)
  tokens = np.zeros((8, 64), np.int32)
  tokens[0, : len(forward)], tokens[1, : len(reverse)] = forward, reverse
  spans = np.zeros((8, 2, 2), np.int32)
  spans[0] = [[f[0], f[1]], [f[2], f[3]]]
  spans[1] = [[r[1], r[2]], [r[3], r[4]]]
  lengths = np.zeros(8, np.int32)
  lengths[:2] = len(forward), len(reverse)
  got = run(model, tokens, spans, lengths)['nll_BS']
  passes = (forward[: f[1]], forward, reverse[: r[2]], reverse)
  q, a_given_q, a, q_given_a = (
    -logp[-n:].sum()
    for logp, n in zip(plain_logp(model, passes), (11, 23, 23, 11), strict=True)
  )
  np.testing.assert_allclose(
    got[:2], [[q, a_given_q], [a, q_given_a]], **TOLERANCE
  )
  # And by the scorer itself: the query without what followed it.
  tokens[0, f[1] :] = 0
  spans[0, 1] = 0
  again = run(model, tokens, spans, lengths)['nll_BS']
  np.testing.assert_allclose(again[0, 0], got[0, 0], **TOLERANCE)
  assert again[0, 1] == 0


def test_two_sequences_equal_four_passes_of_transformers(tmp_path):
  """Each term from a pass of its own through another program's model.

  Where torch is missing, against the sums that it gave elsewhere, which the
  torch column checks too. After a change of the case, rewrite them with
  QAQ_WRITE_REFERENCE=1.
  """
  model = checkpoint.load(
    tiny_models.write('qwen2', tmp_path / 'm'), mesh=None, dtype=jnp.float32
  )
  rng = np.random.default_rng(11)
  tokens, spans = np.zeros((8, 64), np.int32), np.zeros((8, 2, 2), np.int32)
  lengths = np.zeros(8, np.int32)
  passes = np.zeros((16, 64), np.int32)
  for b in range(8):  # a sequence: head, first, middle, second
    sizes = rng.integers((3, 2, 1, 2), (8, 24, 6, 26))
    ends = np.cumsum(sizes)
    tokens[b, : ends[3]] = rng.integers(0, 211, ends[3])
    spans[b] = [[ends[0], ends[1]], [ends[2], ends[3]]]
    lengths[b] = ends[3]
    passes[2 * b, : ends[1]] = tokens[b, : ends[1]]
    passes[2 * b + 1] = tokens[b]
  got = run(model, tokens, spans, lengths)['nll_BS'].ravel()

  reference = pathlib.Path(__file__).parent / 'reference' / 'four_passes.json'
  want = None
  if importlib.util.find_spec('torch'):
    logp = tiny_models.torch_logp(tmp_path / 'm', passes)
    want = [
      -float(logp[i, start - 1 : stop - 1].astype(np.float64).sum())
      for i, (start, stop) in enumerate(spans.reshape(16, 2))
    ]
    np.testing.assert_allclose(got, want, **tolerance(model.config))
    if os.environ.get('QAQ_WRITE_REFERENCE'):
      reference.write_text(json.dumps([round(x, 5) for x in want]) + '\n')
  np.testing.assert_allclose(
    got, json.loads(reference.read_text()), **tolerance(model.config)
  )


@pytest.mark.parametrize(
  'changes',
  [
    dict(tie_word_embeddings=False),
    dict(
      model_type='gemma2',
      head_dim=8,
      final_logit_softcapping=3.0,
      attn_logit_softcapping=50.0,
      query_pre_attn_scalar=8,
      sliding_window=64,
      hidden_activation='gelu_pytorch_tanh',
    ),
  ],
  ids=['own head', 'soft cap'],
)
def test_other_heads(changes, batch):
  model = tiny_model(config=tiny_config(**changes))
  got = run(model, *batch)['nll_BS']
  np.testing.assert_allclose(got, expected(model, *batch), **TOLERANCE)


@pytest.mark.parametrize('sizes', [(2, 2, 2), (1, 2, 4)], ids=str)
def test_sharded_equals_unsharded(sizes, batch, result):
  mesh = sharding.make_mesh(*sizes)
  model = tiny_model(mesh)
  got = run(model, *batch, mesh=mesh)
  np.testing.assert_allclose(got['nll_BS'], result['nll_BS'], **TOLERANCE)
  np.testing.assert_allclose(got['logp_BT'], result['logp_BT'], **TOLERANCE)
  np.testing.assert_allclose(
    got['embedding_BD'].astype(np.float32),
    result['embedding_BD'].astype(np.float32),
    atol=2 * tolerances.FLOAT16,
  )


def test_not_finite_stays_in_its_row(batch, result):
  """A poisoned embedding spoils the rows that hold its token, no others."""
  tokens, spans, lengths = batch
  model = tiny_model(config=tiny_config(tie_word_embeddings=False))
  want = run(model, *batch)['nll_BS']
  bad = int(tokens[2, 0])
  holds = (tokens == bad) & (np.arange(tokens.shape[1]) < lengths[:, None])
  assert 0 < holds.any(1).sum() < len(tokens)
  model.embedding[...] = model.embedding[...].at[bad].set(jnp.nan)
  got = run(model, *batch)['nll_BS']
  clean = ~holds.any(1)
  assert np.isnan(got[2]).all()
  np.testing.assert_array_equal(got[clean], want[clean])


def test_embedding_is_the_weighted_mean_of_the_last_layer(model, batch, result):
  tokens, _, lengths = batch
  hidden = np.asarray(model(jnp.asarray(tokens)), np.float64)
  for b, n in enumerate(lengths):
    mean = (hidden[b, :n] * np.arange(1, n + 1)[:, None]).sum(0)
    np.testing.assert_allclose(
      result['embedding_BD'][b].astype(np.float64),
      mean / np.linalg.norm(mean),
      atol=tolerances.FLOAT16,
    )
  assert result['embedding_BD'].dtype == np.float16


def test_temporary_memory_does_not_grow_with_vocabulary_times_length():
  """The head's, compiled: less than one [B, T, V] float32 by far.

  Four times the vocabulary and four times the length may each add what is
  linear in them (positions, ids), not their product.
  """

  def temporary(vocab, length, rows=4):
    config = tiny_config(vocab_size=vocab)
    model = decoder.Decoder(config, rngs=None)
    shapes = [
      jax.ShapeDtypeStruct((rows, length, config.hidden_size), jnp.float32),
      jax.ShapeDtypeStruct((rows, length), jnp.int32),
      jax.ShapeDtypeStruct((rows, 2, 2), jnp.int32),
    ]
    graphdef, params = nnx.split(model)

    def logp(params, hidden, tokens, spans):
      model = nnx.merge(graphdef, params)
      return head_lib.scored_logp(
        model,
        hidden,
        tokens,
        spans,
        head_lib.HeadChunks.for_platform('cpu'),
      )

    compiled = jax.jit(logp).lower(params, *shapes).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  small = temporary(8192, 256)
  both = temporary(32768, 1024)
  whole = 4 * 4 * 1024 * 32768  # bytes of [B, T, V]
  print(f'head: {small / 2**20:.1f} MiB, {both / 2**20:.1f} MiB')
  assert both < whole / 50
  assert both - small < 4 * 2**20
  assert temporary(32768, 256) < small * 1.5


def test_unscored_positions_cost_no_head(model):
  """Chunks run only for scored positions: counted by a debug callback."""
  calls = []
  head = head_lib._Head(
    head_lib.HeadChunks(16, 512), VOCAB, None, None, None, ()
  )

  class Counting(head_lib._Head):
    def _chunk(self, hidden_CD, target_C, table_VD):
      jax.debug.callback(lambda n: calls.append(int(n)), hidden_CD.shape[0])
      return head_lib._Head._chunk(self, hidden_CD, target_C, table_VD)

  counting = Counting(
    **{f: getattr(head, f) for f in head.__dataclass_fields__}
  )
  tokens, spans, _ = make_batch(2, [64] * 4, 64)
  spans[:] = 0
  spans[0, 0] = (1, 39)  # 38 positions: 3 chunks of 16
  hidden = model(jnp.asarray(tokens))
  jax.block_until_ready(
    jax.jit(counting)(hidden, tokens, spans, model.embedding[...])
  )
  jax.effects_barrier()
  assert calls == [16, 16, 16]  # not 16, as for all 256 positions
