"""The stage from a model to results, and the program in what a model wrote."""

import json
import pathlib
import shutil
import subprocess
import sys

import pytest

from qaq_jax import config as config_lib
from qaq_jax import pipeline
from qaq_jax.evaluation import benchmarks, postprocess

_FILES = pathlib.Path(__file__).parent / 'fixtures' / 'benchmarks'


def get_config(arg=None):
  """Also a recipe of its own, for the command line."""
  del arg
  c = config_lib.get_default()
  c.roles.strong = c.roles.weak = ''
  c.evaluate.path = config_lib.embedded_model('weak')
  c.evaluate.chat_template = 'plain'
  c.evaluate.dtype = 'float32'
  c.evaluate.files.humaneval = str(_FILES / 'humaneval_plus.jsonl')
  c.evaluate.files.mbpp = str(_FILES / 'mbpp_plus.jsonl')
  c.evaluate.files.mbpp_original = str(_FILES / 'mbpp.jsonl')
  c.evaluate.benchmarks = ('humaneval_plus',)
  c.evaluate.max_new_tokens = 16
  c.evaluate.batch_size = 1  # one shape, however many rows are left
  c.evaluate.allow_uncontained = True
  return c


def _lines(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def test_samples_without_permission_then_results(tmp_path, capsys, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  config = get_config()
  config.evaluate.limit = 2
  pipeline.run('evaluate', config, tmp_path)
  config.evaluate.limit = 0  # goes on with the third
  pipeline.run('evaluate', config, tmp_path)
  said = capsys.readouterr().out
  assert 'nothing was executed' in said
  assert '--allow-code-execution' in said
  folder = tmp_path / 'evaluate' / 'humaneval_plus'
  tasks = ['HumanEval/900', 'HumanEval/901', 'HumanEval/902']
  generated = _lines(folder / 'generations.jsonl')
  assert sorted(r['task_id'] for r in generated[1:]) == tasks
  assert generated[-1]['task_id'] == tasks[-1]
  for name in ('samples.jsonl', 'samples.raw.jsonl'):
    made = _lines(folder / name)
    assert [r['task_id'] for r in made] == tasks
    assert all(set(r) == {'task_id', 'solution'} for r in made)
  assert not (folder / 'verdicts.jsonl').exists()
  assert not (tmp_path / 'evaluate' / 'results.json').exists()

  # One row is lost: it is generated again, and is the same as before.
  path = folder / 'generations.jsonl'
  whole = path.read_text()
  path.write_text(''.join(whole.splitlines(keepends=True)[:-1]) + '{"task')
  config.evaluate.allow_code_execution = True
  pipeline.run('evaluate', config, tmp_path)
  assert sorted(whole.splitlines()) == sorted(path.read_text().splitlines())
  results = json.loads((tmp_path / 'evaluate' / 'results.json').read_text())
  assert results['prompt'] == 'chat'
  assert list(results['scores']) == ['humaneval', 'humaneval_plus']
  assert results['scores']['humaneval']['pass@1']['value'] == 0.0
  shown = capsys.readouterr().out
  assert 'humaneval_plus       pass@1       0.0  0.0 - 56.1' in shown
  assert shown.rstrip().endswith('chat')

  assert 'model.safetensors' in results['model_files']

  config.evaluate.max_new_tokens = 8
  with pytest.raises(ValueError, match='max_new_tokens: 16 -> 8'):
    pipeline.run('evaluate', config, tmp_path)


def test_generations_of_other_settings_are_not_mixed(tmp_path):
  """Also of a file that is no part of the model's own fingerprint."""
  model = tmp_path / 'model'
  shutil.copytree(config_lib.embedded_model('weak'), model)
  config = get_config()
  config.evaluate.path = str(model)
  config.evaluate.limit = 1
  config.evaluate.max_new_tokens = 2
  config.evaluate.temperature = 1.0
  pipeline.run('evaluate', config, tmp_path)
  for field, value, message in (
    ('attention', 'xla', 'attention: "auto" -> "xla"'),
    ('top_k', 5, 'top_k: 0 -> 5'),
  ):
    before = config.evaluate[field]
    config.evaluate[field] = value
    with pytest.raises(ValueError, match=message):
      pipeline.run('evaluate', config, tmp_path)
    config.evaluate[field] = before
  (model / 'generation_config.json').write_text('{"eos_token_id": [0, 7, 9]}')
  with pytest.raises(ValueError, match='stop_ids: '):
    pipeline.run('evaluate', config, tmp_path)


def test_drawn_samples_do_not_depend_on_what_was_there(tmp_path):
  config = get_config()
  config.evaluate.benchmarks = ('mbpp_original',)
  config.evaluate.prompt = 'base'
  config.evaluate.max_new_tokens = 8
  config.evaluate.temperature = 1.0
  config.evaluate.samples = 2
  pipeline.run('evaluate', config, tmp_path)
  path = tmp_path / 'evaluate' / 'mbpp_original' / 'generations.jsonl'
  whole = path.read_text().splitlines(keepends=True)
  texts = {r['text'] for r in map(json.loads, whole[1:])}
  assert len(texts) == 4
  path.write_text(whole[0] + whole[3])
  pipeline.run('evaluate', config, tmp_path)
  assert sorted(path.read_text().splitlines(keepends=True)) == sorted(whole)


def _qaq(tmp_path, *options):
  return subprocess.run(
    [
      sys.executable,
      '-m',
      'qaq_jax.main',
      'evaluate',
      f'--config={__file__}',
      f'--workdir={tmp_path}',
      *options,
    ],
    cwd=pathlib.Path(__file__).parent.parent,
    text=True,
    check=True,
    capture_output=True,
  ).stdout


def test_a_field_of_the_recipe_does_not_permit_execution(tmp_path):
  shown = _qaq(tmp_path, '--config.evaluate.allow_code_execution=True')
  assert 'nothing was executed' in shown
  assert not (tmp_path / 'evaluate' / 'results.json').exists()


def test_right_programs_pass_from_the_command_line(tmp_path):
  """What the model wrote is replaced by right answers, then run."""
  config = get_config()
  pipeline.run('evaluate', config, tmp_path)
  path = tmp_path / 'evaluate' / 'humaneval_plus' / 'generations.jsonl'
  right = {
    r['task_id']: r['prompt'] + r['canonical_solution']
    for r in _lines(_FILES / 'humaneval_plus.jsonl')
  }
  # With their checksums the lines would be refused.
  header, *records = (
    {k: v for k, v in line.items() if k != 'crc32'} for line in _lines(path)
  )
  records = [r | {'text': right[r['task_id']]} for r in records]
  path.write_text('\n'.join(map(json.dumps, [header, *records])) + '\n')
  shown = _qaq(tmp_path, '--allow-code-execution')
  assert 'humaneval_plus       pass@1     100.0  43.9 - 100.0' in shown


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'benchmarks': ('humanevil',)}, 'there is no .humanevil.; there are: hum'),
    ({'benchmarks': ()}, 'names none'),
    (
      {'benchmarks': ('humaneval_original',)},
      'files.humaneval_original is empty.*github.com/openai/human-eval',
    ),
    ({'path': ''}, 'there is no fine-tuned model; run `qaq finetune`'),
    ({'samples': 5}, 'temperature 0 would be the same program'),
    ({'prompt': 'chatty'}, 'prompt style .chatty.: choose one of'),
    ({'chat_template': 'auto'}, 'has no chat template'),
  ],
)
def test_what_cannot_be_evaluated(tmp_path, change, message):
  config = get_config()
  config.evaluate.update(change)
  with pytest.raises(ValueError, match=message):
    pipeline.run('evaluate', config, tmp_path)


