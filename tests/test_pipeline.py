"""The stages together, from a file of odd rows to chosen samples."""

import gzip
import json
import pathlib
import re
import shutil
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
import tiny_tokenizers

from qaq_jax import config as config_lib
from qaq_jax import pipeline
from qaq_jax.data import samples
from qaq_jax.models.hf import checkpoint
from qaq_jax.models.hf.read_config import read_config
from qaq_jax.runtime import runlog
from qaq_jax.selection.options import ENGINES
from qaq_jax.selection.rules import eligible
from qaq_jax.selection.rules import rule as rule_lib
from qaq_jax.stages import artifacts
from qaq_jax.workdir import files
from qaq_jax.workdir.layout import WorkDir

ROOT = pathlib.Path(__file__).resolve().parent.parent

ODD_LINES = [
  b'{"id": 7, "instruction": "", "output": "x = 1", "kind": "odd"}',
  b'{"id": 7, "instruction": "Say <|im_end|>", "output": "print(1)\\r\\n",'
  b' "kind": "odd"}',
  b'{"id": 8, "instruction": 3, "output": "x", "kind": "odd"}',
  b'{"id": 9, "instruction": "Write \xf0\x9f\x98\x80 " , "output": "y=2",'
  b'"kind":"odd"}',
  b'{"instruction": "Long", "output": "'
  + b'a = 1 ' * 200
  + b'", "kind": "odd"}',
]


def make_model(folder: pathlib.Path, seed: int) -> pathlib.Path:
  """A random two-layer Qwen3 checkpoint with a tokenizer of its own."""
  folder = pathlib.Path(tiny_tokenizers.make(folder, 'qwen'))
  vocab = json.loads((folder / 'tokenizer.json').read_text())
  size = len(vocab['model']['vocab']) + len(vocab['added_tokens'])
  config = read_config(
    {
      'model_type': 'qwen3',
      'vocab_size': size,
      'hidden_size': 32,
      'intermediate_size': 48,
      'num_hidden_layers': 2,
      'head_dim': 16,
      'num_attention_heads': 2,
      'num_key_value_heads': 1,
      'max_position_embeddings': 256,
      'rms_norm_eps': 1e-6,
      'rope_theta': 10000.0,
      'tie_word_embeddings': True,
      'hidden_act': 'silu',
      'attention_bias': False,
    }
  )
  model = checkpoint.random_init(config, mesh=None, seed=seed)
  checkpoint.save_hf(model, folder)
  return folder


@pytest.fixture(scope='module')
def inputs(tmp_path_factory):
  """Two checkpoints and a JSONL file."""
  folder = tmp_path_factory.mktemp('inputs')
  lines = [
    json.dumps(
      {
        'id': i,
        'instruction': f'Add {i} to the list.' * (1 + i % 3),
        'output': f'def add(xs):\n  return xs + [{i}]\n' * (1 + i % 4),
        'kind': 'plain',
      }
    ).encode()
    for i in range(60)
  ]
  lines[10:10] = ODD_LINES
  data = folder / 'data.jsonl'
  data.write_bytes(b'\n'.join(lines) + b'\n')
  targets = folder / 'targets.jsonl'
  targets.write_bytes(b'\n'.join(lines[:5]))
  return {
    'data': data,
    'lines': lines,
    'targets': targets,
    'strong': make_model(folder / 'strong', 1),
    'weak': make_model(folder / 'weak', 2),
  }


def make_config(inputs):
  config = config_lib.get_default()
  config.data.path = str(inputs['data'])
  for name in ('strong', 'weak'):
    config_lib.add_model(
      config,
      name,
      str(inputs[name]),
      dtype='float32',
      chat_template='chatml',
    )
  config.score.max_length = 256
  config.score.max_shapes = 2
  config.score.rows_per_part = 16
  config.score.embeddings = True
  config.score.targets_path = str(inputs['targets'])
  config.audit.label = 'kind'
  return config


@pytest.fixture(scope='module')
def finished(inputs, tmp_path_factory):
  """A work directory after `qaq run`."""
  workdir = tmp_path_factory.mktemp('work') / 'run'
  pipeline.run('run', make_config(inputs), str(workdir))
  return workdir


