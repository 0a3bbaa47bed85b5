"""Generation: transformers' tokens, in any batch, layout and mesh.

Greedy tokens must equal those of transformers' `generate` one by one, without
exception. So that this says something on every machine, the largest logit must
lead by MARGIN in each step of the reference: ten times the difference between
two ways of rounding. Where it doesn't, the prompts are to be replaced.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_models
import tiny_tokenizers
import tolerances
from flax import nnx
from safetensors.numpy import load_file, save_file

from qaq_jax.encoding import tokenization
from qaq_jax.generation.generate import Generator, Sampling
from qaq_jax.models import cache as cache_lib
from qaq_jax.models import sharding, unrolled
from qaq_jax.models.hf import checkpoint
from qaq_jax.models.hf.read_config import read_config

SLOW = ('gemma', 'llama_linear', 'qwen2_yarn')  # each has a near relative
CASES = [
  pytest.param(c, marks=pytest.mark.slow) if c in SLOW else c
  for c in sorted(tiny_models.CASES)
]
LENGTHS = (3, 17, 48, 60)  # of prompts; windows are 23 to 41 tokens
NEW = 40
MARGIN = 1e-4
SEED = {'qwen3_moe': 6}  # of prompts: 5 gives a lead of 8e-5
# Of test models whose tied, scaled embedding would only repeat the last token.
EMBEDDING_SCALE = {
  'gemma': 0.1,
  'gemma2': 0.05,
  'gemma3': 0.05,
  'starcoder2': 0.3,
  'gpt2': 0.5,
}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """Returns a function: case -> its checkpoint."""
  root = tmp_path_factory.mktemp('checkpoints')

  @functools.cache
  def make(case: str):
    directory = tiny_models.write(case, root / case)
    data = load_file(directory / 'model.safetensors')
    for name in data:
      if 'embed' in name or '.wte.' in name:
        data[name] = data[name] * EMBEDDING_SCALE.get(case, 1)
    save_file(data, directory / 'model.safetensors', {'format': 'pt'})
    return directory

  return make


def prompts_of(case, lengths=LENGTHS):
  rng = np.random.default_rng(SEED.get(case, 5))
  vocab = tiny_models.CASES[case]['vocab_size']
  return [rng.integers(0, vocab, n).astype(np.int32) for n in lengths]


@functools.cache
def model_of(directory, dtype=jnp.float32, sizes=None):
  return checkpoint.load(directory, mesh=mesh_of(sizes), dtype=dtype)


@functools.cache
def mesh_of(sizes):
  if sizes is None:
    return None
  count = int(np.prod(sizes))
  return sharding.make_mesh(*sizes, devices=jax.devices()[:count])


def generator(directory, *, sizes=None, dtype=jnp.float32, **options):
  options = {
    'max_new_tokens': NEW,
    'batch_size': 4,
    'chunk': 16,
    'prompt_lengths': (64,),
  } | options
  return Generator(
    model_of(directory, dtype, sizes), mesh=mesh_of(sizes), **options
  )


def torch_greedy(directory, prompt, new=NEW, **options):
  """transformers' tokens of one prompt, and its least lead of a logit."""
  torch = pytest.importorskip('torch')
  import transformers

  transformers.utils.logging.disable_progress_bar()
  model = transformers.AutoModelForCausalLM.from_pretrained(
    directory, dtype=torch.float32
  )
  ids = torch.tensor(prompt[None], dtype=torch.long)
  options = {'eos_token_id': None, 'pad_token_id': 0} | options
  with torch.inference_mode():
    out = model.generate(
      ids,
      attention_mask=torch.ones_like(ids),
      do_sample=False,
      max_new_tokens=new,
      output_logits=True,
      return_dict_in_generate=True,
      **options,
    )
  best = torch.cat(out.logits).topk(2, dim=-1).values
  lead = float((best[:, 0] - best[:, 1]).min())
  return out.sequences[0, len(prompt) :].numpy(), lead


def hidden_states(model, tokens_BT):
  graphdef, params = nnx.split(model)
  return jax.jit(lambda p, x: nnx.merge(graphdef, p)(x))(params, tokens_BT)


@pytest.mark.parametrize('case', CASES)
def test_greedy_equals_transformers(folder, case):
  """Prompts of four lengths in one batch; each alone in the reference."""
  directory = folder(case)
  prompts = prompts_of(case)
  ours = generator(directory).generate(prompts)
  different = set()
  for prompt, generation in zip(prompts, ours, strict=True):
    theirs, lead = torch_greedy(directory, prompt)
    assert lead > MARGIN, 'choose other prompts'
    np.testing.assert_array_equal(generation.ids, theirs)
    assert generation.finish_reason == 'length'
    different.update(generation.ids.tolist())
  assert len(different) > 10  # not one token again and again


