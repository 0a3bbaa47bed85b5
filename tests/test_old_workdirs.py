"""Work directories that an earlier version wrote go on (fixtures/README)."""

import importlib.util
import json
import pathlib
import tarfile

import numpy as np
import pyarrow.parquet as pq
import pytest

from qaq_jax import pipeline
from qaq_jax.data import types
from qaq_jax.workdir import files

_ARCHIVE = (
  pathlib.Path(__file__).parent / 'fixtures/old_workdirs/workdirs.tar.xz'
)
# Likelihoods of about 60 tokens in float32, on another CPU: see tolerances.
_RTOL = 2e-5


@pytest.fixture
def old(tmp_path, monkeypatch):
  """The unpacked folder, which is also the working directory."""
  with tarfile.open(_ARCHIVE) as archive:
    archive.extractall(tmp_path, filter='data')
  monkeypatch.chdir(tmp_path)
  return tmp_path


def run(stage, workdir, **sections):
  """Runs a stage with the recipe that the folders were made with."""
  spec = importlib.util.spec_from_file_location('recipe', 'recipe.py')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  config = module.get_config()
  for name, changes in sections.items():
    config[name].update(changes)
  for section in (config.score, config.finetune, config.evaluate):
    section.mesh.data = -1  # the folders were begun on one device
  pipeline.run(stage, config, workdir)


def contents(folder):
  return {p: p.read_bytes() for p in sorted(folder.glob('*.parquet'))}


def same_scores(path, expected):
  found, wanted = pq.read_table(path), pq.read_table(expected)
  assert found.schema.equals(wanted.schema, check_metadata=True)
  for name in wanted.column_names:
    a, b = found.column(name).to_pylist(), wanted.column(name).to_pylist()
    if 'nll' in name:
      np.testing.assert_allclose(a, b, rtol=_RTOL, err_msg=name)
    elif name.startswith('n_'):
      assert a == b, name


def test_half_scored_goes_on(old):
  parts = old / 'half_scored' / 'scores' / 'strong'
  before = contents(parts)
  assert len(before) == 2
  run('score', 'half_scored')
  after = contents(parts)
  assert len(after) == 4
  assert {p: after[p] for p in before} == before
  same_scores(
    old / 'half_scored/scores.parquet', old / 'complete/scores.parquet'
  )


def test_scored_is_not_scored_again(old):
  folders = [old / 'scored' / 'scores' / name for name in ('strong', 'weak')]
  before = [contents(folder) for folder in folders]
  table = (old / 'scored/scores.parquet').read_bytes()
  run('score', 'scored')
  assert [contents(folder) for folder in folders] == before
  assert (old / 'scored/scores.parquet').read_bytes() == table


@pytest.mark.parametrize('folder', ['scored', 'selected'])
def test_the_same_rows_are_selected(old, folder):
  run('select', folder)
  for name in ('selection.json', 'selected.jsonl'):
    expected = (old / 'complete' / name).read_bytes()
    assert (old / folder / name).read_bytes() == expected


def test_killed_training_goes_on(old):
  def curve(folder):
    lines = (old / folder / 'finetune/metrics.jsonl').read_text().splitlines()
    return {r['step']: r['loss'] for r in map(json.loads, lines) if 'loss' in r}

  before = curve('finetune_killed')
  run('finetune', 'finetune_killed')
  losses, expected = curve('finetune_killed'), curve('complete')
  assert {step: losses[step] for step in (1, 2)} == {
    step: before[step] for step in (1, 2)
  }
  assert losses.keys() == expected.keys()
  # Of float32 sums over a few hundred tokens after six updates.
  np.testing.assert_allclose(
    [losses[s] for s in sorted(losses)],
    [expected[s] for s in sorted(losses)],
    rtol=1e-4,
  )
  assert (old / 'finetune_killed/finetune/model/model.safetensors').exists()


@pytest.mark.parametrize('folder', ['generating', 'judging'])
def test_half_an_evaluation_goes_on(old, folder):
  tasks = old / folder / 'evaluate' / 'demo_tasks'
  names = ['generations.jsonl', 'verdicts.jsonl']
  before = {
    name: (tasks / name).read_text().splitlines()
    for name in names
    if (tasks / name).exists()
  }
  assert len(before) == (1 if folder == 'generating' else 2)
  run('evaluate', folder, evaluate={'allow_code_execution': True})
  for name in names:
    after = (tasks / name).read_text().splitlines()
    kept = before.get(name, [])
    assert after[: len(kept)] == kept
    assert len(after) == 11  # a header, ten tasks
  results, expected = (
    json.loads((old / f / 'evaluate/results.json').read_text())
    for f in (folder, 'complete')
  )
  assert results['model_files'] == expected['model_files']
  assert results['scores'] == expected['scores']


def test_scores_go_on_with_the_wording_they_began_with(
  old, monkeypatch, capsys
):
  """A new default words no half of a folder anew; a config that says does."""
  begun = types.REVERSE_INSTRUCTION
  monkeypatch.setattr(types, 'REVERSE_INSTRUCTION', '{answer}\nWhat for?')
  monkeypatch.setattr(types, 'EARLIER_REVERSE_INSTRUCTIONS', (begun,))
  with pytest.raises(files.StoreError, match='reverse_instruction'):
    run('score', 'half_scored', score={'reverse_instruction': 'Say {answer}'})
  run(
    'score',
    'half_scored',
    score={'reverse_instruction': types.REVERSE_INSTRUCTION},
  )
  assert 'weak: goes on with the reverse instruction' in capsys.readouterr().out
  same_scores(
    old / 'half_scored/scores.parquet', old / 'complete/scores.parquet'
  )


def test_scores_of_several_wordings_are_told_apart(old, monkeypatch):
  """Each of an earlier version's own: there is none to go on with."""
  begun = types.REVERSE_INSTRUCTION
  path = old / 'scored/scores/weak/fingerprint.json'
  other = 'What is {answer} for?'
  path.write_text(
    path.read_text().replace(json.dumps(begun), json.dumps(other))
  )
  for part in path.parent.glob('part-*'):  # they carry the other's hash
    part.unlink()
  monkeypatch.setattr(types, 'REVERSE_INSTRUCTION', '{answer}\nWhat for?')
  monkeypatch.setattr(types, 'EARLIER_REVERSE_INSTRUCTIONS', (begun, other))
  with pytest.raises(files.StoreError) as told:
    run(
      'score',
      'scored',
      score={'reverse_instruction': types.REVERSE_INSTRUCTION},
    )
  assert f'scores/weak: {other!r}' in str(told.value)
  assert f'scores/strong: {begun!r}' in str(told.value)