def test_every_input_row_has_one_output_row_with_a_status(inputs, finished):
  table = pq.read_table(finished / 'scores.parquet')
  assert table['row'].to_pylist() == list(range(len(inputs['lines'])))
  status = table['status_strong'].to_pylist()
  assert status[10:15] == ['empty', 'ok', 'invalid', 'ok', 'too_long']
  assert status[:10] + status[15:] == ['ok'] * 60
  for name in ('nll_q_strong', 'nll_a_given_q_weak', 'rmi_strong', 'diff'):
    nulls = [v is None for v in table[name].to_pylist()]
    assert nulls == [s != 'ok' for s in status], name
  assert all(table['reason_weak'].to_pylist()[i] for i in (10, 12, 14))
  assert table['id'].to_pylist()[9:16] == [9, 7, 7, 8, 9, None, 10]


def test_analyses_are_printed_and_written(inputs, finished, capsys):
  pipeline.run('analyse', make_config(inputs), str(finished))
  out = capsys.readouterr().out
  assert 'RMI (strong) with RMI (weak)' in out
  found = json.loads((finished / 'analyses.json').read_text())
  overlap = found['overlap']
  assert len(overlap['matrix']) == len(overlap['rules']) > 10
  assert set(overlap['left_out']) >= {'scar'}
  assert all(line[i] == 1 for i, line in enumerate(overlap['matrix']))


def test_columns_are_those_of_the_architecture(finished):
  names = pq.read_schema(finished / 'scores.parquet').names
  per_model = [
    'nll_q',
    'nll_q_given_a',
    'nll_a',
    'nll_a_given_q',
    'n_q',
    'n_q_given_a',
    'n_a',
    'status',
    'reason',
    'rmi',
    'ifd',
    'r_ifd',
    'stratum',
    'rank',
  ]
  wanted = {f'{c}_{m}' for c in per_model for m in ('strong', 'weak')}
  assert set(names) == wanted | {'row', 'id', 'diff', 'sum'}


def test_rmi_is_the_difference_of_the_stored_means(finished):
  t = pq.read_table(finished / 'scores.parquet').to_pandas().dropna()
  expected = (
    t.nll_q_strong / t.n_q_strong
    - t.nll_q_given_a_strong / t.n_q_given_a_strong
  )
  np.testing.assert_allclose(t.rmi_strong, expected, rtol=1e-6, atol=1e-7)
  assert (t.n_q_strong == t.n_q_given_a_strong).all()


def test_chosen_samples_are_the_inputs_own_lines(inputs, finished):
  selection = json.loads((finished / 'selection.json').read_text())
  chosen = (finished / 'selected.jsonl').read_bytes().splitlines()
  assert len(chosen) == selection['counts']['kept'] == 15  # 62 eligible
  positions = [inputs['lines'].index(line) for line in chosen]
  assert positions == sorted(positions)
  table = pq.read_table(finished / 'scores.parquet').to_pandas()
  others = table['diff'].drop(index=positions).max()
  assert table['diff'][positions].min() >= others
  assert set(selection['scores']) == {'strong', 'weak'}


def test_run_log_has_versions_devices_and_stages(finished):
  events = [
    json.loads(line) for line in (finished / 'run.log').read_text().splitlines()
  ]
  assert events[0]['event'] == 'environment'
  assert events[0]['versions']['jax'] and events[0]['devices'] == 8
  ended = [e['stage'] for e in events if e['event'] == 'end']
  assert ended[:4] == ['prepare', 'score', 'select', 'report']


def test_run_log_has_the_trace_of_a_stage_that_failed(tmp_path):
  log = runlog.RunLog(tmp_path / 'run.log', ['qaq', 'score'])
  with pytest.raises(KeyError), log.stage('score'):
    raise KeyError('lost')
  text = (tmp_path / 'run.log').read_text()
  start, failed = map(json.loads, text.splitlines())
  assert (start['event'], failed['event']) == ('start', 'failed')
  assert failed['stage'] == 'score' and failed['seconds'] >= 0
  assert (
    'Traceback' in failed['error'] and "KeyError: 'lost'" in failed['error']
  )


