"""Samples in and out: every format, every odd row, bytes kept."""

import datetime
import decimal
import gzip
import json
import os
import signal
import subprocess
import sys
import textwrap
import tracemalloc

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qaq_jax.data import json_document, records, samples
from qaq_jax.data.samples import (
  DataError,
  DataSource,
  SampleStore,
  prepare,
  read_samples,
  write_selected,
)
from qaq_jax.workdir import files, fingerprint

PAIR = {'instruction': 'Add.', 'input': '', 'output': 'a + b'}


def read(path, **options):
  return list(read_samples(DataSource(str(path), **options)))


def read_lines(tmp_path, *lines, **options):
  """Reads a JSONL file of the given lines (bytes, text or objects)."""
  path = tmp_path / 'in.jsonl'
  path.write_bytes(b''.join(_line(x) + b'\n' for x in lines))
  return read(path, **options)


def _line(x):
  if isinstance(x, bytes):
    return x
  return (x if isinstance(x, str) else json.dumps(x)).encode()


def prepared(tmp_path, path, name='store', rows_per_part=65536, **options):
  info = prepare(
    DataSource(str(path), **options),
    tmp_path / name,
    rows_per_part,
  )
  return SampleStore.open(tmp_path / name), info


# What is query, what is answer.


def test_alpaca_joins_instruction_and_input(tmp_path):
  blank = {'instruction': ' Add. ', 'input': ' \n', 'output': '\ta + b\n'}
  full = {'instruction': 'Add.', 'input': '1 2 ', 'output': '3'}
  a, b, c = read_lines(
    tmp_path, blank, full, {'instruction': 'No input field.', 'output': 'x'}
  )
  assert (a.query, a.answer, a.instruction, a.input) == (
    'Add.',
    'a + b',
    'Add.',
    '',
  )
  assert (b.query, b.instruction, b.input) == ('Add.\n1 2', 'Add.', '1 2')
  assert (c.query, c.status) == ('No input field.', 'ok')


@pytest.mark.parametrize('strip', [True, False])
@pytest.mark.parametrize('blank', ['', ' \n'])
def test_alpaca_row_with_a_blank_instruction(tmp_path, blank, strip):
  (row,) = read_lines(
    tmp_path,
    {'instruction': blank, 'input': ' 1 2', 'output': '3'},
    strip=strip,
  )
  assert row.status == 'ok' and row.instruction == ''
  assert row.query == ('1 2' if strip else f'{blank}\n 1 2')
  assert row.input.strip() == '1 2'


def test_strip_can_be_off(tmp_path):
  row = {'instruction': ' q ', 'input': ' i ', 'output': ' a\n'}
  (sample,) = read_lines(tmp_path, row, strip=False)
  assert (sample.query, sample.answer) == (' q \n i ', ' a\n')
  assert sample.instruction == ' q '


@pytest.mark.parametrize('answer', ['output', 'response', 'completion'])
def test_common_answer_names_are_recognised(tmp_path, answer):
  (sample,) = read_lines(tmp_path, {'prompt': 'q', answer: 'a', 'meta': 1})
  assert (sample.query, sample.answer) == ('q', 'a')


@pytest.mark.parametrize(
  'turns',
  [
    [
      {'role': 'system', 'content': 's'},
      {'role': 'user', 'content': 'q'},
      {'role': 'assistant', 'content': 'a'},
    ],
    [
      {'from': 'system', 'value': 's'},
      {'from': 'human', 'value': 'q'},
      {'from': 'gpt', 'value': 'a'},
    ],
    [
      {'role': 'system', 'content': 's'},
      {'role': 'user', 'content': [{'type': 'text', 'text': 'q'}]},
      {'role': 'assistant', 'content': 'a'},
    ],
  ],
)
@pytest.mark.parametrize('column', ['messages', 'conversations'])
def test_chat_records(tmp_path, turns, column):
  (sample,) = read_lines(tmp_path, {column: turns, 'id': 'x1'})
  assert sample.status == 'ok'
  assert (sample.system, sample.query, sample.answer, sample.id) == (
    's',
    'q',
    'a',
    'x1',
  )


def test_more_turns(tmp_path):
  turns = [
    {'role': r, 'content': c}
    for r, c in (
      ('user', 'q1'),
      ('assistant', 'a1'),
      ('user', 'q2'),
      ('assistant', 'a2'),
    )
  ]
  row = {'messages': turns}
  (sample,) = read_lines(tmp_path, row)
  assert (sample.status, sample.reason) == ('invalid', 'multi_turn')
  (sample,) = read_lines(tmp_path, row, turns='first')
  assert (sample.query, sample.answer) == ('q1', 'a1')
  (sample,) = read_lines(tmp_path, row, turns='last')
  assert (sample.query, sample.answer) == ('q2', 'a2')
  history = {**PAIR, 'history': [['q0', 'a0']]}
  (sample,) = read_lines(tmp_path, history)
  assert sample.reason == 'multi_turn'
  (sample,) = read_lines(tmp_path, history, turns='first')
  assert (sample.query, sample.answer) == ('q0', 'a0')
  (sample,) = read_lines(tmp_path, history, turns='last')
  assert sample.query == 'Add.'