@pytest.mark.parametrize('case', ['gemma3', 'gpt2'])
def test_neighbours_and_padding_change_nothing(folder, case):
  """Alone and not padded; padded further; stacked in another order."""
  directory = folder(case)
  prompts = prompts_of(case)
  expected = [g.ids for g in generator(directory).generate(prompts)]
  alone = generator(directory, batch_size=1, prompt_lengths=LENGTHS)
  for prompt, ids in zip(prompts, expected, strict=True):
    np.testing.assert_array_equal(alone.generate([prompt])[0].ids, ids)
  padded = generator(directory, prompt_lengths=(128,), chunk=7)
  for generation, ids in zip(
    padded.generate(prompts[::-1]), expected[::-1], strict=True
  ):
    np.testing.assert_array_equal(generation.ids, ids)


@pytest.mark.parametrize('case', ['gemma2', 'gpt2'])
def test_cached_steps_of_stacked_layers(case):
  """A decoder that is not unrolled too has the hidden states of the whole."""
  model = checkpoint.random_init(
    read_config(tiny_models.hf_config(case)), mesh=None
  )
  text_BT = jnp.asarray(tiny_models.tokens(case)[:2, :70])
  graphdef, params = nnx.split(model)
  whole_BTD = hidden_states(model, text_BT)
  near = tolerances.near(model.config, 70, whole_BTD)

  @jax.jit
  def step(params, tokens_BT, segments_BT, cache):
    return nnx.merge(graphdef, params)(
      tokens_BT, None, segments_BT, cache=cache
    )

  padding = (0, 9)
  prompt = np.zeros((2, 50), np.int32)
  segments = np.zeros((2, 50), np.int32)
  for row, pad in enumerate(padding):
    prompt[row, pad:] = text_BT[row, : 50 - pad]
    segments[row, pad:] = 1
  cache = cache_lib.empty(
    model.config, 2, 64, dtype=jnp.float32, rules=model.rules
  )
  hidden, cache = step(params, prompt, segments, cache)
  for row, pad in enumerate(padding):
    np.testing.assert_allclose(
      hidden[row, pad:], whole_BTD[row, : 50 - pad], **near
    )
  for at in range(50, 60):
    next_B1 = np.array([[text_BT[r, at - p]] for r, p in enumerate(padding)])
    hidden, cache = step(params, next_B1, None, cache)
    for row, pad in enumerate(padding):
      np.testing.assert_allclose(
        hidden[row, 0], whole_BTD[row, at - pad], **near
      )


MESHES = [('qwen2', (2, 2, 2))]
SLOW_MESHES = [
  ('qwen3', (1, 1, 8)),
  ('gpt2', (1, 2, 4)),
  ('llama', (8, 1, 1)),
  ('gemma2', (1, 8, 1)),
  ('gemma3', (4, 1, 2)),
]


@pytest.mark.parametrize(
  'case, sizes',
  [*MESHES, *(pytest.param(*m, marks=pytest.mark.slow) for m in SLOW_MESHES)],
)
def test_meshes_give_the_same_tokens(folder, case, sizes):
  """qwen2 has 14/2 heads; qwen3 has fewer key/value heads than devices."""
  directory = folder(case)
  prompts = prompts_of(case)
  options = Sampling(temperature=0.8, top_p=0.9, top_k=50)
  expected = generator(directory).generate(prompts, options)
  ours = generator(directory, sizes=sizes).generate(prompts, options)
  for a, b in zip(ours, expected, strict=True):
    np.testing.assert_array_equal(a.ids, b.ids)


def test_samples_depend_on_their_own_seed_alone(folder):
  directory = folder('llama')
  options = Sampling(temperature=1.0, top_p=0.95, seed=4)
  prompts = prompts_of('llama', (12, 30, 5, 44, 21, 9))
  seeds = [3, 1, 4, 1, 5, 2**40]
  one = generator(directory)
  expected = [g.ids for g in one.generate(prompts, options, seeds=seeds)]
  order = [4, 0, 5, 2]
  some = one.generate(
    [prompts[i] for i in order], options, seeds=[seeds[i] for i in order]
  )
  for i, generation in zip(order, some, strict=True):
    np.testing.assert_array_equal(generation.ids, expected[i])
  same = one.generate([prompts[0]] * 4, options, seeds=[3, 6, 3, 7])
  np.testing.assert_array_equal(same[0].ids, expected[0])
  np.testing.assert_array_equal(same[2].ids, expected[0])
  assert (same[1].ids != same[3].ids).any()
  other = dataclasses.replace(options, seed=5)
  again = one.generate(prompts, other, seeds=seeds)
  assert all((a.ids != b).any() for a, b in zip(again, expected, strict=True))
  # Unless told otherwise, a prompt's seed is its number.
  numbered = one.generate(prompts, options, seeds=range(6))
  for a, b in zip(one.generate(prompts, options), numbered, strict=True):
    np.testing.assert_array_equal(a.ids, b.ids)