def test_report_is_one_page_with_escaped_samples(finished):
  page = (finished / 'report' / 'index.html').read_text()
  assert page.startswith('<!') and 'diff_high' in page
  assert 'src="http' not in page and '<|im_end|>' not in page


def test_second_run_scores_nothing_and_changes_nothing(inputs, finished):
  parts = sorted((finished / 'scores').rglob('part-*'))
  before = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in parts}
  table = (finished / 'scores.parquet').read_bytes()
  pipeline.run('run', make_config(inputs), str(finished))
  assert len(parts) == 2 * 5 * 2  # tables and embeddings, parts, models
  assert before == {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in parts}
  assert (finished / 'scores.parquet').read_bytes() == table


def test_another_rule_needs_no_model(inputs, finished, capsys):
  config = make_config(inputs)
  config.models.strong.path = config.models.weak.path = '/nowhere'
  config.select.rule = 'rmi_window'
  config.select.budget.rows = 5
  pipeline.run('select', config, str(finished))
  printed = capsys.readouterr().out
  assert 'rmi_window' in printed and 'Kept 5 rows' in printed
  assert len((finished / 'selected.jsonl').read_bytes().splitlines()) == 5


def test_duckdb_chooses_the_same(inputs, finished):
  config = make_config(inputs)
  pipeline.run('select', config, finished)
  chosen = (finished / 'selected.jsonl').read_bytes()
  config.select.engine = 'duckdb'
  pipeline.run('select', config, finished)
  assert (finished / 'selected.jsonl').read_bytes() == chosen
  report = json.loads((finished / 'selection.json').read_text())
  assert report['engine'] == 'duckdb'
  config.select.engine = 'sqlite'
  with pytest.raises(ValueError, match='one of memory, duckdb'):
    pipeline.run('select', config, finished)


def test_a_draw_by_duckdb_is_the_same(inputs, finished):
  config = make_config(inputs)
  config.select.rule = 'random'
  pipeline.run('select', config, finished)
  chosen = (finished / 'selected.jsonl').read_bytes()
  config.select.engine = 'duckdb'
  pipeline.run('select', config, finished)
  assert (finished / 'selected.jsonl').read_bytes() == chosen


@pytest.fixture
def short_queries():
  """A rule, as anyone adds one: here, and nowhere else."""
  name = 'short_queries'

  @rule_lib.register(
    name,
    keeps='the shortest queries',
    source='a test',
    score='query tokens',
    models=eligible.played('strong'),
    needs=('n_q_{strong}',),
    highest=False,
    sql=rule_lib.Sql('n_q_strong'),
  )
  def _short_queries(columns, options, context):
    return rule_lib.Candidates(columns.length(columns.model('strong'), 'q'))

  yield name
  del rule_lib.RULES[name]


def test_a_new_rule_is_one_record(inputs, finished, capsys, short_queries):
  assert re.search(f'{short_queries} +the shortest', rule_lib.describe_rules())
  config = make_config(inputs)
  config.select.rule = short_queries
  config.select.budget.rows = 7
  reports = []
  for engine in ('memory', 'duckdb'):
    config.select.engine = engine
    pipeline.run('select', config, finished)
    reports.append(json.loads((finished / 'selection.json').read_text()))
    chosen = (finished / 'selected.jsonl').read_bytes().splitlines()
    assert len(chosen) == 7 and all(line.count(b'Add') < 2 for line in chosen)
  assert reports[1].pop('engine') == 'duckdb'
  assert reports[0]['rows_sha256'] == reports[1]['rows_sha256']
  assert reports[0]['cut'] == reports[1]['cut']
  assert reports[0]['per_stratum'] == reports[1]['per_stratum']
  assert reports[0].keys() == reports[1].keys()
  assert 'Rule short_queries: keeps the shortest queries' in (
    capsys.readouterr().out
  )
  config.select.engine = 'memory'
  pipeline.run('audit', config, finished)
  assert short_queries in capsys.readouterr().out
  pipeline.run('analyse', config, finished)
  overlap = json.loads((finished / 'analyses.json').read_text())['overlap']
  assert short_queries in overlap['rules']
  config.finetune.max_length = 256
  config.compare.table = ((short_queries, 'rows', 7, 1),)
  with pytest.raises(ValueError, match='compare.held_out is empty'):
    pipeline.run('compare', config, finished)
  config.compare.table = (('short_query', 'rows', 7, 1),)
  with pytest.raises(
    ValueError, match="compare.table is 'short_query'.*mean 'short_queries'"
  ):
    pipeline.run('compare', config, finished)