@pytest.mark.parametrize(
  'turns, status, reason',
  [
    ([], 'empty', 'empty_query'),
    ([('user', 'q')], 'empty', 'empty_answer'),
    ([('assistant', 'a')], 'invalid', 'turn_order'),
    (
      [('user', 'q'), ('user', 'q'), ('assistant', 'a')],
      'invalid',
      'turn_order',
    ),
    (
      [('user', 'q'), ('assistant', 'a'), ('system', 's')],
      'invalid',
      'turn_order',
    ),
    ([('user', 'q'), ('tool', 'a')], 'invalid', "unsupported role 'tool'"),
    ([('user', 'q'), ('assistant', 3)], 'invalid', 'wrong type'),
    (
      [('user', [{'type': 'image'}]), ('assistant', 'a')],
      'invalid',
      'not text',
    ),
  ],
)
def test_odd_chats_get_a_status(tmp_path, turns, status, reason):
  good = {
    'messages': [
      {'role': 'user', 'content': 'q'},
      {'role': 'assistant', 'content': 'a'},
    ]
  }
  bad = {'messages': [{'role': r, 'content': c} for r, c in turns]}
  ok, sample = read_lines(tmp_path, good, bad)
  assert ok.status == 'ok'
  assert sample.status == status and reason in sample.reason
  assert json.loads(sample.raw) == bad


def test_mapping(tmp_path):
  row = {'q': 'Q', 'extra': 'I', 'a': 'A', 's': 'S', 'key': 7, 'output': 'no'}
  (sample,) = read_lines(
    tmp_path,
    row,
    columns={
      'query': 'q',
      'input': 'extra',
      'answer': 'a',
      'system': 's',
      'id': 'key',
      'messages': '',
    },
  )
  assert (sample.query, sample.answer, sample.system, sample.id) == (
    'Q\nI',
    'A',
    'S',
    7,
  )


def test_half_a_mapping_is_completed(tmp_path):
  row = {'problem': 'Q', 'solution': 'long', 'answer': 'short'}
  (sample,) = read_lines(tmp_path, row, columns={'answer': 'solution'})
  assert (sample.query, sample.answer) == ('Q', 'long')


@pytest.mark.parametrize(
  'row',
  [
    {'problem': 'q', 'solution': 's', 'answer': 'a'},
    {'instruction': 'q', 'response': 'a', 'conversations': []},
    {'text': 'q', 'code': 'a'},
    {'instruction': 'q', 'prompt': 'p', 'output': 'a'},
  ],
)
def test_doubtful_columns_are_an_error_with_the_line_to_add(tmp_path, row):
  with pytest.raises(DataError) as e:
    read_lines(tmp_path, row)
  for column in row:
    assert column in str(e.value)
  assert '--config.data.columns.' in str(e.value)


def test_wrong_mapping_names_the_columns(tmp_path):
  with pytest.raises(DataError, match=r'answer=.nope.*instruction'):
    read_lines(tmp_path, PAIR, columns={'answer': 'nope'})
  both = {'messages': 'chat', 'query': 'instruction'}
  with pytest.raises(DataError, match='maps messages and also query or answer'):
    read_lines(tmp_path, PAIR | {'chat': []}, columns=both)
  with pytest.raises(DataError, match='querry'):
    DataSource('x', columns={'querry': 'a'})
  for option in ({'format': 'csv'}, {'turns': 'all'}):
    with pytest.raises(DataError, match='choose one of'):
      DataSource('x', **option)
  for option in ({'name': None}, {'limit': None}, {'limit': -1}):
    with pytest.raises(DataError, match=f'data.{next(iter(option))}='):
      DataSource('x', **option)


# Odd rows: one sample each, with a reason.


def test_odd_rows(tmp_path):
  rows = [
    PAIR,
    b'{"instruction": "q", "output": "caf\xe9"}',
    b'{"instruction": "q", "output": ',
    b'',
    b'   ',
    b'[1, 2]',
    {'instruction': 'q'},
    {'instruction': 'q', 'output': 3},
    {'instruction': 'q', 'output': None},
    {'instruction': ' ', 'output': 'a'},
    {'instruction': 'q', 'output': ' \n'},
    b'{"instruction": "q\\ud800", "output": "a"}',
    b'{"instruction": "nul \\u0000 inside", "output": "a"}',
    '{"instruction": "\N{GRINNING FACE} \u4f60", "output": "\\ud83d\\ude00"}',
    b'[' * 100_000,
    {'instruction': 'q' * 100_001, 'output': 'a' * 300_000},
  ]
  samples = read_lines(tmp_path, *rows)
  assert [s.row for s in samples] == list(range(14))  # two blank lines
  got = [(s.status, s.reason) for s in samples]
  for row, (status, reason) in enumerate(
    [
      ('ok', ''),
      ('invalid', 'not UTF-8: byte 0xe9 at position 35 of line 2'),
      ('invalid', 'malformed JSON: Expecting value at line 3 column 32'),
      ('invalid', 'not a JSON object but a list at line 6'),
      ('invalid', 'missing field: output'),
      ('invalid', 'wrong type: output is int, not text'),
      ('empty', 'empty_answer'),
      ('empty', 'empty_query'),
      ('empty', 'empty_answer'),
      ('invalid', 'lone surrogate in the query at character 1'),
      ('ok', ''),
      ('ok', ''),
      ('invalid', 'malformed JSON: '),
      ('ok', ''),
    ]
  ):
    assert got[row][0] == status, (row, got[row])
    assert got[row][1].startswith(reason), (row, got[row])
  assert samples[10].query == 'nul \0 inside'
  assert samples[11].answer == '\N{GRINNING FACE}'
  assert len(samples[13].query) == 100_001
  invalid = [s for s in samples if s.status == 'invalid']
  assert all(s.query == s.answer == '' for s in invalid)


