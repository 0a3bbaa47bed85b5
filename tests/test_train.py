"""The trainer: it learns, it resumes exactly, its batches lose nothing."""

import dataclasses
import importlib.util
import json
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import transformers
from flax import nnx

from qaq_jax.demo import corpus, mining, train
from qaq_jax.finetune import batches, loop, step
from qaq_jax.models import config as config_lib
from qaq_jax.models.decoder import Decoder

_VOCAB = 40


def _model(seed=0):
  config = config_lib.from_hf({
      'model_type': 'qwen3',
      'vocab_size': _VOCAB,
      'hidden_size': 32,
      'intermediate_size': 48,
      'num_hidden_layers': 1,
      'num_attention_heads': 2,
      'num_key_value_heads': 2,
      'head_dim': 16,
      'max_position_embeddings': 64,
      'rope_theta': 10000.0,
      'rms_norm_eps': 1e-6,
      'hidden_act': 'silu',
      'attention_bias': False,
      'tie_word_embeddings': True,
  })
  return Decoder(config, rngs=nnx.Rngs(seed))


def _examples(number=60, seed=0):
  """Counting upwards from a random start: easy to learn."""
  rng = np.random.default_rng(seed)
  examples = []
  for _ in range(number):
    size = int(rng.integers(4, 17))
    ids = (rng.integers(_VOCAB) + np.arange(size)) % _VOCAB
    weights = rng.choice([0.0, 1.0, 3.0], size)
    examples.append(
        batches.Example(ids.astype(np.int32), weights.astype(np.float32))
    )
  return examples


def test_loss_equals_plain_cross_entropy_with_gradients():
  model = _model()
  rng = np.random.default_rng(1)
  batch = {
      'tokens': rng.integers(0, _VOCAB, (3, 11)).astype(np.int32),
      'weights': rng.uniform(0, 2, (3, 11)).astype(np.float32),
  }
  graphdef, params = nnx.split(model)

  def chunked(params):
    return step.weighted_loss(nnx.merge(graphdef, params), batch, chunk=8)

  def plain(params):
    model = nnx.merge(graphdef, params)
    logits = model.logits(model(batch['tokens']))[:, :-1, :_VOCAB]
    losses = optax.softmax_cross_entropy_with_integer_labels(
        logits, batch['tokens'][:, 1:]
    )
    weights = batch['weights'][:, 1:]
    return (losses * weights).sum() / weights.sum()

  loss, grads = jax.value_and_grad(chunked)(params)
  want, want_grads = jax.value_and_grad(plain)(params)
  np.testing.assert_allclose(loss, want, rtol=1e-5)
  jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-3),
      grads, want_grads,
  )


def test_every_example_appears_at_most_once_per_epoch():
  examples = [
      batches.Example(np.array([i, *e.ids], np.int32), np.ones(len(e.ids) + 1))
      for i, e in enumerate(_examples(100))
  ]
  buckets = batches.make_buckets(examples, tokens_per_batch=64, num_buckets=3)
  stream = batches.batches(examples, buckets, seed=0)
  seen = []
  for _ in range(buckets.batches_per_epoch):
    batch = next(stream)
    assert batch['tokens'].size <= 64
    assert batch['tokens'].shape[1] in buckets.lengths
    seen += batch['tokens'][:, 0].tolist()
    for row, weights in zip(batch['tokens'], batch['weights'], strict=True):
      ids = examples[row[0]].ids
      np.testing.assert_array_equal(row[: len(ids)], ids)
      assert not weights[len(ids) :].any()
  assert len(seen) == len(set(seen)) > 80


def test_batches_start_anywhere():
  examples = _examples(50)
  buckets = batches.make_buckets(examples, tokens_per_batch=64, num_buckets=2)
  start = buckets.batches_per_epoch + 2  # within the second epoch
  whole = batches.batches(examples, buckets, seed=3)
  for _ in range(start):
    next(whole)
  part = batches.batches(examples, buckets, seed=3, start=start)
  for _ in range(2 * buckets.batches_per_epoch):
    np.testing.assert_array_equal(next(whole)['tokens'], next(part)['tokens'])