def test_first_tokens_follow_the_softmax(folder):
  """Chi-square of 1,024 samples after one prompt; bound as in test_sampling."""
  directory = folder('qwen2')
  [prompt] = prompts_of('qwen2', (20,))
  model = model_of(directory)
  logits_V = model.logits(hidden_states(model, prompt[None])[0, -1])
  p_V = np.asarray(jax.nn.softmax(logits_V / 1.5))
  one = generator(
    directory, max_new_tokens=1, batch_size=256, prompt_lengths=(20,)
  )
  found = one.generate([prompt] * 1024, Sampling(temperature=1.5, top_p=1.0))
  seen_V = np.bincount([g.ids[0] for g in found], minlength=len(p_V))
  often = p_V * 1024 >= 5
  assert often.sum() > 20
  expected = np.append(p_V[often], p_V[~often].sum()) * 1024
  seen = np.append(seen_V[often], seen_V[~often].sum())
  square = ((seen - expected) ** 2 / expected).sum()
  freedom = len(seen) - 1
  assert square <= freedom + 5 * (2 * freedom) ** 0.5


def test_stop_tokens_end_their_row_alone(folder):
  """As transformers' rows with that token as EOS, which it keeps too."""
  directory = folder('mistral')
  prompts = prompts_of('mistral')
  free = generator(directory).generate(prompts)
  stop = [int(free[0].ids[5]), int(free[2].ids[20])]
  ours = generator(directory).generate(prompts, stop_ids=stop)
  lengths = set()
  for prompt, generation in zip(prompts, ours, strict=True):
    theirs, _ = torch_greedy(directory, prompt, eos_token_id=stop)
    np.testing.assert_array_equal(generation.ids, theirs)
    ended = generation.ids[-1] in stop
    assert generation.finish_reason == ('stop' if ended else 'length')
    lengths.add(len(generation.ids))
  assert len(lengths) > 2


@pytest.fixture(scope='module')
def talker(tmp_path_factory):
  """A tokenizer and a random model that writes its tokens."""
  folder = tiny_tokenizers.make(tmp_path_factory.mktemp('talker'), 'qwen')
  tokenizer = tokenization.load(folder)
  config = read_config(
    tiny_models.hf_config('llama') | {'vocab_size': len(tokenizer.hf)}
  )
  return tokenizer, checkpoint.random_init(config, mesh=None, seed=1)


def test_stop_strings_cut_the_text_exactly(talker):
  tokenizer, model = talker
  one = Generator(model, tokenizer, max_new_tokens=60, batch_size=4, chunk=16)
  prompts = [
    tokenizer.plain.encode(t)
    for t in ('def add(a, b):', 'Hello', 'for i in range(3):\n  ', 'sum')
  ]
  options = Sampling(temperature=1.0, top_p=1.0, seed=2)
  free = one.generate(prompts, options)
  # Five letters that several tokens spell, in the later part of two texts.
  strings = [g.text[at : at + 5] for g, at in ((free[0], 40), (free[3], 90))]
  strings.append('not to be found')
  ours = one.generate(prompts, options, stop_strings=strings)
  stopped = 0
  for before, generation in zip(free, ours, strict=True):
    at = min(
      (i for i in map(before.text.find, strings) if i >= 0), default=None
    )
    assert generation.text == before.text[:at]
    number = len(generation.ids)
    np.testing.assert_array_equal(generation.ids, before.ids[:number])
    assert (number < 60) == (at is not None)
    assert generation.finish_reason == ('length' if at is None else 'stop')
    stopped += at is not None
  assert 2 <= stopped < 4
  with pytest.raises(ValueError, match='need a tokenizer'):
    Generator(model).generate(prompts, stop_strings=['x'])


def test_a_stop_token_is_not_in_the_text(talker):
  tokenizer, model = talker
  one = Generator(model, tokenizer, max_new_tokens=30, batch_size=1)
  prompt = tokenizer.plain.encode('Hello')
  options = Sampling(temperature=1.0, top_p=1.0, seed=2)
  [free] = one.generate([prompt], options)
  stop = int(free.ids[10])
  first = free.ids.tolist().index(stop)
  [ours] = one.generate([prompt], options, stop_ids=[stop])
  np.testing.assert_array_equal(ours.ids, free.ids[: first + 1])
  assert ours.text == tokenizer.decode(free.ids[:first])