def test_turns_of_another_shape_get_a_status(tmp_path):
  for history in (['q0'], [['q0']], [['q0', 7]], [['q0', 'a0'], None]):
    (sample,) = read_lines(tmp_path, {**PAIR, 'history': history}, turns='last')
    assert (sample.status, sample.query) == ('invalid', '')
    assert sample.reason == 'wrong type: history is no list of pairs'
  good = [{'role': 'user', 'content': 'q'}, {'role': 'gpt', 'content': 'a'}]
  rows = [{'messages': m} for m in (good, 'q', ['q'])] + [{'text': 'q'}]
  samples = read_lines(tmp_path, *rows)
  assert [s.reason for s in samples] == [
    '',
    'wrong type: messages is no list',
    'wrong type: messages[0] is no object',
    'missing field: messages',
  ]


def test_ids_may_repeat_and_mix(tmp_path):
  ids = [1, '1', 1, None, 2.5, ['a'], 'x\ud800', True]
  rows = [{**PAIR, 'id': i} for i in ids]
  path = tmp_path / 'in.jsonl'
  path.write_text(''.join(json.dumps(r) + '\n' for r in rows))
  store, info = prepared(tmp_path, path)
  assert info['has_id'] and info['columns']['id'] == 'id'
  assert [s.id for s in store.iter_rows()] == [
    1,
    '1',
    1,
    None,
    '2.5',
    '["a"]',
    'x\\ud800',
    'true',
  ]


@pytest.mark.parametrize('name', ['in.jsonl', 'in.json'])
@pytest.mark.parametrize('data', [b'', b'\n\n', b'\xef\xbb\xbf'])
def test_empty_file_has_no_rows(tmp_path, name, data):
  (tmp_path / name).write_bytes(data)
  store, info = prepared(tmp_path, tmp_path / name)
  assert info['rows'] == store.num_rows == 0
  assert list(store.iter_rows()) == []
  write_selected(store, [], tmp_path / 'out.jsonl')
  assert (tmp_path / 'out.jsonl').read_bytes() == b''


@pytest.mark.parametrize(
  'data, message',
  [
    (b'hello\nworld\n', 'not JSON Lines'),
    (b'[\n{"a": 1}\n]\n', 'data.format=json'),
    (b'{"a": 1}\n'.decode().encode('utf-16'), 'UTF-16'),
    (b'\x1f\x8b' + b'\x00' * 30, 'gzip'),
  ],
)
def test_what_is_not_jsonl_is_said(tmp_path, data, message):
  path = tmp_path / 'in.jsonl'
  path.write_bytes(data)
  with pytest.raises(DataError, match=message) as e:
    read(path)
  assert str(path) in str(e.value)


def test_truncated_gzip(tmp_path):
  path = tmp_path / 'in.jsonl.gz'
  path.write_bytes(gzip.compress((json.dumps(PAIR) + '\n').encode() * 999)[:60])
  with pytest.raises(DataError, match='damaged gzip'):
    read(path)


@pytest.mark.parametrize('at', [20, -6], ids=['data', 'checksum'])
def test_gzip_with_a_flipped_bit(tmp_path, at):
  lines = ''.join(json.dumps(PAIR | {'id': i}) + '\n' for i in range(9))
  data = bytearray(gzip.compress(lines.encode()))
  data[at] ^= 0x10
  path = tmp_path / 'in.jsonl.gz'
  path.write_bytes(data)
  with pytest.raises(DataError, match='in.jsonl.gz: damaged gzip'):
    read(path)


# Files, folders, documents.


def test_crlf_bom_and_missing_last_newline(tmp_path):
  path = tmp_path / 'in.jsonl'
  line = json.dumps({**PAIR, 'output': 'a\r\nb'}).encode()
  path.write_bytes(b'\xef\xbb\xbf' + line + b'\r\n\r\n' + line)
  store, _ = prepared(tmp_path, path)
  assert [s.answer for s in store.iter_rows()] == ['a\r\nb', 'a\r\nb']
  write_selected(store, [0, 1], tmp_path / 'out.jsonl')
  assert (tmp_path / 'out.jsonl').read_bytes() == line + b'\r\n' + line + b'\n'


@pytest.mark.parametrize('indent', [None, 2])
@pytest.mark.parametrize('zipped', [False, True])
@pytest.mark.parametrize(
  'wrap',
  [
    lambda rows: rows,
    lambda rows: {'version': 1, 'tags': ['x'], 'data': rows, 'end': {}},
  ],
)
def test_json_documents(tmp_path, indent, zipped, wrap, monkeypatch):
  monkeypatch.setattr(json_document, '_CHUNK', 7)  # pieces end anywhere
  rows = [
    {'instruction': f'é {i} \N{GRINNING FACE}', 'output': 'x\n y', 'n': 10**i}
    for i in range(20)
  ]
  rows[3] = 3.25
  data = json.dumps(wrap(rows), indent=indent, ensure_ascii=False).encode()
  path = tmp_path / ('in.json' + ('.gz' if zipped else ''))
  path.write_bytes(gzip.compress(data) if zipped else data)
  samples = read(path, format='json')
  assert [json.loads(s.raw) for s in samples] == rows
  assert all('\n' not in s.raw for s in samples)
  assert samples[3].reason == 'not a JSON object but a float'
  assert samples[4].query == 'é 4 \N{GRINNING FACE}'


