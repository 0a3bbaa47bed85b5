"""The demo's tokenizer, its measure of separation, its committed models."""

import importlib.util
import pathlib

import jax
import numpy as np
import pytest
import tokenizers
import tolerances
import transformers
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

from qaq_jax import config as embedded
from qaq_jax.data import samples
from qaq_jax.demo import corpus, measure, mining, separation
from qaq_jax.demo import tokenizer as tokenizer_lib
from qaq_jax.encoding import encoder as encoder_lib
from qaq_jax.models.decoder import Decoder
from qaq_jax.models.hf.read_config import read_config


@pytest.fixture(scope='module')
def pairs():
  """Some hundred real pairs of the standard library."""
  root = mining.package_folder('stdlib')
  found = []
  for name in (
    'argparse',
    'ast',
    'calendar',
    'fractions',
    'ftplib',
    'imaplib',
    'ipaddress',
    'mailbox',
    'smtplib',
    'random',
    'shutil',
    'statistics',
    'tarfile',
    'textwrap',
    'zipapp',
  ):
    text = (root / f'{name}.py').read_text(encoding='utf-8')
    found += mining.mine_source(text, 'stdlib', f'{name}.py', mining.Limits())
  return mining.deduplicate(found)


@pytest.fixture(scope='module')
def tokenizer(tmp_path_factory, pairs):
  """A small tokenizer, saved and loaded as scoring loads it."""
  texts = [t for p in pairs for t in (p.query, p.answer)]
  folder = tmp_path_factory.mktemp('tokenizer')
  trained = tokenizer_lib.train_tokenizer(texts, 1000)
  assert trained.to_str() == tokenizer_lib.train_tokenizer(texts, 1000).to_str()
  tokenizer_lib.save_tokenizer(trained, folder, max_length=512)
  return transformers.AutoTokenizer.from_pretrained(folder)


def _ids(tokenizer, text):
  return tokenizer(text, add_special_tokens=False)['input_ids']


@pytest.mark.parametrize(
  'text',
  [
    '',
    ' ',
    '\r\n\t\x00\x7f',
    'a  b',
    ' leading',
    'trailing ',
    'émile Ünal',
    '日本語のテキスト',
    '\U0001f642\U0001f469\u200d\U0001f467' * 50,
    '\ud7ff\ue000\uffff',
    'HTTPServer2Go_x9',
    '<|bo s|>',
    'a' * 5000,
    '(' * 5000,
    'def f(x):\n\treturn x  # é\n\n\n',
  ],
)
def test_tokenizer_gives_the_text_back(tokenizer, text):
  assert tokenizer.decode(_ids(tokenizer, text)) == text


@given(text=st.text(max_size=60))
def test_tokenizer_gives_any_text_back(tokenizer, text):
  assert tokenizer.decode(_ids(tokenizer, text)) == text


def test_words_have_the_same_ids_in_prose_and_in_names(tokenizer):
  name = _ids(tokenizer, 'name')
  for text in ('the name', 'file_name', '(name)', '_name', 'name.x'):
    ids = _ids(tokenizer, text)
    assert any(ids[i : i + len(name)] == name for i in range(len(ids))), text
  part = _ids(tokenizer, 'Name')
  ids = _ids(tokenizer, 'fileName')
  assert ids[-len(part) :] == part


def test_auroc():
  assert separation.auroc([2, 3], [0, 1]) == 1.0
  assert separation.auroc([0, 1], [2, 3]) == 0.0
  assert separation.auroc([1, 1], [1, 1]) == 0.5
  assert separation.auroc([1, 3], [0, 2]) == 0.75


def test_swap_by_length_moves_everyone_to_a_neighbour():
  lengths = [5, 100, 7, 101, 6, 9, 50]
  partner = separation.swap_by_length(lengths)
  assert sorted(partner) == list(range(7))
  assert all(partner != np.arange(7))
  assert partner[1] in (3, 6)
  assert partner[0] == 4 and partner[4] == 0


