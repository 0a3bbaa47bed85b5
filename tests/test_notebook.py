"""The notebook's cells run on a small work directory, without Jupyter."""

import json
import pathlib

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from selection_tables import make_table

from qaq_jax.data import samples
from qaq_jax.selection import derived

NOTEBOOK = (
  pathlib.Path(__file__).parent.parent / 'notebooks' / 'probe_rmi.ipynb'
)


@pytest.fixture
def workdir(tmp_path):
  source = tmp_path / 'input.jsonl'
  with source.open('w') as file:
    for i in range(120):
      record = {
        'instruction': f'Add {i} to a number',
        'input': '',
        'output': f'def add(number):\n  return number + {i}',
      }
      file.write(json.dumps(record) + '\n')
  samples.prepare(samples.DataSource(path=str(source)), tmp_path / 'samples')
  table = make_table(120)
  table |= derived.derive(table, ['strong', 'weak'])
  pq.write_table(pa.table(table), tmp_path / 'scores.parquet')
  return tmp_path


def test_the_notebook_runs_from_top_to_bottom(workdir, monkeypatch, capsys):
  monkeypatch.setenv('QAQ_WORKDIR', str(workdir))
  notebook = json.loads(NOTEBOOK.read_text(encoding='utf-8'))
  scope = {}
  for cell in notebook['cells']:
    if cell['cell_type'] == 'code':
      assert not cell['outputs'], 'commit the notebook without outputs'
      source = ''.join(cell['source'])
      exec(compile(source, f'{NOTEBOOK.name}:{cell["id"]}', 'exec'), scope)
  printed = capsys.readouterr().out
  assert '120 rows; models: strong, weak' in printed
  assert 'LOWEST' in printed and 'HIGHEST' in printed
  assert 'return number +' in printed
  assert 'Rule diff_high' in printed