@pytest.mark.parametrize(
  'text, message',
  [
    ('[{"a": 1}, {"a": ]', 'not valid JSON at character 17'),
    ('[{"a": 1} {"a": 2}]', "expected ','"),
    ('[{"a": 1}', "expected ','"),
    ('{"a": [{"x": 1}], "b": [{"x": 1}]}', "both 'a' and 'b'"),
    ('{"a": {"x": 1}}', 'without a list of records'),
  ],
)
def test_broken_documents_name_the_place(tmp_path, text, message):
  path = tmp_path / 'in.json'
  path.write_text(text)
  with pytest.raises(DataError, match=message) as e:
    list(json_document.read_json(str(path)))
  assert str(path) in str(e.value)


@pytest.mark.parametrize('zipped', [False, True])
@pytest.mark.parametrize('chunk', [7, 1 << 20])
@pytest.mark.parametrize(
  'document',
  ['[{"instruction": "a", "output": "é"}]', '{"x": [{"instruction": "a"}]}'],
)
@pytest.mark.parametrize(
  'behind',
  [
    '\n[{"instruction": "c", "output": "d"}]\n',
    '{"x": [{"instruction": "c"}]}',
    ' trailing garbage',
    '\n\n]',
    ',',
    '\0' * 20,
    '\ufeff[]',
    '\x1a',
    '\xa0',
    ' 0',
    '[',
  ],
)
def test_what_stands_behind_a_document_is_not_lost(
  tmp_path, monkeypatch, zipped, chunk, document, behind
):
  monkeypatch.setattr(json_document, '_CHUNK', chunk)
  path = tmp_path / ('two.json' + ('.gz' if zipped else ''))
  parts = [document.encode(), behind.encode()]  # members of their own
  path.write_bytes(b''.join(map(gzip.compress, parts) if zipped else parts))
  at = len(document) + len(behind) - len(behind.lstrip(' \n'))
  with pytest.raises(DataError, match=f'at character {at}: expected the') as e:
    list(json_document.read_json(str(path)))
  assert str(path) in str(e.value)


@pytest.mark.parametrize('zipped', [False, True])
def test_blank_behind_a_document_is_nothing(tmp_path, zipped):
  path = tmp_path / 'in.json'
  data = b'[{"instruction": "a"}]' + b' \n\t\r\n' * 500_000
  path.write_bytes(gzip.compress(data) if zipped else data)
  assert len(list(json_document.read_json(str(path)))) == 1


def test_a_gzip_file_that_is_cut_behind_its_document(tmp_path):
  path = tmp_path / 'in.json.gz'
  path.write_bytes(gzip.compress(b'[{"instruction": "a"}]')[:-4])
  with pytest.raises(DataError, match='damaged gzip file'):
    list(json_document.read_json(str(path)))


def test_bytes_that_are_no_text_spoil_one_element_only(tmp_path):
  path = tmp_path / 'in.json'
  path.write_bytes(
    b'[{"instruction": "q", "output": "caf\xe9"},\n'
    b'{"instruction": "q", "output": "a"}]'
  )
  bad, good = read(path)
  assert bad.status == 'invalid' and 'UTF-8' in bad.reason
  assert good.status == 'ok'


@pytest.mark.parametrize(
  'name, text, form',
  [
    ('a.json', '{"instruction": "q", "output": "a"}\n' * 2, 'jsonl'),
    ('a.json', '{"messages": [{"role": "user", "content": "q"}]}', 'jsonl'),
    ('a.json', '[{"instruction": "q", "output": "a"}]', 'json'),
    ('a.json', '{"data": [{"instruction": "q", "output": "a"}]}', 'json'),
    ('a.json', '{\n "data": [\n  {"instruction": "q"}]}', 'json'),
    ('a.txt', '{"instruction": "q", "output": "a"}', 'jsonl'),
  ],
)
def test_format_is_told_by_content(tmp_path, name, text, form):
  (tmp_path / name).write_text(text)
  assert records.sniff(str(tmp_path / name)) == form


def test_folders_and_globs(tmp_path):
  for i in (2, 0, 1):
    (tmp_path / f'p{i}.jsonl').write_text(json.dumps({**PAIR, 'id': i}) + '\n')
  (tmp_path / '.hidden.jsonl').write_text('x')
  (tmp_path / 'readme.txt').write_text('x')
  assert [s.id for s in read(tmp_path)] == [0, 1, 2]
  assert [s.id for s in read(tmp_path / 'p[12].jsonl')] == [1, 2]
  assert [s.id for s in read(tmp_path, limit=2)] == [0, 1]
  pq.write_table(pa.table({'a': [1]}), tmp_path / 'x.parquet')
  with pytest.raises(DataError, match='several formats'):
    read(tmp_path)
  (tmp_path / 'empty').mkdir()
  with pytest.raises(DataError, match='no file ending in'):
    read(tmp_path / 'empty')
  with pytest.raises(DataError, match='no such file'):
    read(tmp_path / 'missing.jsonl')


def test_offline_hub_says_what_it_tried(tmp_path, monkeypatch):
  monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)
  monkeypatch.setattr('huggingface_hub.constants.HF_HUB_CACHE', str(tmp_path))
  with pytest.raises(DataError, match='no local path, and the hub'):
    read('some-owner/some-data')