def test_few_programs_for_many_lengths(folder, caplog):
  """Two lengths of prompts and two sizes of the cache, whatever comes."""
  directory = folder('starcoder2')
  one = generator(
    directory,
    max_new_tokens=250,
    prompt_lengths=(16, 32),
    batch_size=2,
    chunk=32,
  )
  rng = np.random.default_rng(0)
  prompts = [rng.integers(0, 211, n) for n in rng.integers(1, 33, 12)]
  with jax.log_compiles():
    ours = one.generate(prompts[:4])
    one.generate(prompts, stop_ids=[5])
    one.generate(prompts[3:6], stop_ids=[7, 8, 9], seeds=[1, 2, 3])
    other = generator(
      directory,
      max_new_tokens=60,
      prompt_lengths=(16, 32),
      batch_size=2,
      chunk=32,
    ).generate(prompts[:2])
  np.testing.assert_array_equal(other[0].ids, ours[0].ids[:60])
  compiled = [r.getMessage() for r in caplog.records]
  for program in ('prefill', 'decode'):
    begins = f'Compiling jit({program}) '
    assert sum(m.startswith(begins) for m in compiled) == 2
  # The cache has grown on the way; nothing is lost.
  theirs, lead = torch_greedy(directory, prompts[3], 250)
  assert lead > MARGIN
  np.testing.assert_array_equal(ours[3].ids, theirs)


def test_bfloat16_chooses_what_float32_finds_likely(folder):
  """Each greedy token of bfloat16 has a logit near the largest in float32."""
  directory = folder('qwen3')
  prompts = prompts_of('qwen3')
  ours = generator(directory, dtype=jnp.bfloat16).generate(prompts)
  model = model_of(directory)
  for prompt, generation in zip(prompts, ours, strict=True):
    assert len(generation.ids) == NEW
    ids = np.concatenate([prompt, generation.ids])[None]
    logits = np.asarray(model.logits(hidden_states(model, ids)))[0]
    written = logits[len(prompt) - 1 : -1]
    chosen = written[np.arange(NEW), generation.ids]
    assert (written.max(-1) - chosen).max() < 0.2


def test_positions_end(folder):
  """300 learned positions: no token is written beyond, and no prompt fits."""
  one = generator(folder('gpt2'), prompt_lengths=(64,))
  rng = np.random.default_rng(0)
  short, long = rng.integers(0, 257, 4), rng.integers(0, 257, 291)
  both = one.generate([short, long])
  assert [len(g.ids) for g in both] == [NEW, 9]
  assert both[1].finish_reason == 'length'
  theirs, lead = torch_greedy(folder('gpt2'), long, 9)
  assert lead > MARGIN
  np.testing.assert_array_equal(both[1].ids, theirs)
  for prompt, message in (
    (rng.integers(0, 257, 300), 'prompt 1 has 300 tokens.*300 positions'),
    ([], 'prompt 1 has no tokens'),
    ([3, 257], 'prompt 1 has the id 257, but the vocabulary has 257'),
  ):
    with pytest.raises(ValueError, match=message):
      one.generate([short, prompt])


def test_no_prompts_and_wrong_numbers(folder):
  one = generator(folder('gpt2'))
  assert one.generate([]) == []
  with pytest.raises(ValueError, match='2 seeds for 1 prompts'):
    one.generate([[1]], seeds=[1, 2])
  with pytest.raises(ValueError, match='batch_size=0'):
    generator(folder('gpt2'), batch_size=0)


def test_unrolled_is_the_same_model_in_the_compute_dtype(folder):
  model = checkpoint.load(folder('gemma3'), mesh=None, dtype=jnp.float32)
  flat = unrolled.unrolled(model)
  assert unrolled.unrolled(flat) is flat
  assert len(flat.stacks) == 5
  tokens_BT = jnp.asarray(tiny_models.tokens('gemma3')[:2, :40])
  want = hidden_states(model, tokens_BT)
  np.testing.assert_allclose(
    hidden_states(flat, tokens_BT),
    want,
    **tolerances.near(model.config, 40, want),
  )
  model.dtype = jnp.dtype(jnp.bfloat16)
  half = unrolled.unrolled(model)
  assert half.stacks[0].q_kernel.dtype == half.embedding.dtype == jnp.bfloat16
  assert half.stacks[0].attn_norm_scale.dtype == jnp.float32