@pytest.fixture
def by_field():
  """A rule without SQL that reads the input's records and embeddings."""
  name = 'by_field'

  @rule_lib.register(
    name,
    keeps='the highest values of a field',
    source='a test',
    score='field',
    models=eligible.chosen_model,
    options={
      'model': eligible.MODEL,
      'column': ('id', 'the field'),
      'values': (None, 'of the field'),
      'vectors': (None, 'of the samples'),
    },
    inputs={
      'values': lambda run, options: run.field(options['column']),
      'vectors': lambda run, options: run.embeddings(options['model']),
    },
  )
  def _by_field(columns, options, context):
    assert len(np.load(options['vectors'])) == columns.num_rows
    return rule_lib.Candidates(options['values'])

  yield name
  del rule_lib.RULES[name]


def test_a_new_rule_is_served_with_its_inputs(inputs, finished, by_field):
  config = make_config(inputs)
  config.select.rule = by_field
  config.select.model = 'weak'
  config.select.budget.rows = 3
  pipeline.run('select', config, finished)
  chosen = (finished / 'selected.jsonl').read_bytes().splitlines()
  assert [json.loads(line)['id'] for line in chosen] == [57, 58, 59]
  config.select.column = 'absent'
  with pytest.raises(ValueError, match="has a field 'absent'"):
    pipeline.run('select', config, finished)


def test_a_rule_without_sql_is_refused_before_any_scoring(
  inputs, tmp_path, by_field
):
  config = make_config(inputs)
  config.select.rule, config.select.engine = by_field, 'duckdb'
  with pytest.raises(
    ValueError, match="duckdb has no rule 'by_field'.*use select.engine=memory"
  ):
    pipeline.run('run', config, str(tmp_path))
  assert not (tmp_path / 'scores').exists()


def test_rds_plus_reads_the_stored_embeddings(inputs, finished):
  config = make_config(inputs)
  config.select.rule = 'rds_plus'
  pipeline.run('select', config, str(finished))
  # Each target is one of the samples, and takes it.
  chosen = (finished / 'selected.jsonl').read_bytes().splitlines()
  assert set(inputs['lines'][:5]) <= set(chosen) and len(chosen) == 15


def test_audit_names_what_it_leaves_out(inputs, finished, capsys):
  config = make_config(inputs)
  pipeline.run('audit', config, str(finished))
  printed = capsys.readouterr().out
  assert 'rds_plus' in printed and 'unreadable' not in printed
  assert 'for want of scores: ifd_cherry, ifd_superfilter, scar' in printed
  config.audit.rules = ('scar',)
  with pytest.raises(ValueError, match='scar'):
    pipeline.run('audit', config, str(finished))


def test_output_is_compressed_when_its_name_says_so(inputs, finished):
  config = make_config(inputs)
  config.select.output = 'kept.jsonl.gz'
  pipeline.run('select', config, str(finished))
  lines = gzip.decompress((finished / 'kept.jsonl.gz').read_bytes())
  assert set(lines.splitlines()) <= set(inputs['lines'])


def test_audit_shares_add_up(inputs, finished, capsys):
  config = make_config(inputs)
  config.audit.rules = ('random', 'diff_high')
  pipeline.run('audit', config, str(finished))
  printed = capsys.readouterr().out
  assert 'rows in the data' in printed and 'diff_high' in printed
  event = json.loads((finished / 'run.log').read_text().splitlines()[-2])
  shares = event['let_through']['random']
  assert shares['plain'] * 60 + shares['odd'] * 5 == pytest.approx(15)