COMMIT = 'c0ffee' + '0' * 34


@pytest.fixture
def cache(tmp_path, monkeypatch):
  """An empty hub cache, offline; gives a function that puts a file in it."""
  monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)
  monkeypatch.setattr('datasets.config.HF_HUB_OFFLINE', True)
  root = tmp_path / 'hub'
  monkeypatch.setattr('huggingface_hub.constants.HF_HUB_CACHE', str(root))
  folder = root / 'datasets--owner--pairs'
  (folder / 'refs').mkdir(parents=True)
  (folder / 'refs' / 'main').write_text(COMMIT)
  (folder / 'blobs').mkdir()

  def put(name, data):
    path = folder / 'snapshots' / COMMIT / name
    path.parent.mkdir(parents=True, exist_ok=True)
    blob = folder / 'blobs' / name.replace('/', '_')
    blob.write_bytes(data)
    path.symlink_to(os.path.relpath(blob, path.parent))

  return put


def test_cached_hub_data_set_offline(tmp_path, cache):
  for i in range(2):
    cache(
      f'data/train-{i:05d}-of-00002.jsonl',
      _line({**PAIR, 'instruction': f'q{i}'}) + b'\n',
    )
  cache('data/test-00000-of-00003.jsonl', _line(PAIR) + b'\n')
  for revision in ('', COMMIT):
    rows = read('owner/pairs', revision=revision)
    assert [(r.query, r.answer) for r in rows] == [
      ('q0', 'a + b'),
      ('q1', 'a + b'),
    ]
  store, info = prepared(tmp_path, 'owner/pairs')
  assert store.num_rows == 2
  assert info['source']['commit'] == COMMIT and info['source']['offline']
  # A part that is not there is missed, not passed over.
  with pytest.raises(DataError, match='test-00001-of-00003.jsonl is not in'):
    read('owner/pairs', split='test')
  with pytest.raises(DataError, match="data.split='dev'"):
    read('owner/pairs', split='dev')
  with pytest.raises(DataError, match='hf download --repo-type dataset owner'):
    read('owner/pairs', revision='1' * 40)


def test_cached_parquet_and_configurations_offline(tmp_path, cache):
  pq.write_table(pa.Table.from_pylist([PAIR]), tmp_path / 'x')
  cache('en/a.parquet', (tmp_path / 'x').read_bytes())
  pq.write_table(pa.Table.from_pylist([PAIR] * 3), tmp_path / 'x')
  cache('fr/a.parquet', (tmp_path / 'x').read_bytes())
  cache(
    'README.md',
    textwrap.dedent("""\
      ---
      configs:
      - config_name: en
        data_files: en/*
      - config_name: fr
        data_files: fr/*
      ---
  """).encode(),
  )
  assert len(read('owner/pairs', name='fr')) == 3
  assert len(read('owner/pairs', name='en')) == 1
  with pytest.raises(DataError, match=r"(?s)data.name=''.*'en', 'fr'"):
    read('owner/pairs')


# Parquet and saved data sets.


def parquet_table():
  return pa.table(
    {
      'instruction': ['q0', 'q1', None, 'q3'],
      'output': ['a0', '', 'a2', 'a3'],
      'when': [datetime.datetime(2026, 1, 2, 3), None, None, None],
      'price': pa.array(
        [decimal.Decimal('1.10'), None, None, None], pa.decimal128(5, 2)
      ),
      'blob': [b'\xff\x00', None, None, None],
      'x': [float('nan'), 1.5, float('inf'), 2.0],
      'tags': [['a'], [], None, ['b', 'c']],
    }
  )


def test_parquet_file_and_parts(tmp_path):
  table = parquet_table()
  pq.write_table(table.slice(0, 3), tmp_path / 'p0.parquet', row_group_size=2)
  pq.write_table(table.slice(3), tmp_path / 'p1.parquet')
  store, info = prepared(tmp_path, tmp_path / '*.parquet')
  samples = list(store.iter_rows())
  assert [s.status for s in samples] == ['ok', 'empty', 'empty', 'ok']
  assert json.loads(samples[0].raw) == {
    'instruction': 'q0',
    'output': 'a0',
    'when': '2026-01-02T03:00:00',
    'price': '1.10',
    'blob': '/wA=',
    'x': None,
    'tags': ['a'],
  }
  write_selected(store, [0, 3], tmp_path / 'out.parquet')
  out = pq.read_table(tmp_path / 'out.parquet')
  assert out.schema.equals(table.schema)
  assert out.column('output').to_pylist() == ['a0', 'a3']
  assert out.column('price').to_pylist()[0] == decimal.Decimal('1.10')
  os.utime(tmp_path / 'p0.parquet', (1, 1))  # other rows may fill as much
  with pytest.raises(DataError, match='p0.parquet changed since'):
    write_selected(store, [0, 3], tmp_path / 'out2.parquet')
  pq.write_table(table, tmp_path / 'p1.parquet')
  with pytest.raises(DataError, match='changed since'):
    write_selected(store, [0, 3], tmp_path / 'out2.parquet')
  assert not list(tmp_path.glob('*out2*'))


