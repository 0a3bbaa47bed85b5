"""Fine-tuning and the comparison of rules as stages, on tiny models."""

import json
import pathlib
import shutil

import jax.numpy as jnp
import numpy as np
import pyarrow.parquet as pq
import pytest
import tiny_models
import tiny_tokenizers
import tolerances

from qaq_jax import config as config_lib
from qaq_jax import pipeline
from qaq_jax.finetune import job as job_lib
from qaq_jax.models.hf import checkpoint
from qaq_jax.models.hf.read_config import read_config

WORDS = ['add', 'numbers', 'print', 'user', 'code', 'two', 'hello', 'world']


def records(count, seed):
  rng = np.random.default_rng(seed)
  return [
    {
      'instruction': ' '.join(rng.choice(WORDS, 6)) + f' {seed}.{i}',
      'output': f'def f{i}(a, b):\n    return '
      + ' + '.join(rng.choice(WORDS, 1 + i % 7)),
    }
    for i in range(count)
  ]


def write_jsonl(path, rows):
  path.write_text(''.join(json.dumps(r) + '\n' for r in rows))
  return str(path)


@pytest.fixture(scope='module')
def inputs(tmp_path_factory):
  """Two models with tokenizers, samples, held-out samples."""
  folder = tmp_path_factory.mktemp('inputs')
  out = {
    'data': write_jsonl(folder / 'pairs.jsonl', records(40, 0)),
    'held_out': write_jsonl(folder / 'held_out.jsonl', records(12, 1)),
  }
  for number, name in enumerate(('strong', 'weak')):
    config = tiny_models.hf_config('qwen2') | {'vocab_size': 448}
    directory = pathlib.Path(tiny_tokenizers.make(folder / name, 'qwen'))
    model = checkpoint.random_init(read_config(config), mesh=None, seed=number)
    checkpoint.save_hf(model, directory, dtype=jnp.float32)
    out[name] = str(directory)
  return out


def make_config(inputs, **finetune):
  c = config_lib.get_default()
  c.data.path = inputs['data']
  for name in ('strong', 'weak'):
    config_lib.add_model(
      c, name, inputs[name], dtype='float32', chat_template='chatml'
    )
  c.score.max_shapes = 2
  c.stages = ('prepare', 'score', 'select')
  c.select.rule = 'rmi_top'
  c.finetune.dtype = 'float32'
  c.finetune.export_dtype = 'float32'
  c.finetune.max_length = 128
  c.finetune.batch_size = 4
  c.finetune.tokens_per_device = 128
  c.finetune.epochs = 2
  c.finetune.remat = False
  c.finetune.mesh.data = -1
  c.finetune.mesh.fsdp = 1
  c.finetune.optimizer.learning_rate = 1e-2
  c.finetune.log_every = 1
  c.finetune.looks = 0
  c.finetune.update(finetune)
  return c


@pytest.fixture(scope='module')
def scored(inputs, tmp_path_factory):
  """A work directory with scores and a selection of 10 rows."""
  workdir = tmp_path_factory.mktemp('work') / 'run'
  c = make_config(inputs)
  c.select.budget.share = 0.25
  pipeline.run('run', c, str(workdir))
  return workdir


def curve(workdir):
  lines = (workdir / 'finetune' / 'metrics.jsonl').read_text().splitlines()
  return [json.loads(line) for line in lines]


def test_chosen_samples_are_trained_on_and_exported(inputs, scored, tmp_path):
  work = shutil.copytree(scored, tmp_path / 'work')
  c = make_config(inputs)
  c.select.budget.share = 0.25
  pipeline.run('finetune', c, str(work))
  losses = [line['loss'] for line in curve(work) if 'loss' in line]
  assert len(losses) == 2 * 3  # epochs of 10 rows in batches of 4
  assert losses[-1] < losses[0] - 0.5
  result = json.loads((work / 'finetune' / 'result.json').read_text())
  assert result['examples'] == 10 and result['updates'] == 6
  trained = checkpoint.load(work / 'finetune' / 'model', mesh=None)
  before = checkpoint.load(inputs['strong'], mesh=None)
  assert not np.array_equal(trained.embedding[...], before.embedding[...])
  folder = work / 'finetune' / 'model'
  assert 'im_end' in (folder / 'chat_template.jinja').read_text()
  ends = json.loads((folder / 'generation_config.json').read_text())
  vocab = json.loads((folder / 'tokenizer.json').read_text())
  ids = {t['content']: t['id'] for t in vocab['added_tokens']}
  assert ends['eos_token_id'][0] == ids['<|im_end|>']


def test_another_selection_than_the_config_makes_is_refused(inputs, scored):
  c = make_config(inputs)
  c.select.rule = 'random'
  with pytest.raises(ValueError, match='run the select stage'):
    pipeline.run('finetune', c, str(scored))


def test_an_empty_selection_is_not_trained_on(inputs, scored, tmp_path):
  work = shutil.copytree(scored, tmp_path / 'work')
  c = make_config(inputs)
  c.select.budget.rows = 0
  pipeline.run('select', c, str(work))
  with pytest.raises(ValueError, match='selection.json: the selection is emp'):
    pipeline.run('finetune', c, str(work))