def test_too_few_examples_are_an_error():
  examples = _examples(2)
  buckets = batches.make_buckets(examples, tokens_per_batch=512, num_buckets=1)
  with pytest.raises(ValueError, match='tokens_per_batch'):
    next(batches.batches(examples, buckets, seed=0))


def test_learning_rate_rises_stays_and_falls():
  options = step.OptimizerOptions(
      learning_rate=2.0, steps=100, warmup_steps=10, decay_steps=40
  )
  rate = [float(step.learning_rate(options, i)) for i in range(101)]
  assert rate[0] == pytest.approx(0.2)
  assert rate[9:61] == [2.0] * 52
  assert rate[80] == pytest.approx(1.0)
  assert rate[100] == 0.0


def test_unknown_optimizer_is_named():
  with pytest.raises(ValueError, match="'sgd'.*muon"):
    step.make_optimizer(step.OptimizerOptions(name='sgd'))


@pytest.mark.parametrize('name', ['muon', 'adamw'])
def test_training_learns(tmp_path, name):
  options = loop.LoopOptions(
      tokens_per_batch=128, num_buckets=1, log_every=10, eval_every=1000
  )
  optimizer = step.OptimizerOptions(
      name=name, learning_rate=0.02, steps=50, warmup_steps=5, decay_steps=20
  )
  loop.fit(
      _model(), _examples(), tmp_path,
      options=options, optimizer_options=optimizer,
  )
  curve = [json.loads(line) for line in (tmp_path / 'curve.jsonl').open()]
  assert curve[0]['loss'] > 2.5
  assert curve[-1]['loss'] < 0.5 * curve[0]['loss']
  assert curve[-1]['step'] == 50


def test_resumed_run_has_the_same_curve(tmp_path):
  options = loop.LoopOptions(
      tokens_per_batch=128, num_buckets=1, log_every=2, eval_every=4
  )

  def run(folder, steps):
    # The decay begins after step 8 in both: the end can be chosen late.
    optimizer = step.OptimizerOptions(
        name='adamw', learning_rate=0.02, steps=steps, warmup_steps=2,
        decay_steps=steps - 8,
    )
    evaluated = []

    def evaluate(model):
      evaluated.append(float(jnp.abs(model.embedding[...]).sum()))
      return {'size': evaluated[-1]}

    model = loop.fit(
        _model(), _examples(), folder,
        options=options, optimizer_options=optimizer, evaluate=evaluate,
    )
    return nnx.to_pure_dict(nnx.state(model))

  whole = run(tmp_path / 'whole', 12)
  # Stopped at 8 by a run that would have ended at 9, then carried on.
  run(tmp_path / 'part', 9)
  newest = tmp_path / 'part' / 'checkpoints' / '9'
  assert newest.exists()
  for file in sorted(newest.rglob('*'), reverse=True):
    file.rmdir() if file.is_dir() else file.unlink()
  newest.rmdir()
  resumed = run(tmp_path / 'part', 12)
  jax.tree.map(np.testing.assert_array_equal, whole, resumed)

  def losses(folder):
    lines = [json.loads(line) for line in (folder / 'curve.jsonl').open()]
    return [(x['step'], x['loss']) for x in lines if 'loss' in x]

  assert losses(tmp_path / 'whole') == [
      x for x in losses(tmp_path / 'part') if x[0] != 9
  ]


def test_loss_that_is_not_finite_stops_the_run(tmp_path):
  model = _model()
  model.embedding[...] = jnp.full_like(model.embedding[...], jnp.nan)
  with pytest.raises(FloatingPointError, match='step 2'):
    loop.fit(
        model, _examples(), tmp_path,
        options=loop.LoopOptions(
            tokens_per_batch=128, num_buckets=1, log_every=2
        ),
        optimizer_options=step.OptimizerOptions(name='adamw', steps=4),
    )


