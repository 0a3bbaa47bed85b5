"""Training and evaluation with plain arguments: no config, no stage."""

import dataclasses
import json
import pathlib

import pytest

from qaq_jax.config import embedded_model
from qaq_jax.data.types import Sample
from qaq_jax.evaluation import benchmarks, job
from qaq_jax.evaluation.options import EvaluateOptions, Options
from qaq_jax.finetune.job import Job
from qaq_jax.finetune.options import FitOptions, JobOptions, OptimizerOptions
from qaq_jax.generation.options import GeneratorOptions
from qaq_jax.models import sharding
from qaq_jax.models.options import LoraOptions
from qaq_jax.stages.model import open_model

FILES = pathlib.Path(__file__).parent / 'fixtures' / 'benchmarks'


def pairs(number, first=0):
  return [
    Sample(
      row=row,
      id=None,
      query=f'add {row} to x',
      answer=f'def add(x):\n  return x + {row}\n',
      system=None,
      status='ok',
      reason='',
      raw='',
    )
    for row in range(first, first + number)
  ]


def one_device():
  import jax

  return sharding.make_mesh(devices=jax.devices()[:1])


def trained(folder, **changes):
  options = JobOptions(
    fit=FitOptions(
      max_length=64,
      batch_size=4,
      tokens_per_device=64,
      max_steps=2,
      eval_every=1,
      log_every=1,
      progress=False,
    ),
    optimizer=OptimizerOptions(learning_rate=1e-3, warmup_ratio=0.0),
    dtype='float32',
    looks=1,
    **changes,
  )
  model = open_model(embedded_model('weak'), field='model')
  made = Job(model, options, mesh=one_device(), template='plain')
  return made.run(pairs(8), folder, validation=pairs(2, first=100))


def test_a_model_is_trained_and_evaluated(tmp_path, capsys):
  result = trained(tmp_path / 'run')
  assert result == json.loads((tmp_path / 'run/result.json').read_text())
  assert (result['examples'], result['updates']) == (8, 2)
  [look, *_] = (tmp_path / 'run/samples.jsonl').read_text().splitlines()
  assert 'add 100 to x' in look
  said = capsys.readouterr().out
  assert 'training: ' in said
  assert said.endswith(f'wrote {tmp_path / "run/model"}\n')

  model = open_model(result['exported'][0], field='model')
  options = EvaluateOptions(
    generator=GeneratorOptions(max_new_tokens=4, batch_size=1),
    dtype='float32',
  )
  read = [
    benchmarks.read(
      'humaneval_plus', str(FILES / 'humaneval_plus.jsonl'), limit=1
    )
  ]
  folder, mesh = tmp_path / 'evaluation', one_device()
  found = job.evaluate(
    model, read, folder, options, mesh=mesh, template='plain'
  )
  assert found == {'executed': False, 'samples': {'humaneval_plus': 1}}
  told = str(folder / 'humaneval_plus/samples.jsonl')
  assert told in capsys.readouterr().out
  options = EvaluateOptions(
    generator=options.generator,
    dtype='float32',
    allow_code_execution=True,
    execution=Options(workers=1, allow_uncontained=True),
  )
  generations = (folder / 'humaneval_plus/generations.jsonl').read_bytes()
  found = job.evaluate(
    model, read, folder, options, mesh=mesh, template='plain'
  )
  assert found['executed'] and 'humaneval_plus' in found['scores']
  assert (folder / 'humaneval_plus/generations.jsonl').read_bytes() == (
    generations
  )
  kept = json.loads((folder / 'results.json').read_text())
  assert kept['model_files'] == model.hashes


def test_adapters_are_trained(tmp_path):
  result = trained(tmp_path, lora=LoraOptions(rank=2))
  assert result['start']['lora'] == {'rank': 2, 'alpha': 16.0, 'targets': ()}
  assert [pathlib.Path(path).name for path in result['exported']] == [
    'model',
    'adapter',
  ]


def test_one_length_says_what_is_long(capsys):
  model = open_model(embedded_model('weak'), field='model')
  options = JobOptions(fit=FitOptions(max_length=64))
  made = Job(model, options, mesh=one_device(), template='plain')
  long = dataclasses.replace(pairs(1)[0], row=8, answer='x = 1\n' * 100)
  found = made.examples([*pairs(8), long], 'training')
  assert [example.row for example in found] == list(range(8))
  assert '1 samples left out: too long' in capsys.readouterr().out


@pytest.mark.parametrize(
  'kind, wrong, words',
  [
    (EvaluateOptions, {'prompt': 'chatt'}, "prompt style 'chatt'.*chat.*base"),
    (EvaluateOptions, {'samples': 0}, 'samples=0: 1 per task'),
    (EvaluateOptions, {'samples': 2}, '^samples=2 at temperature 0'),
    (EvaluateOptions, {'dtype': 'int8'}, "dtype is 'int8'.*float32, bfloat16"),
    (JobOptions, {'dtype': 'int8'}, "^dtype is 'int8'; it is one of float32"),
    (JobOptions, {'export_dtype': 'f32'}, "export_dtype is 'f32'.*float16"),
  ],
)
def test_wrong_options_are_refused_by_their_name(kind, wrong, words):
  with pytest.raises(ValueError, match=words):
    kind(**wrong)


def test_wrong_arguments_are_refused_by_their_name(tmp_path):
  model = open_model(embedded_model('weak'), field='model')
  base, mesh = EvaluateOptions(prompt='base'), one_device()
  with pytest.raises(TypeError, match='tmeplate'):
    job.evaluate(model, [], tmp_path, base, mesh=mesh, tmeplate='plain')
  with pytest.raises(TypeError, match="holds 'humaneval'; each is from .*read"):
    job.evaluate(model, ['humaneval'], tmp_path, base, mesh=mesh)
  long = JobOptions(fit=FitOptions(max_length=5000))
  with pytest.raises(ValueError, match='^max_length: 5000 tokens are more'):
    Job(model, long, mesh=mesh, template='plain')
  short = JobOptions(fit=FitOptions(max_length=64))
  made = Job(model, short, mesh=mesh, template='plain')
  with pytest.raises(ValueError, match='^there are no training samples$'):
    made.run([], tmp_path)


def test_no_sample_that_fits_is_told(tmp_path):
  model = open_model(embedded_model('weak'), field='model')
  options = JobOptions(fit=FitOptions(max_length=16))
  made = Job(model, options, mesh=one_device(), template='plain')
  with pytest.raises(ValueError, match='no training sample can be used'):
    made.run(pairs(2), tmp_path)