def test_separation_scores_the_query_tokens_only(tokenizer):
  config = read_config(
    {
      'model_type': 'qwen3',
      'vocab_size': len(tokenizer),
      'hidden_size': 32,
      'intermediate_size': 32,
      'num_hidden_layers': 1,
      'num_attention_heads': 2,
      'num_key_value_heads': 2,
      'head_dim': 16,
      'max_position_embeddings': 64,
      'rope_theta': 1e4,
      'rms_norm_eps': 1e-6,
      'hidden_act': 'silu',
      'attention_bias': False,
      'tie_word_embeddings': True,
    }
  )
  model = Decoder(config, rngs=nnx.Rngs(0))
  rng = np.random.default_rng(0)
  rows = [
    (rng.integers(0, 1000, n).tolist(), start)
    for n, start in ((5, 1), (20, 7), (70, 60), (20, 19))
  ]
  got = separation.nll(model, rows, tokens_per_batch=128)
  whole = jax.jit(lambda x: model.logits(model(x)))
  for (ids, start), value in zip(rows, got, strict=True):
    padded = np.zeros((1, 70), int)  # one shape: compiled once
    padded[0, : len(ids)] = ids
    logits = np.asarray(whole(padded), np.float64)[0, :, : len(tokenizer)]
    logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    want = -sum(logp[i - 1, ids[i]] for i in range(start, len(ids)))
    assert value == pytest.approx(want, rel=tolerances.decoder(config, 70))


def test_committed_models_separate_true_from_swapped(pairs):
  short = [p for p in pairs if len(p.answer) <= 600]
  sample = mining.draw(short, 120)
  auroc = {
    name: measure.measure(embedded.embedded_model(name), sample)['auroc']
    for name in ('strong', 'weak')
  }
  # On thousands of pairs: docs/demo_models.md. 120 pairs move by about 0.02.
  assert auroc['strong'] > 0.90
  assert 0.55 < auroc['weak'] < auroc['strong'] - 0.1


def test_committed_models_are_small_and_share_a_tokenizer():
  folders = [
    pathlib.Path(embedded.embedded_model(name)) for name in ('strong', 'weak')
  ]
  files = [f for folder in folders for f in folder.iterdir()]
  assert sum(f.stat().st_size for f in files) < 16 * 2**20
  texts = {(f / 'tokenizer.json').read_text() for f in folders}
  assert len(texts) == 1


def test_training_and_scoring_see_the_same_ids(pairs):
  folder = pathlib.Path(embedded.embedded_model('strong'))
  encoder = encoder_lib.Encoder(
    folder,
    template='plain',
    reverse_instruction=corpus.REVERSE_INSTRUCTION,
    max_length=1024,
  )
  tokenizer = tokenizers.Tokenizer.from_file(str(folder / 'tokenizer.json'))
  pairs = pairs[:20]
  trained = corpus.make_examples(
    tokenizer, pairs, forward_share=1.0, query_weight=3.0
  )
  encoded = encoder.encode(
    [
      samples.Sample(
        row=i,
        id=None,
        query=p.query,
        answer=p.answer,
        system=None,
        status='ok',
        reason='',
        raw='',
      )
      for i, p in enumerate(pairs)
    ]
  )
  for i, row in enumerate(encoded):
    ids = {s.kind: list(s.ids) for s in row.sequences}
    # Training adds the end token.
    assert ids['reverse'] == trained[2 * i].ids[:-1].tolist()
    assert ids['forward'] == trained[2 * i + 1].ids[:-1].tolist()
    query = next(s for s in row.sequences if s.kind == 'reverse').spans[-1]
    weights = trained[2 * i].weights
    assert (weights[query[1] : query[2]] == 3.0).all()


def test_recipe_scores_with_the_words_of_training():
  path = pathlib.Path(__file__).parent.parent / 'configs' / 'demo.py'
  spec = importlib.util.spec_from_file_location('recipe', path)
  recipe = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(recipe)
  text = recipe.get_config().score.reverse_instruction
  assert text == corpus.REVERSE_INSTRUCTION