def _task(prompt='', name='f'):
  return benchmarks.Task('T/1', prompt, name, '', {})


def test_prompts_are_those_of_evalplus():
  task = _task('\ndef f(x):\n    """Doubles."""\n')
  chat = postprocess.make_prompt('humaneval', task, 'chat')
  assert chat.query == (
    'Please provide a self-contained Python script that solves the '
    'following problem in a markdown code block:\n'
    '```\ndef f(x):\n    """Doubles."""\n```\n'
  )
  assert chat.answer == (
    'Below is a Python script with a self-contained function that solves '
    'the problem and passes corresponding tests:\n```python\n'
  )
  assert '\n```\n' in chat.stops
  assert '\ndef ' not in chat.stops
  base = postprocess.make_prompt('humaneval', task, 'base')
  assert base.query == 'def f(x):\n    """Doubles."""\n'
  assert base.answer == ''
  assert {'\ndef ', '\nclass ', '\nprint(', '</s>'} <= set(base.stops)
  mbpp = postprocess.make_prompt('mbpp', task, 'base')
  assert {'\n"""', '\nassert'} <= set(mbpp.stops)
  assert '\ndef ' not in mbpp.stops


def test_base_answers_go_on_after_the_prompt():
  task = _task('def f(x):\n    """Doubles."""\n')
  whole = postprocess.whole_text(task, 'base', '\treturn 2 * x\n\tx =')
  program = postprocess.extract(whole, 'f')
  assert program == 'def f(x):\n    """Doubles."""\n    return 2 * x'
  whole = postprocess.whole_text(task, 'chat', 'def f(x):\n\treturn 2')
  assert whole == 'def f(x):\n    return 2'