def _recipe(arg):
  path = pathlib.Path(__file__).parent.parent / 'configs' / 'train_demo.py'
  spec = importlib.util.spec_from_file_location('recipe', path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config(arg)


@pytest.mark.parametrize('arg', ['strong', 'weak'])
def test_recipe_resolves_and_keeps_clear_of_the_demo(arg):
  config = _recipe(arg)
  options = corpus.CorpusOptions(**config.corpus)
  loop.LoopOptions(**config.loop)
  step.OptimizerOptions(**config.optimizer)
  learned = {name for name, _, _ in options.packages}
  measured = {name for name, _, _ in options.held_out}
  assert not learned & measured
  assert not (learned | measured) & set(mining.DEMO_PACKAGES)
  for _, requirement, licence in options.packages + options.held_out:
    assert '==' in requirement
    assert not re.search('GPL|AGPL|SSPL|unknown', licence)


def test_recipe_names_its_arguments():
  with pytest.raises(ValueError, match="'strong' or 'weak'.*'big'"):
    _recipe('big')


def _toy_site(folder):
  words = ['count', 'sort', 'merge', 'split', 'parse', 'write', 'read', 'join']
  things = ['names', 'lines', 'files', 'words', 'rows', 'keys', 'pages']
  for package in ('toy', 'other'):
    module = folder / package / '__init__.py'
    module.parent.mkdir(parents=True)
    text = []
    for verb in words:
      for thing in things:
        text.append(
            f'def {verb}_{thing}({thing}, {package}):\n'
            f'  """{verb.title()} the {thing} that {package} code gives."""\n'
            f'  result = {package}.{verb}({thing})\n'
            f'  return [{thing}, result]\n'
        )
    module.write_text('\n'.join(text))


def test_recipe_runs_end_to_end_on_a_toy_corpus(tmp_path):
  _toy_site(tmp_path / 'site')
  config = _recipe('weak')
  config.corpus.packages = (('toy', 'toy==1', 'MIT'),)
  config.corpus.held_out = (('other', 'other==1', 'MIT'),)
  config.corpus.excluded = ('json',)
  config.corpus.site = str(tmp_path / 'site')
  config.corpus.vocab_size = 300
  config.model.update(
      hidden_size=32, intermediate_size=32, num_layers=1, num_heads=2,
      head_dim=16,
  )
  config.loop.update(tokens_per_batch=256, num_buckets=1, log_every=2)
  config.optimizer.update(name='adamw', steps=4)
  result = train.train(config, tmp_path / 'work')
  assert set(result) >= {'auroc', 'nll_q', 'nll_q_given_a'}
  out = tmp_path / 'work' / 'model'
  saved = json.loads((out / 'config.json').read_text())
  assert saved['vocab_size'] == 300
  tokenizer = transformers.AutoTokenizer.from_pretrained(out)
  assert tokenizer.bos_token_id == saved['bos_token_id']
  # Both packages spell their functions alike but for their own name.
  pairs, held_out = corpus.load_or_mine(
      corpus.CorpusOptions(**config.corpus), tmp_path / 'work'
  )
  assert {p.package for p in pairs} == {'toy'}
  assert {p.package for p in held_out} == {'other'}


def test_corpus_leaves_out_what_the_demo_has(tmp_path):
  _toy_site(tmp_path)
  json_source = (mining.package_folder('json') / 'decoder.py').read_text()
  (tmp_path / 'toy' / 'decoder.py').write_text(json_source)
  options = corpus.CorpusOptions(
      packages=(('toy', 'toy==1', 'MIT'),), held_out=(), site=str(tmp_path),
      excluded=('json',),
  )
  pairs, _ = corpus.mine_corpus(options)
  assert pairs and not [p for p in pairs if p.module == 'decoder.py']
  options = dataclasses.replace(options, excluded=())
  pairs, _ = corpus.mine_corpus(options)
  assert [p for p in pairs if p.module == 'decoder.py']


def test_missing_packages_are_named_with_the_pip_line(tmp_path):
  options = corpus.CorpusOptions(
      packages=(('absent', 'Absent-Package==1.2', 'MIT'),), held_out=(),
      site=str(tmp_path),
  )
  with pytest.raises(
      ModuleNotFoundError, match='pip install.*Absent-Package==1.2'
  ):
    corpus.mine_corpus(options)
