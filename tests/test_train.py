"""The demo models' recipe: it resolves, runs, and keeps clear of the demo."""

import dataclasses
import importlib.util
import json
import pathlib
import re

import pytest
import transformers

from qaq_jax.demo import corpus, mining, train
from qaq_jax.finetune import loop, optimizer


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
  loop.FitOptions(**config.loop)
  options_of_optimizer = optimizer.OptimizerOptions(**config.optimizer)
  assert options_of_optimizer.schedule == 'wsd'
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
    hidden_size=32,
    intermediate_size=32,
    num_layers=1,
    num_heads=2,
    head_dim=16,
  )
  config.loop.update(max_steps=4, log_every=2, max_length=128)
  config.optimizer.update(name='adamw')
  result = train.train(config, tmp_path / 'work')
  assert set(result) >= {'auroc', 'nll_q', 'nll_q_given_a'}
  lines = (tmp_path / 'work' / 'metrics.jsonl').read_text().splitlines()
  assert [json.loads(x)['step'] for x in lines] == [2, 4, 4]
  assert 'auroc' in json.loads(lines[-1])
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
    packages=(('toy', 'toy==1', 'MIT'),),
    held_out=(),
    site=str(tmp_path),
    excluded=('json',),
  )
  pairs, _ = corpus.mine_corpus(options)
  assert pairs and not [p for p in pairs if p.module == 'decoder.py']
  options = dataclasses.replace(options, excluded=())
  pairs, _ = corpus.mine_corpus(options)
  assert [p for p in pairs if p.module == 'decoder.py']


@pytest.mark.parametrize('same', ['query', 'answer'])
def test_half_a_pair_of_the_demo_is_left_out_too(tmp_path, same):
  pair = max(
    mining.mine(('json',)), key=lambda p: p.name == 'JSONDecoder.decode'
  )
  query, body = pair.query, f'  return [number + {"1 + " * 20}1]'
  source = f'def other(number):\n  {query!r}\n{body}\n'
  if same == 'answer':
    head, rest = pair.answer.split('\n', 1)
    query = 'Whatever these words of ours may say about the text.'
    source = (
      f'{head}\n{rest[: len(rest) - len(rest.lstrip())]}{query!r}\n{rest}\n'
    )
  (tmp_path / 'toy').mkdir()
  (tmp_path / 'toy' / '__init__.py').write_text(source)
  options = corpus.CorpusOptions(
    packages=(('toy', 'toy==1', 'MIT'),),
    held_out=(),
    site=str(tmp_path),
    excluded=('json',),
  )
  assert corpus.mine_corpus(options)[0] == []
  options = dataclasses.replace(options, excluded=())
  ((found,), _) = corpus.mine_corpus(options)
  assert getattr(found, same) == getattr(pair, same)


def test_missing_packages_are_named_with_the_pip_line(tmp_path):
  options = corpus.CorpusOptions(
    packages=(('absent', 'Absent-Package==1.2', 'MIT'),),
    held_out=(),
    site=str(tmp_path),
  )
  with pytest.raises(
    ModuleNotFoundError, match='pip install.*Absent-Package==1.2'
  ):
    corpus.mine_corpus(options)