def test_the_best_checkpoint_by_validation_is_exported(
  inputs, tmp_path, capsys
):
  c = make_config(
    inputs,
    data='all',
    validation_rows=8,
    epochs=3,
    eval_every=2,
    batch_size=8,
  )
  c.finetune.optimizer.learning_rate = 0.3  # too high: it gets worse again
  c.finetune.optimizer.schedule = 'constant'
  c.stages = ('prepare', 'finetune')
  pipeline.run('run', c, str(tmp_path / 'w'))
  validated = {
    line['step']: line['validation_loss']
    for line in curve(tmp_path / 'w')
    if 'validation_loss' in line
  }
  best = min(validated, key=validated.get)
  result = json.loads((tmp_path / 'w/finetune/result.json').read_text())
  assert result['best_step'] == best
  assert result['validation_loss'] == pytest.approx(validated[best])
  assert result['examples'] == 32
  if best != result['updates']:
    assert 'that checkpoint is exported' in capsys.readouterr().out


def test_lora_exports_an_adapter_and_the_merged_model(inputs, tmp_path):
  c = make_config(inputs, data='all', max_steps=3)
  c.finetune.lora.rank = 4
  c.finetune.lora.alpha = 8.0
  c.stages = ('prepare', 'finetune')
  pipeline.run('run', c, str(tmp_path / 'w'))
  folder = tmp_path / 'w' / 'finetune'
  adapter = json.loads((folder / 'adapter/adapter_config.json').read_text())
  assert adapter['base_model_name_or_path'] == inputs['strong']
  assert adapter['target_modules'] == [
    'down_proj',
    'gate_proj',
    'k_proj',
    'o_proj',
    'q_proj',
    'up_proj',
    'v_proj',
  ]
  merged = checkpoint.load(folder / 'model', mesh=None)
  base = checkpoint.load(inputs['strong'], mesh=None)
  np.testing.assert_array_equal(merged.embedding[...], base.embedding[...])
  assert not np.allclose(
    merged.stacks[0].q_kernel[...], base.stacks[0].q_kernel[...]
  )


@pytest.mark.parametrize(
  'change, words',
  [
    ({'model': 'middle'}, "config.finetune.model is 'middle'"),
    ({'max_length': 5000}, 'max_length: 5000 tokens are more than the 4096'),
    ({'max_length': 4097}, '^config.finetune.max_length: 4097 tokens'),
    ({'validation_rows': 40}, 'leaves nothing of 40 samples'),
    ({'validation_rows': 4, 'validation': 'x'}, 'both given'),
    ({'max_length': 30}, 'the template alone takes 54 tokens'),
    ({'max_length': 56}, 'no training sample can be used'),
    ({'data': '/nowhere.jsonl'}, '/nowhere.jsonl'),
    ({'on_long': 'cut'}, 'on_long'),
    ({'lora': {'rank': -1}}, 'config.finetune.lora.rank is -1'),
    ({'packing': 'tight'}, 'packing'),
  ],
)
def test_settings_that_cannot_be_are_named(inputs, tmp_path, change, words):
  c = make_config(inputs, **({'data': 'all'} | change))
  pipeline.run('prepare', c, str(tmp_path))
  with pytest.raises((ValueError, OSError), match=words):
    pipeline.run('finetune', c, str(tmp_path))


def compare_config(inputs, **finetune):
  c = make_config(inputs, max_steps=2, **finetune)
  c.select.budget.share = 0.25
  c.compare.held_out = inputs['held_out']
  c.compare.table = (
    ('random', 'share', 0.25, 2),
    ('rmi_top', 'share', 0.25, 1),
    ('r_ifd', 'rows', 10, 1),
    ('random', 'token_share', 0.25, 1),
  )
  return c


def test_compare_makes_each_cell_once_and_goes_on(
  inputs, scored, tmp_path, monkeypatch
):
  work = shutil.copytree(scored, tmp_path / 'work')
  c = compare_config(inputs)
  fits = []
  fit = job_lib.Job.fit

  def counted(self, *args, **kwargs):
    if len(fits) == 2 and stop:
      raise KeyboardInterrupt  # in the middle of the table
    fits.append(kwargs['seed'])
    return fit(self, *args, **kwargs)

  monkeypatch.setattr(job_lib.Job, 'fit', counted)
  stop = True
  with pytest.raises(KeyboardInterrupt):
    pipeline.run('compare', c, str(work))
  stop = False
  pipeline.run('compare', c, str(work))
  cells = list((work / 'compare' / 'cells').iterdir())
  assert len(fits) == len(cells)  # the first two were there
  assert 4 <= len(cells) <= 5  # two lines may have chosen the same rows
  assert not [cell for cell in cells if (cell / 'checkpoints').exists()]
  results = json.loads((work / 'compare' / 'results.json').read_text())
  assert [line['rule'] for line in results['lines']] == [
    'random',
    'rmi_top',
    'r_ifd',
    'random',
  ]
  first = results['lines'][0]
  assert len(first['by_seed']) == 2 and first['steps'] == 2
  assert results['held_out']['rows'] == 12
  pipeline.run('compare', c, str(work))  # nothing is trained again
  assert len(fits) == len(cells)
  again = json.loads((work / 'compare' / 'results.json').read_text())
  assert again == results
  kept = cells[0] / 'result.json'
  whole = kept.read_text()
  kept.write_text(whole.replace('"steps": 2', '"steps": 3'))
  with pytest.raises(ValueError, match='result.json is damaged.*made again'):
    pipeline.run('compare', c, str(work))
  kept.write_text(whole)
  c.finetune.batch_size = 5
  pipeline.run('compare', c, str(work))  # other settings are other cells
  assert len(fits) == 2 * len(cells)
  c.finetune.chat_template = 'plain'
  c.compare.table = c.compare.table[:1]
  pipeline.run('compare', c, str(work))
  plain = json.loads((work / 'compare' / 'results.json').read_text())
  assert abs(plain['start'] - results['start']) > 1e-3  # judged anew