@pytest.mark.parametrize(
  'change, words',
  [
    (lambda c: c.score.update(max_length=128), 'max_length'),
    (lambda c: c.score.update(reverse_instruction='{answer}?'), 'reverse'),
    (lambda c: c.models.strong.update(dtype='bfloat16'), 'dtype'),
    (lambda c: c.models.strong.update(chat_template='plain'), 'template'),
    (lambda c: c.models.strong.update(path=c.models.weak.path), 'safetensors'),
    (lambda c: c.score.update(embeddings=False), 'embeddings'),
  ],
)
def test_changed_scoring_is_refused_by_name(inputs, finished, change, words):
  config = make_config(inputs)
  with config.unlocked():
    change(config)
  before = (finished / 'scores.parquet').read_bytes()
  with pytest.raises(ValueError, match=words):
    pipeline.run('score', config, str(finished))
  assert (finished / 'scores.parquet').read_bytes() == before


def test_changed_input_is_refused_and_the_old_samples_stay(
  inputs, finished, tmp_path
):
  data = tmp_path / 'data.jsonl'
  data.write_bytes(b'\n'.join(inputs['lines'][1:]))
  config = make_config(inputs)
  config.data.path = str(data)
  before = (finished / 'samples' / 'samples.json').read_bytes()
  with pytest.raises(ValueError, match='scores of other samples'):
    pipeline.run('prepare', config, str(finished))
  for stage in ('score', 'select', 'audit', 'report'):
    with pytest.raises(ValueError, match=r'config.data .*path: '):
      pipeline.run(stage, config, str(finished))
  assert (finished / 'samples' / 'samples.json').read_bytes() == before


def test_scores_of_other_samples_are_refused(inputs, finished, tmp_path):
  work = tmp_path / 'work'
  shutil.copytree(finished, work)
  data = tmp_path / 'data.jsonl'
  data.write_bytes(b'\n'.join(inputs['lines'][1:]))
  config = make_config(inputs)
  config.data.path = str(data)
  shutil.rmtree(work / 'samples')
  source = artifacts.data_source(config, WorkDir(work))
  samples.prepare(source, work / 'samples')
  for stage in ('score', 'select', 'audit', 'report'):
    with pytest.raises(ValueError, match='samples'):
      pipeline.run(stage, config, str(work))


def test_report_of_another_selection_is_refused(inputs, finished, capsys):
  config = make_config(inputs)
  config.select.rule = 'random'
  pipeline.run('select', config, str(finished))
  assert 'qaq report makes it anew' in capsys.readouterr().out
  with pytest.raises(ValueError, match='there: random; config: diff_high'):
    pipeline.run('report', make_config(inputs), str(finished))
  pipeline.run('report', config, str(finished))


def test_label_with_too_many_values_is_refused(inputs, finished):
  config = make_config(inputs)
  config.audit.label = 'output'
  with pytest.raises(ValueError, match="'output' has .* different values"):
    pipeline.run('audit', config, str(finished))


@pytest.mark.parametrize(
  'stage, words',
  [
    ('score', 'run the prepare stage'),
    ('select', 'run the prepare stage'),
  ],
)
def test_stages_out_of_order_say_what_to_run(inputs, tmp_path, stage, words):
  with pytest.raises(ValueError, match=words):
    pipeline.run(stage, make_config(inputs), str(tmp_path))


@pytest.mark.parametrize('engine', ENGINES)
def test_selecting_before_scoring_says_so(inputs, tmp_path, engine):
  config = make_config(inputs)
  config.select.engine = engine
  pipeline.run('prepare', config, str(tmp_path))
  with pytest.raises(ValueError, match='scores.parquet .* run the score stage'):
    pipeline.run('select', config, str(tmp_path))


def test_an_audit_needs_a_label(inputs, tmp_path):
  config = make_config(inputs)
  config.audit.label = ''
  with pytest.raises(ValueError, match='config.audit.label is empty'):
    pipeline.run('audit', config, str(tmp_path / 'none'))
  assert not (tmp_path / 'none').exists()


def set_role(c):
  c.roles.weak = 'weka'


def set_two_budgets(c):
  c.select.budget.rows, c.select.budget.share = 3, 0.5


def set_rule(c):
  c.select.rule = 'difff'


def set_stage(c):
  c.stages = ('prepair',)