def test_parquet_parts_must_agree(tmp_path):
  pq.write_table(pa.table({'a': [1]}), tmp_path / 'p0.parquet')
  pq.write_table(pa.table({'b': [1]}), tmp_path / 'p1.parquet')
  with pytest.raises(DataError, match='p1.parquet: its columns'):
    read(tmp_path)
  (tmp_path / 'p1.parquet').write_bytes(b'nope')
  with pytest.raises(DataError, match='p1.parquet'):
    read(tmp_path / 'p1.parquet')


def test_saved_data_set(tmp_path):
  rows = [{'instruction': f'q{i}', 'output': f'a{i}'} for i in range(5)]
  data = datasets.Dataset.from_list(rows)
  data.save_to_disk(tmp_path / 'one')
  samples = read(tmp_path / 'one', split='train')
  assert [json.loads(s.raw) for s in samples] == rows
  datasets.DatasetDict({'train': data, 'test': data.select([4])}).save_to_disk(
    tmp_path / 'two'
  )
  assert [s.query for s in read(tmp_path / 'two', split='test')] == ['q4']
  with pytest.raises(DataError, match=r"\['train', 'test'\].*data.split"):
    read(tmp_path / 'two', split='')


# The store.


def write_rows(path, n, start=0):
  with open(path, 'w') as f:
    for i in range(start, start + n):
      f.write(json.dumps({**PAIR, 'id': i, 'instruction': f'q{i}'}) + '\n')


def test_random_access(tmp_path, monkeypatch):
  monkeypatch.setattr('qaq_jax.data.sample_store._GROUP_ROWS', 3)
  write_rows(tmp_path / 'in.jsonl', 50)
  store, info = prepared(tmp_path, tmp_path / 'in.jsonl', rows_per_part=7)
  assert len(info['parts']) == 8
  expected = read(tmp_path / 'in.jsonl')
  for start in range(51):
    for stop in (start, min(start + 1, 50), min(start + 11, 50), 50):
      assert list(store.iter_rows(start, stop)) == expected[start:stop]
  for bad in ((-1, 3), (3, 51), (4, 3)):
    with pytest.raises(IndexError):
      list(store.iter_rows(*bad))


def test_content_hash(tmp_path):
  write_rows(tmp_path / 'in.jsonl', 20)
  _, first = prepared(tmp_path, tmp_path / 'in.jsonl')
  data = (tmp_path / 'in.jsonl').read_bytes()
  (tmp_path / 'in2.jsonl.gz').write_bytes(gzip.compress(data))
  _, again = prepared(tmp_path, tmp_path / 'in2.jsonl.gz', rows_per_part=3)
  assert again['content_hash'] == first['content_hash']
  (tmp_path / 'in.jsonl').write_bytes(data.replace(b'q7"', b'q8"'))
  _, other = prepared(tmp_path, tmp_path / 'in.jsonl')
  assert other['content_hash'] != first['content_hash']
  (tmp_path / 'in.jsonl').write_bytes(data)
  _, other = prepared(tmp_path, tmp_path / 'in.jsonl', strip=False)
  assert other['content_hash'] == first['content_hash']  # nothing to strip


def test_prepare_prints_what_it_chose(tmp_path, capsys):
  write_rows(tmp_path / 'in.jsonl', 2)
  prepare(DataSource(str(tmp_path / 'in.jsonl')), tmp_path / 's')
  lines = capsys.readouterr().out.splitlines()
  assert "query = 'instruction'" in lines[0]
  assert "answer = 'output'" in lines[0]
  assert '2 rows (2 ok)' in lines[1]
  assert len(lines) == 2  # no word of problems where there are none


def prepare_log(tmp_path, capsys, *rows):
  path = tmp_path / 'in.jsonl'
  path.write_bytes(b''.join(_line(x) + b'\n' for x in rows))
  info = prepare(DataSource(str(path)), tmp_path / 's')
  assert SampleStore.open(tmp_path / 's').info == info
  return capsys.readouterr().out.splitlines()[2:], info


def test_prepare_says_why_rows_cannot_be_scored(tmp_path, capsys):
  blank = PAIR | {'output': ''}
  rows = [PAIR] * 20 + [b'{"instruction": ', blank, b'[1]', b'{"instruction": ']
  lines, info = prepare_log(tmp_path, capsys, *rows)
  assert [(r['rows'], r['first']) for r in info['reasons']] == [
    (2, 20),
    (1, 21),
    (1, 22),
  ]
  # Numbers of one row only are shown.
  assert lines[0].startswith('  2 x malformed JSON') and 'line N' in lines[0]
  assert '(first: row 20, counted from 0)' in lines[0]
  assert lines[1].startswith('  1 x empty_answer (first: row 21')
  assert 'a list at line 23' in lines[2]
  assert lines[3].startswith('! 4 of 24 rows (17%) cannot be scored')
  source = DataSource(str(tmp_path / 'in.jsonl'))
  prepare(source, tmp_path / 's')
  again = capsys.readouterr().out.splitlines()
  assert 'unchanged' in again[0] and again[1:] == lines


def test_a_tenth_of_bad_rows_is_no_warning(tmp_path, capsys):
  lines, _ = prepare_log(tmp_path, capsys, *[PAIR] * 9, PAIR | {'output': ''})
  assert len(lines) == 1 and lines[0].startswith('  1 x empty_answer')


