"""Every recipe resolves, and a misspelt field or argument is an error."""

import importlib.util
import pathlib
import subprocess
import sys
from unittest import mock

import pytest
from absl import flags
from ml_collections import config_flags

from qaq_jax import config as config_lib
from qaq_jax.selection.rules import rule

ROOT = pathlib.Path(__file__).resolve().parent.parent
RECIPES = sorted(
  p.name for p in (ROOT / 'configs').glob('*.py') if 'train' not in p.name
)


def resolve(recipe, *overrides):
  """The config as the command line resolves it."""
  values = flags.FlagValues()
  config_flags.DEFINE_config_file(
    'config', lock_config=True, flag_values=values
  )
  argv = ['test', f'--config={ROOT / "configs" / recipe}', *overrides]
  with mock.patch.object(sys, 'argv', argv):  # where overrides are looked up
    values(argv)
  return values.config


@pytest.mark.parametrize('recipe', RECIPES)
def test_every_recipe_resolves_to_a_complete_config(recipe):
  config = resolve(recipe)
  default = config_lib.get_default()
  assert set(config) == set(default)
  assert {config.roles.strong, config.roles.weak} - {''} <= set(config.models)
  for model in config.models.values():
    assert set(model) == {
      'path',
      'revision',
      'dtype',
      'chat_template',
      'system_prompt',
      'max_length',
      'quantization',
    }


@pytest.mark.parametrize('recipe', RECIPES)
def test_every_recipe_states_command_paper_and_expectation(recipe):
  path = ROOT / 'configs' / recipe
  spec = importlib.util.spec_from_file_location('recipe', path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  for word in ('--config=configs/', 'aper', 'xpected'):
    assert word in module.__doc__


@pytest.mark.parametrize('recipe', RECIPES)
def test_runlocal_shrinks_the_recipe_to_embedded_models(recipe):
  config = resolve(recipe + ':runlocal')
  for name, model in config.models.items():
    role = 'weak' if name == config.roles.weak else 'strong'
    assert pathlib.Path(model.path).parts[-2:] == ('models', role)
  assert config.data.limit or config.mine.rows


def test_override_of_a_field_keeps_its_type():
  config = resolve('magpie_coder.py', '--config.score.max_length=1024')
  assert config.score.max_length == 1024
  with pytest.raises(flags.IllegalFlagValueError):
    resolve('magpie_coder.py', '--config.score.max_length=long')


def test_misspelt_override_is_an_error():
  with pytest.raises((AttributeError, KeyError, flags.Error), match='max_len'):
    resolve('magpie_coder.py', '--config.score.max_len=1024')


def test_misspelt_config_argument_is_an_error():
  with pytest.raises(flags.Error, match="'run_local' is unknown.*runlocal"):
    resolve('magpie_coder.py:run_local')


def test_config_argument_gives_the_data_path():
  assert resolve('warriorcoder.py:data=a.jsonl').data.path == 'a.jsonl'


@pytest.mark.parametrize(
  'arg, message', [('limit=x', 'expected int'), ('runlocal=3', 'bool')]
)
def test_config_argument_of_another_type_is_an_error(arg, message):
  with pytest.raises(ValueError, match=message):
    config_lib.parse_arg(arg, runlocal=False, limit=3)


def test_every_option_of_every_rule_can_be_set():
  # The others a run fills in from what it has.
  options = {
    n for r in rule.RULES.values() for n in r.options if n not in r.inputs
  }
  assert options <= set(config_lib.get_default().select)


@pytest.mark.parametrize(
  'args, words',
  [
    ([], 'usage: qaq STAGE'),
    (['run'], 'a stage, --config and --workdir, please'),
    (
      ['runn', '--config=configs/magpie_coder.py', '--workdir=w'],
      "no stage 'runn'",
    ),
    (
      [
        'select',
        '--config=configs/magpie_coder.py',
        '--workdir=w',
        '--config.select.rul=ifd',
      ],
      'rul',
    ),
  ],
)
def test_command_line_mistakes_are_told(args, words, tmp_path):
  done = subprocess.run(
    [sys.executable, '-m', 'qaq_jax.main', *args],
    capture_output=True,
    text=True,
    cwd=ROOT,
    check=False,
  )
  assert done.returncode not in (0, None)
  assert words in done.stdout + done.stderr


def test_every_hub_model_of_a_recipe_has_its_true_config_as_a_fixture():
  fixtures = ROOT / 'tests' / 'fixtures' / 'hf_configs'
  found = 0
  for recipe in RECIPES:
    for model in resolve(recipe).models.values():
      if model.path.count('/') == 1:  # owner/name
        assert (fixtures / f'{model.path.replace("/", "--")}.json').exists()
        found += 1
  assert found >= 6