def set_dtype(c):
  c.models.weak.dtype = 'float8'


def set_strata(c):
  c.strata.by = 'stron'


def set_option(c):
  c.select.lo = 0.3


def set_cherry(c):
  c.score.ifd_cherry = True


def set_length(c):
  c.score.max_length = 4096


@pytest.mark.parametrize(
  'change, words',
  [
    (set_role, "roles.weak is 'weka'"),
    (set_two_budgets, 'set one'),
    (set_rule, "'difff'"),
    (set_stage, "'prepair'"),
    (set_dtype, "models.weak.dtype is 'float8'"),
    (set_length, 'more than the 256 positions'),
    (set_strata, "strata.by is 'stron'"),
    (set_option, "select.lo is no option of the rule 'diff_high'"),
    (set_cherry, 'cherry_limit: 512 tokens are more than the 256'),
  ],
)
def test_unusable_config_is_named(inputs, tmp_path, change, words):
  config = make_config(inputs)
  change(config)
  with pytest.raises(ValueError, match=words):
    pipeline.run('run', config, str(tmp_path))
  assert not (tmp_path / 'scores').exists()  # found before any scoring


@pytest.mark.parametrize(
  'stage, field, value, words',
  [
    ('prepare', 'data.format', 'jsnol', "data.format='jsnol'"),
    ('score', 'score.terms', ('qq',), r"score.terms: \['qq'\] is not offered"),
    ('score', 'score.attention', 'flush', "attention 'flush' is not known"),
    ('score', 'score.on_long', 'cut', "score.on_long='cut'"),
    ('score', 'score.reverse_instruction', 'x', '{answer} exactly once'),
    ('score', 'score.mesh.tensor', 1024, 'needs 1024 devices|tensor.*1024'),
    ('score', 'strata.num_strata', 0, 'strata.num_strata is 0'),
    ('select', 'select.engine', 'duckbd', "select.engine is 'duckbd'"),
    ('report', 'select.rule', 'difff', "'difff'"),
    ('finetune', 'select.rule', 'difff', "'difff'"),
    ('finetune', 'finetune.model', 'weka', "finetune.model is 'weka'"),
    ('finetune', 'finetune.packing', 'full', "packing='full'"),
    ('finetune', 'finetune.optimizer.name', 'sgd', "optimizer.name is 'sgd'"),
    ('finetune', 'finetune.attention', 'flush', "'flush' is not known"),
    ('finetune', 'finetune.trackers', ('mlflow',), "trackers has 'mlflow'"),
    ('finetune', 'finetune.mesh.tensor', 1024, 'mesh .*1024'),
    ('evaluate', 'evaluate.prompt', 'chatt', "prompt style 'chatt'"),
    ('evaluate', 'evaluate.benchmarks', ('mbbp',), "there is no 'mbbp'"),
    ('evaluate', 'evaluate.benchmarks', (), 'benchmarks names none'),
    ('evaluate', 'evaluate.files.mbpp', '', 'evaluate.files.mbpp is empty'),
    ('evaluate', 'evaluate.samples', 3, '^samples=3'),
    ('compare', 'compare.table', (), 'compare.table is empty'),
    (
      'compare',
      'compare.table',
      (('difff', 'share', 0.5, 1),),
      "compare.table is 'difff'",
    ),
    ('compare', 'compare.held_out', '', 'compare.held_out is empty'),
    ('compare', 'finetune.packing', 'full', "packing='full'"),
  ],
)
def test_every_stage_of_a_run_is_checked_before_any_work(
  inputs, tmp_path, stage, field, value, words
):
  config = make_config(inputs)
  config.stages = ('prepare', 'score', stage)
  config.compare.table = (('random', 'share', 0.5, 1),)
  config.compare.held_out = 'held_out.jsonl'
  config.evaluate.files.mbpp = 'mbpp.jsonl'
  config.evaluate.benchmarks = ('mbpp_plus',)
  config.update_from_flattened_dict({field: value})
  with pytest.raises(ValueError, match=words):
    pipeline.run('run', config, str(tmp_path / 'work'))
  assert not (tmp_path / 'work').exists()