def test_reasons_are_bounded(tmp_path, capsys):
  chats = [
    {'messages': [{'role': f'r{i}', 'content': 'x'}]} for i in range(300)
  ]
  good = {
    'messages': [
      {'role': 'user', 'content': 'q'},
      {'role': 'assistant', 'content': 'a'},
    ]
  }
  lines, info = prepare_log(tmp_path, capsys, good, *chats)
  assert len(info['reasons']) == 101
  assert sum(r['rows'] for r in info['reasons']) == 300
  assert info['reasons'][0] == {
    'reason': 'other reasons',
    'rows': 200,
    'first': 101,
  }
  assert len(lines) == 9 and '94 more reasons' in lines[7]


def test_killed_prepare_leaves_the_old_store_and_starts_again(tmp_path):
  source, out = tmp_path / 'in.jsonl', tmp_path / 'store'
  write_rows(source, 10)
  _, old = prepared(tmp_path, source)
  write_rows(source, 3000)
  script = textwrap.dedent(f"""
      import os, signal
      from qaq_jax.data import samples, sample_store
      add = sample_store._PartWriter.add
      def stop(self, row):
        add(self, row)
        if self.rows == 2500:
          os.kill(os.getpid(), signal.SIGKILL)
      sample_store._PartWriter.add = stop
      samples.prepare(samples.DataSource({str(source)!r}), {str(out)!r}, 1000)
  """)
  done = subprocess.run(
    [sys.executable, '-c', script],
    cwd=os.getcwd(),
    check=False,
    env={**os.environ, 'PYTHONPATH': os.getcwd()},
  )
  assert done.returncode == -signal.SIGKILL
  assert SampleStore.open(out).info == old
  assert (tmp_path / 'store.partial').exists()
  store, new = prepared(tmp_path, source)
  assert store.num_rows == 3000
  assert sorted(p.name for p in tmp_path.iterdir()) == ['in.jsonl', 'store']


def test_incomplete_store_is_refused(tmp_path):
  with pytest.raises(DataError, match='run the prepare stage first'):
    SampleStore.open(tmp_path / 'none')
  write_rows(tmp_path / 'in.jsonl', 2)
  prepared(tmp_path, tmp_path / 'in.jsonl')
  os.remove(tmp_path / 'store' / 'part-000000.parquet')
  with pytest.raises(DataError, match='part-000000.parquet is missing'):
    SampleStore.open(tmp_path / 'store')


def test_samples_of_another_layout_are_refused(tmp_path):
  write_rows(tmp_path / 'in.jsonl', 2)
  prepared(tmp_path, tmp_path / 'in.jsonl')
  path = tmp_path / 'store' / 'samples.json'
  info = json.loads(path.read_text())
  path.write_text(json.dumps(files.seal(info | {'version': 1})))
  with pytest.raises(DataError, match='layout version 1, .* reads 2; run the'):
    SampleStore.open(tmp_path / 'store')


def flip(path, at):
  data = bytearray(path.read_bytes())
  data[at] ^= 4
  path.write_bytes(data)


