"""The worked examples of CONTRIBUTING.md, followed in a copy of the tree."""

import json
import os
import re
import subprocess
import sys

import mutants
import numpy as np
import pyarrow.parquet as pq
import pytest

RECIPE = """
from qaq_jax import config as lib


def get_config(arg=None):
  c = lib.get_default()
  c.stages = ('prepare', 'lengths', 'score', 'select')
  c.data.path = 'pairs.jsonl'
  lib.add_model(
    c, 'strong', 'model', dtype='float32', chat_template='worked'
  )
  c.roles.weak = ''
  c.score.max_length = 256
  c.score.max_shapes = 1
  c.select.rule = 'length_short'
  c.select.budget.rows = 3
  return c
"""
MODEL = """
import dataclasses, pathlib, sys
sys.path.insert(0, 'tests')
import tiny_models, tiny_tokenizers
from qaq_jax.models.hf import checkpoint
from qaq_jax.models.hf.read_config import read_config

config = tiny_models.hf_config('llama') | {
  'vocab_size': 448, 'model_type': 'worked'
}
model = checkpoint.random_init(read_config(config), mesh=None)
folder = pathlib.Path(tiny_tokenizers.make(pathlib.Path('.'), 'qwen'))
folder.rename('model')
checkpoint.save_hf(model, pathlib.Path('model'))
"""


def _qaq(stage):
  words = ['-m', 'qaq_jax.main', stage]
  return [*words, '--config=recipe.py', '--workdir=work']


def blocks():
  text = (mutants.ROOT / 'CONTRIBUTING.md').read_text()
  return re.findall(
    r'^```(?:python|jinja)\n# (.*)\n((?:.*\n)*?)```$', text, re.M
  )


def follow(tree, order, body):
  """Does what the first line of a block says."""
  if found := re.fullmatch('new file: (.*)', order):
    assert not (tree / found[1]).exists(), order
    (tree / found[1]).write_text(body)
    return
  if found := re.fullmatch('at the end of: (.*)', order):
    with open(tree / found[1], 'a') as file:
      file.write(body)
    return
  found = re.fullmatch('in (.*), above: (.*)', order)
  path = tree / found[1]
  lines = path.read_text().splitlines(keepends=True)
  at = [i for i, line in enumerate(lines) if line.startswith(found[2])]
  assert at, order
  path.write_text(''.join([*lines[: at[0]], body, *lines[at[0] :]]))


@pytest.fixture(scope='module')
def worked(tmp_path_factory):
  """A copy of the tree with all examples in it, after its `qaq run`."""
  tree = tmp_path_factory.mktemp('tree')
  mutants.copy_tree(tree)
  assert len(blocks()) == 9
  for order, body in blocks():
    follow(tree, order, body)
  (tree / 'recipe.py').write_text(RECIPE)
  rows = [
    {'instruction': f'Add {i} numbers', 'output': 'a + b\n' * (1 + 5 * i % 7)}
    for i in range(7)
  ]
  (tree / 'pairs.jsonl').write_text(
    ''.join(json.dumps(row) + '\n' for row in rows)
  )
  environment = os.environ | {'PYTHONPATH': str(tree), 'JAX_PLATFORMS': 'cpu'}

  def run(*words):
    done = subprocess.run(
      [sys.executable, *words],
      cwd=tree,
      env=environment,
      stdin=subprocess.DEVNULL,
      capture_output=True,
      text=True,
    )
    assert not done.returncode, done.stdout + done.stderr
    return done.stdout

  run('-c', MODEL)
  return tree, run(*_qaq('run')), run


def test_the_examples_run_together(worked):
  tree, out, _ = worked
  assert 'median answer: 23 characters; wrote work/lengths.json' in out
  assert 'template shipped worked' in out
  config = json.loads((tree / 'model/config.json').read_text())
  assert config['architectures'] == ['WorkedForCausalLM']
  table = pq.read_table(tree / 'work/scores.parquet')
  worst = table['a_worst_nll_strong'].to_numpy()
  mean = table['nll_a_given_q_strong'].to_numpy() / table['n_a_strong']
  assert np.isfinite(worst).all() and (worst >= np.asarray(mean)).all()
  kept = json.loads((tree / 'work/selection.json').read_text())
  assert (kept['rule'], kept['counts']['kept']) == ('length_short', 3)
  lines = (tree / 'work/selected.jsonl').read_text().splitlines()
  assert sorted(len(json.loads(line)['output']) for line in lines) == [
    6,
    12,
    18,
  ]


def test_they_are_listed(worked):
  _, _, run = worked
  assert 'prepared samples -> lengths.json' in run(
    '-m', 'qaq_jax.main', '--help'
  )
  assert 'length_short' in run('-m', 'qaq_jax.selection')


def test_the_tests_of_tables_pass_with_the_examples(worked):
  tree, _, run = worked
  table = run('-m', 'qaq_jax.scoring.kinds')
  assert '\n| `a_worst` | `a_worst_nll_<m>` |' in table
  page = tree / 'docs/scoring.md'
  text = re.sub(
    r'(?m)^\| kind \|.*\n(\|.*\n)*', lambda _: table, page.read_text()
  )
  page.write_text(text)
  run(
    *('-m', 'pytest', '-q', '-p', 'no:cacheprovider'),
    'tests/test_kinds.py::test_the_documented_table_is_that_of_the_records',
    'tests/test_rules.py::test_every_rule_of_the_specification_is_registered',
  )


def test_both_engines_choose_the_same(worked):
  tree, _, run = worked
  before = (tree / 'work/selected.jsonl').read_bytes()
  run(*_qaq('select'), '--config.select.engine=duckdb')
  assert (tree / 'work/selected.jsonl').read_bytes() == before
  # And with the rule's own option, which the shortest answer does not pass.
  lengths = pq.read_table(tree / 'work/scores.parquet')[
    'n_a_strong'
  ].to_pylist()
  least = f'--config.select.least={sorted(lengths)[1]}'
  for engine in 'memory', 'duckdb':
    run(*_qaq('select'), f'--config.select.engine={engine}', least)
    lines = (tree / 'work/selected.jsonl').read_text().splitlines()
    found = sorted(len(json.loads(line)['output']) for line in lines)
    assert found == [12, 18, 24]