def test_compare_refuses_held_out_rows_that_are_trained_on(
  inputs, scored, tmp_path
):
  work = shutil.copytree(scored, tmp_path / 'work')
  c = compare_config(inputs)
  rows = records(12, 1) + records(40, 0)[7:8]
  c.compare.held_out = write_jsonl(tmp_path / 'both.jsonl', rows)
  with pytest.raises(ValueError, match='both.jsonl holds row 7 of the train'):
    pipeline.run('compare', c, str(work))


def test_compare_without_a_table_or_held_out_says_so(inputs, scored):
  c = compare_config(inputs)
  c.compare.table = ()
  with pytest.raises(ValueError, match='table is empty'):
    pipeline.run('compare', c, str(scored))
  c = compare_config(inputs)
  c.compare.held_out = ''
  with pytest.raises(ValueError, match='held_out is empty'):
    pipeline.run('compare', c, str(scored))


def test_held_out_samples_without_an_answer_judge_nothing(
  inputs, scored, tmp_path
):
  work = shutil.copytree(scored, tmp_path / 'work')
  c = compare_config(inputs)
  rows = [{'instruction': 'add', 'output': ''}]
  c.compare.held_out = write_jsonl(tmp_path / 'none.jsonl', rows)
  with pytest.raises(ValueError, match='none of the 1 samples can be judged'):
    pipeline.run('compare', c, str(work))


@pytest.mark.slow
def test_compare_evaluates_the_models_of_its_cells(inputs, scored, tmp_path):
  work = shutil.copytree(scored, tmp_path / 'work')
  c = compare_config(inputs)
  c.compare.table = (('random', 'share', 0.25, 2),)
  c.compare.evaluate = True
  c.evaluate.benchmarks = ('humaneval_plus',)
  c.evaluate.files.humaneval = str(
    pathlib.Path(__file__).parent / 'fixtures/benchmarks/humaneval_plus.jsonl'
  )
  c.evaluate.max_new_tokens = 16
  c.evaluate.dtype = 'float32'
  with pytest.raises(ValueError, match='--allow-code-execution'):
    pipeline.run('compare', c, str(work))
  c.evaluate.allow_code_execution = True
  pipeline.run('compare', c, str(work))
  results = json.loads((work / 'compare' / 'results.json').read_text())
  scores = results['lines'][0]['scores']
  assert scores['humaneval_plus']['tasks'] == 3
  assert 'humaneval_plus pass@1' in (work / 'compare/results.md').read_text()


def test_compare_judges_by_the_likelihoods_of_scoring(inputs, scored, tmp_path):
  work = shutil.copytree(scored, tmp_path / 'work')
  c = compare_config(inputs)
  c.compare.table = (('random', 'rows', 4, 1),)
  c.finetune.max_steps = 1
  pipeline.run('compare', c, str(work))
  results = json.loads((work / 'compare' / 'results.json').read_text())
  other = make_config(inputs | {'data': inputs['held_out']})
  other.stages = ('prepare', 'score')
  pipeline.run('run', other, str(tmp_path / 'scored'))
  table = pq.read_table(tmp_path / 'scored' / 'scores.parquet')
  nll = sum(table['nll_a_given_q_strong'].to_pylist())
  tokens = sum(table['n_a_strong'].to_pylist())
  assert results['held_out'] == {'rows': 12, 'tokens': tokens}
  config = checkpoint.load(inputs['strong'], mesh=None).config
  rel = tolerances.decoder(config, 128)
  assert results['start'] == pytest.approx(nll / tokens, rel=rel)


def test_validation_samples_that_are_trained_on_are_refused(inputs, tmp_path):
  rows = records(4, 5) + records(40, 0)[9:10]
  held = write_jsonl(tmp_path / 'held.jsonl', rows)
  c = make_config(inputs, data='all', validation=held)
  c.stages = ('prepare', 'finetune')
  with pytest.raises(ValueError, match='held.jsonl holds row 9 of the train'):
    pipeline.run('run', c, str(tmp_path / 'w'))