def test_damaged_samples_are_found_and_written_anew(tmp_path, capsys):
  """One flipped bit anywhere: an error that names the file, or no effect."""
  source = tmp_path / 'in.jsonl'
  write_rows(source, 40)
  store, info = prepared(tmp_path, source, rows_per_part=20)
  good = list(store.iter_rows())
  found = 0
  for name in ('part-000000.parquet', 'part-000001.parquet', 'samples.json'):
    path = tmp_path / 'store' / name
    data = path.read_bytes()
    for at in range(3, len(data), len(data) // 60):
      flip(path, at)
      try:
        assert list(SampleStore.open(tmp_path / 'store').iter_rows()) == good
      except DataError as e:
        assert f'{path}: damaged' in str(e) or 'version' in str(e)
        assert 'run the prepare stage again' in str(e)
        found += 1
      path.write_bytes(data)
  assert found > 100
  # Rows of the other part are still read; and prepare does not trust a part
  # that it has not read.
  path = tmp_path / 'store' / 'part-000001.parquet'
  raw = pq.ParquetFile(path).metadata.row_group(0).column(8)
  assert raw.path_in_schema == 'raw'
  flip(path, raw.data_page_offset + raw.total_compressed_size // 2)
  store = SampleStore.open(tmp_path / 'store')
  assert list(store.iter_rows(0, 20)) == good[:20]
  for read_all in (
    lambda: list(store.iter_rows()),
    lambda: list(store.iter_raw(20, 40)),
    store.check,
  ):
    with pytest.raises(DataError, match='part-000001.parquet: damaged'):
      read_all()
  capsys.readouterr()
  again = prepare(DataSource(str(source)), tmp_path / 'store', 20)
  lines = capsys.readouterr().out.splitlines()
  assert 'part-000001.parquet: damaged' in lines[0]
  assert 'written anew' in lines[0] and 'unchanged' not in ' '.join(lines)
  assert again == info
  assert list(SampleStore.open(tmp_path / 'store').iter_rows()) == good


def test_an_open_store_does_not_follow_the_folder(tmp_path):
  write_rows(tmp_path / 'a.jsonl', 40)
  write_rows(tmp_path / 'b.jsonl', 40, start=1)
  store, _ = prepared(tmp_path, tmp_path / 'a.jsonl', rows_per_part=10)
  good = list(store.iter_rows())
  # Written anew with the same rows: nothing has changed.
  os.remove(tmp_path / 'store' / 'samples.json')
  prepared(tmp_path, tmp_path / 'a.jsonl', rows_per_part=10)
  assert list(store.iter_rows()) == good
  half_way = store.iter_rows()
  next(half_way)
  prepared(tmp_path, tmp_path / 'b.jsonl', rows_per_part=10)
  for rows in (half_way, store.iter_rows(), store.iter_raw(5, 6)):
    with pytest.raises(DataError, match='store: was replaced by other samples'):
      list(rows)
  other = SampleStore.open(tmp_path / 'store')
  assert next(other.iter_rows()).query == 'q1'


def test_memory_does_not_grow_with_rows(tmp_path):
  peaks = []
  for n in (2_000, 20_000):
    path = tmp_path / f'{n}.jsonl'
    write_rows(path, n)
    tracemalloc.start()
    store, _ = prepared(tmp_path, path, name=str(n), rows_per_part=1000)
    for _ in store.iter_rows():
      pass
    write_selected(store, np.arange(0, n, 2), tmp_path / 'out.jsonl')
    peaks.append(tracemalloc.get_traced_memory()[1])
    tracemalloc.stop()
  assert peaks[1] < peaks[0] * 1.3 + 500_000, peaks


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_selected_lines_are_the_input_lines(tmp_path_factory, data):
  tmp_path = tmp_path_factory.mktemp('selected')
  text = st.text(st.characters(codec='utf-8'), max_size=8)
  spaces = st.sampled_from(['', ' ', '  '])
  lines = data.draw(
    st.lists(
      st.one_of(
        st.builds(
          lambda q, a, s, ascii_: (
            json.dumps({'instruction': q, 'output': a}, ensure_ascii=ascii_)
            .replace(': ', ':' + s)
            .encode()
          ),
          text,
          text,
          spaces,
          st.booleans(),
        ),
        st.binary(min_size=1, max_size=12).map(
          lambda b: b'x' + b.replace(b'\n', b'')
        ),
      ),
      max_size=12,
    )
  )
  lines.insert(0, json.dumps(PAIR).encode())
  path = tmp_path / 'in.jsonl'
  path.write_bytes(b'\n'.join(lines) + b'\n')
  store, info = prepared(tmp_path, path, rows_per_part=4)
  assert info['rows'] == len(lines)
  rows = sorted(data.draw(st.sets(st.integers(0, len(lines) - 1))))
  write_selected(store, rows, tmp_path / 'out.jsonl')
  expected = b''.join(lines[r] + b'\n' for r in rows)
  assert (tmp_path / 'out.jsonl').read_bytes() == expected
  write_selected(store, rows, tmp_path / 'out.jsonl.gz')
  first = (tmp_path / 'out.jsonl.gz').read_bytes()
  assert gzip.decompress(first) == expected
  write_selected(store, rows, tmp_path / 'out.jsonl.gz')
  assert (tmp_path / 'out.jsonl.gz').read_bytes() == first


def test_selected_as_array(tmp_path):
  write_rows(tmp_path / 'in.jsonl', 5)
  store, _ = prepared(tmp_path, tmp_path / 'in.jsonl')
  write_selected(store, [1, 3], tmp_path / 'deep' / 'out.json')
  out = json.loads((tmp_path / 'deep' / 'out.json').read_text())
  assert [r['id'] for r in out] == [1, 3]
  write_selected(store, [], tmp_path / 'out.json')
  assert json.loads((tmp_path / 'out.json').read_text()) == []


def test_bad_selections_write_nothing(tmp_path):
  write_rows(tmp_path / 'in.jsonl', 5)
  store, _ = prepared(tmp_path, tmp_path / 'in.jsonl')
  for rows in ([3, 1], [1, 1], [5], [-1]):
    with pytest.raises(ValueError, match='increasing'):
      write_selected(store, rows, tmp_path / 'out.jsonl')
  parquet = tmp_path / 'out.parquet'
  with pytest.raises(DataError, match=f'^{parquet}: .*Parquet input'):
    write_selected(store, [1], parquet)
  for name in ('out.csv', 'out.csv.gz', 'out', 'out.JSON.txt'):
    with pytest.raises(
      DataError, match=f'{name}: config.select.output .*.jsonl.gz, .json, .p'
    ):
      write_selected(store, [1], tmp_path / name)
  assert not list(tmp_path.glob('*out*'))


def test_prepared_samples_are_kept_while_the_input_is_the_same(
  tmp_path, capsys
):
  path = tmp_path / 'in.jsonl'
  path.write_text('{"instruction": "q", "output": "a"}\n')
  out = tmp_path / 'out'
  first = prepare(DataSource(str(path)), out)
  stamp = (out / 'samples.json').stat().st_mtime_ns
  assert 'unchanged' not in capsys.readouterr().out
  assert prepare(DataSource(str(path)), out) == first
  assert 'unchanged' in capsys.readouterr().out
  assert (out / 'samples.json').stat().st_mtime_ns == stamp
  # A manifest says null for what is not given; that of a version without such
  # fields is of the same samples.
  kept = first['request']
  assert [kept[k] for k in ('name', 'revision', 'limit')] == [None] * 3
  assert kept['split'] == 'train'
  older = {k: v for k, v in kept.items() if k not in ('revision', 'limit')}
  assert not fingerprint.differences(older, kept, samples.REQUEST_DEFAULTS)
  # Another option, and another content, are read anew.
  limited = DataSource(str(path), strip=False)
  assert prepare(limited, out) != first
  path.write_text('{"instruction": "q", "output": "b"}\n' * 2)
  assert prepare(DataSource(str(path)), out)['rows'] == 2