_WANTED = 'def f(x):\n    return g(x) + K\ndef g(x):\n    return x'


@pytest.mark.parametrize(
  ('text', 'program'),
  [
    # Prose around it, and a fence.
    (
      'Here it is:\n```python\ndef f(x):\n    return x\n```\nIt works.',
      'def f(x):\n    return x',
    ),
    # What the entry point needs, whatever the order; imports first.
    (
      'K = 1\nUNUSED = 2\ndef f(x):\n    return g(x) + K\n'
      'def g(x):\n    return x\nimport math\nprint(f(1))',
      'import math\nK = 1\n' + _WANTED,
    ),
    # A call, an assertion, a script: left out.
    (
      'def f(x):\n    return x\nassert f(1) == 1\n'
      'if __name__ == "__main__":\n    f(2)',
      'def f(x):\n    return x',
    ),
    # The first definition of a name.
    (
      'def f(x):\n    return 1\ndef f(x):\n    return 2',
      'def f(x):\n    return 1',
    ),
    # A function without a return is no candidate.
    ('def f(x):\n    pass\ndef f(x):\n    return 2', 'def f(x):\n    return 2'),
    # Classes, through a method's name as well.
    (
      'class C:\n    def go(self):\n        return h()\n'
      'def h():\n    return 1\n'
      'def f(x):\n    return C().go()',
      'class C:\n    def go(self):\n        return h()\n'
      'def h():\n    return 1\n'
      'def f(x):\n    return C().go()',
    ),
    # Nothing of use: the valid text itself.
    ('x.y = 1\nprint(2)', 'x.y = 1\nprint(2)'),
    ('def f(:\nreturn', 'def f(:'),
    ('', ''),
    ('\0', '\0'),
    # Unfinished: the longest part that is valid.
    (
      'def f(x):\n    return x\n\ndef g(y):\n    return (y',
      'def f(x):\n    return x',
    ),
  ],
)
def test_the_program_in_a_text(text, program):
  assert postprocess.extract(text, 'f') == program


def test_texts_that_are_hard_to_parse():
  assert postprocess.extract('(' * 10_000, 'f') == '(' * 10_000
  assert postprocess.extract('-' * 100_000 + '1', 'f').startswith('--')
  assert postprocess.extract('x\n' * 20_000, 'f').count('\n') < 1000