def test_empty_input_is_told(inputs, tmp_path):
  config = make_config(inputs)
  config.data.path = str(tmp_path / 'empty.jsonl')
  pathlib.Path(config.data.path).write_text('')
  with pytest.raises(ValueError, match='empty.jsonl has no rows'):
    pipeline.run('run', config, str(tmp_path / 'work'))


def test_tokenizer_of_another_model_is_refused(inputs, tmp_path):
  folder = tmp_path / 'model'
  shutil.copytree(inputs['weak'], folder)
  tokenizer = json.loads((folder / 'tokenizer.json').read_text())
  tokenizer['added_tokens'].append(
    tokenizer['added_tokens'][-1] | {'id': 9999, 'content': '<extra>'}
  )
  (folder / 'tokenizer.json').write_text(json.dumps(tokenizer))
  config = make_config(inputs)
  config.models.weak.path = str(folder)
  with pytest.raises(ValueError, match='ids up to'):
    pipeline.run('run', config, str(tmp_path / 'work'))


def test_cut_weights_of_the_last_model_are_found_first(inputs, tmp_path):
  """Not hours later, when those before it are scored."""
  config = make_config(inputs)
  folder = shutil.copytree(config.models.weak.path, tmp_path / 'cut')
  weights = folder / 'model.safetensors'
  weights.write_bytes(weights.read_bytes()[:-100])
  config.models.weak.path = str(folder)
  pipeline.run('prepare', config, str(tmp_path / 'w'))
  with pytest.raises(ValueError, match='cut/model.safetensors: damaged'):
    pipeline.run('score', config, str(tmp_path / 'w'))
  assert not list((tmp_path / 'w').glob('scores/*/part-*'))


def test_second_command_in_a_work_directory_is_refused(inputs, tmp_path):
  lock = files.Lock(tmp_path)
  with pytest.raises(ValueError, match='another process'):
    pipeline.run('run', make_config(inputs), str(tmp_path))
  lock.release()


def test_unscorable_target_is_named(inputs, tmp_path):
  config = make_config(inputs)
  config.score.targets_path = str(inputs['data'])
  config.data.limit = 5
  with pytest.raises(ValueError, match='targets_path: row 10 .* is empty'):
    pipeline.run('run', config, str(tmp_path))


def test_label_that_is_not_there_is_named(inputs, finished):
  config = make_config(inputs)
  config.audit.label = 'colour'
  with pytest.raises(ValueError, match="'colour'.*instruction"):
    pipeline.run('audit', config, str(finished))


@pytest.mark.process
@pytest.mark.slow
def test_command_line_killed_at_any_part_ends_bit_identical(inputs, tmp_path):
  recipe = tmp_path / 'recipe.py'
  recipe.write_text(
    'from qaq_jax import config as config_lib\n'
    'def get_config(arg=None):\n'
    '  c = config_lib.get_default()\n'
    f'  c.data.path = {str(inputs["data"])!r}\n'
    '  for name, path in (\n'
    f'      ("strong", {str(inputs["strong"])!r}),\n'
    f'      ("weak", {str(inputs["weak"])!r}),\n'
    '  ):\n'
    '    config_lib.add_model(c, name, path, dtype="float32",\n'
    '                         chat_template="chatml")\n'
    '  c.score.max_length = 256\n'
    '  c.score.max_shapes = 2\n'
    '  c.score.rows_per_part = 8\n'
    '  return c\n'
  )

  def start(workdir):
    command = [
      sys.executable,
      '-m',
      'qaq_jax.main',
      'run',
      f'--config={recipe}',
      f'--workdir={workdir}',
    ]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)

  whole, killed = tmp_path / 'whole', tmp_path / 'killed'
  assert start(whole).wait() == 0
  for part in ('strong/part-000001.parquet', 'weak/part-000003.parquet'):
    process = start(killed)
    while not (killed / 'scores' / part).exists():
      assert process.poll() is None
    process.kill()
    process.wait()
  assert not (killed / 'selected.jsonl').exists()
  assert start(killed).wait() == 0
  for name in ('scores.parquet', 'selected.jsonl'):
    assert (killed / name).read_bytes() == (whole / name).read_bytes()
