"""One fingerprint, one journal, one atomic write: what they refuse and say."""

import errno
import json
import os
import pathlib
import subprocess
import sys

import pytest

from qaq_jax.workdir import files, fingerprint, journal

ROOT = pathlib.Path(__file__).resolve().parent.parent
HASH = '0123456789abcdef' * 4
FIELDS = {'name': str, 'suites': {'base': {'status': str}}}


def record(name, status='pass'):
  return {'name': name, 'suites': {'base': {'status': status}}}


def open_journal(path, settings=None, **more):
  print_ = {'limit': 1, 'kinds': ['a']} if settings is None else settings
  return journal.Journal(path, print_, fields=FIELDS, **more)


def make(path, names='abc'):
  made = open_journal(path)
  for name in names:
    made.add(record(name))
  made.close()


# Fingerprints.


def test_a_difference_is_told_name_by_name_then_and_now():
  old = {'model': {'files': {'x': HASH}, 'dtype': 'a'}, 'terms': [1]}
  new = {'model': {'files': {'x': HASH[::-1]}}, 'terms': (1, 2), 'seed': 3}
  with pytest.raises(files.StoreError) as caught:
    fingerprint.check(old, new, what='DIR holds more', back='Delete DIR')
  assert str(caught.value).splitlines() == [
    'DIR holds more (then -> now):',
    '  model.dtype: "a" -> (absent)',
    '  model.files.x: "0123456789ab..." -> "fedcba987654..."',
    '  seed: (absent) -> 3',
    '  terms: [1] -> [1, 2]',
    'Delete DIR',
  ]


def test_long_texts_are_shown_where_they_differ():
  old, new = 'x' * 500 + 'old end', 'x' * 500 + 'new end' + 'y' * 500
  (line,) = fingerprint.differences({'template': old}, {'template': new})
  assert 'old end' in line and 'new end' in line and len(line) < 280


def test_many_differences_are_counted():
  old, new = ({f'k{i:02}': v for i in range(40)} for v in (1, 2))
  with pytest.raises(files.StoreError, match='k11: 1 -> 2\n  and 28 more\nB'):
    fingerprint.check(old, new, what='W', back='B')


def test_a_key_that_is_not_there_means_its_default():
  """Of the fingerprints of before, and of the hash that names a folder."""
  before = {'dtype': 'a', 'encoder': {'options': {'length': 5}}}
  defaults = {'quantization': '', 'encoder': {'options': {'end': False}}}
  now = {
    'dtype': 'a',
    'quantization': '',
    'encoder': {'options': {'length': 5, 'end': False}},
  }
  kept = fingerprint.written(now, defaults)
  assert kept == before
  assert fingerprint.digest(kept) == fingerprint.digest(before)
  assert fingerprint.differences(before, now, defaults) == []
  now['quantization'] = 'int8'
  now['encoder']['options']['end'] = True
  assert fingerprint.written(now, defaults) == now
  assert fingerprint.differences(before, now, defaults) == [
    'encoder.options.end: false -> true',
    'quantization: "" -> "int8"',
  ]


# Journals.


def test_a_journal_goes_on_after_a_kill_and_repairs_its_end(tmp_path):
  path = tmp_path / 'j.jsonl'
  make(path)
  whole = path.read_bytes()
  path.write_bytes(whole + b'{"name": "d", "sui')
  assert [r['name'] for r in open_journal(path, write=False).records] == [
    *'abc'
  ]
  assert path.read_bytes() != whole  # only looked at
  for end in (b'\n{"name": "d", "sui', b'\n', b'', b'\x0b'):
    path.write_bytes(whole[:-1] + end)
    found = open_journal(path)
    assert found.records == [record(name) for name in 'abc']
    found.close()
    assert path.read_bytes() == whole
  found = open_journal(path)
  found.add(record('d'))
  found.close()
  assert path.read_bytes().startswith(whole)
  assert open_journal(path, write=False).records[3] == record('d')
  with pytest.raises(
    files.StoreError, match='now.: limit: 1 -> 2[.] .*delete the'
  ):
    open_journal(path, {'limit': 2, 'kinds': ['a']})


def test_a_flipped_bit_anywhere_is_told_with_its_line_or_changes_nothing(
  tmp_path,
):
  path = tmp_path / 'j.jsonl'
  make(path)
  whole, good = path.read_bytes(), [record(name) for name in 'abc']
  lines = whole.count(b'\n')
  refused = 0
  for at in range(len(whole)):
    for bit in (at % 8, 0):
      data = bytearray(whole)
      data[at] ^= 1 << bit
      path.write_bytes(data)
      try:
        found = open_journal(path, write=False).records
        assert found == good
      except files.StoreError as e:
        line = whole[:at].count(b'\n') + 1
        assert (
          f'{path}: line {line}' in str(e)
          or line == lines
          or ('then -> now' in str(e))
        ), e
        assert 'delete the' in str(e)
        refused += 1
  assert refused > 1.7 * len(whole)


def test_a_verdict_that_was_changed_is_noticed(tmp_path):
  path = tmp_path / 'j.jsonl'
  make(path)
  path.write_text(path.read_text().replace('pass', 'fail', 1))
  with pytest.raises(
    files.StoreError, match='j.jsonl: line 2 is damaged.*delete the line'
  ):
    open_journal(path)
  lines = path.read_text().splitlines(keepends=True)
  path.write_text(''.join(lines[:1] + lines[2:]))  # as the message says
  found = open_journal(path)
  assert [r['name'] for r in found.records] == ['b', 'c']
  found.close()


NO_LINES = (
  b'5',
  b'{}',
  b'[]',
  b'null',
  b'{"name": "x"',
  b'\0\0\0\0',
  b'\xff',
  b'[' * 9999,
  b'{"name": 5, "suites": {}}',
  b'{"name": "x", "suites": {"base": {}}}',
)


@pytest.mark.parametrize('line', NO_LINES, ids=lambda line: repr(line[:20]))
@pytest.mark.parametrize('where', [1, 2])
@pytest.mark.parametrize('summed', [True, False])
def test_what_is_no_line_is_told_with_file_and_number(
  tmp_path, line, where, summed
):
  path = tmp_path / 'j.jsonl'
  make(path)
  lines = path.read_bytes().splitlines()
  if not summed:  # as version 1cbf695 wrote them
    lines = [json.loads(one) for one in lines]
    lines = [
      json.dumps({k: v for k, v in one.items() if k != 'crc32'}).encode()
      for one in lines
    ]
    path.write_bytes(b'\n'.join(lines) + b'\n')
    assert len(open_journal(path, write=False).records) == 3
  lines[where - 1] = line
  path.write_bytes(b'\n'.join(lines) + b'\n')
  before = path.read_bytes()
  for write in (False, True):
    with pytest.raises(
      files.StoreError, match=f'j.jsonl: line {where} is damaged.*delete the'
    ):
      open_journal(path, write=write)
  assert path.read_bytes() == before


def test_lines_without_checksums_are_read_and_new_ones_have_them(tmp_path):
  path = tmp_path / 'j.jsonl'
  header = {'fingerprint': {'limit': 1, 'kinds': ['a']}}
  old = '\n'.join(map(json.dumps, [header, record('a'), record('b')])) + '\n'
  path.write_text(old)
  make(path, 'c')
  assert path.read_text().startswith(old)
  assert 'crc32' in path.read_text()[len(old) :]
  names = [r['name'] for r in open_journal(path, write=False).records]
  assert names == ['a', 'b', 'c']


def test_a_second_writer_is_refused_and_told_who_the_first_is(tmp_path):
  path = tmp_path / 'j.jsonl'
  code = (
    'from qaq_jax.workdir import journal; import sys; '
    f'j = journal.Journal({str(path)!r}, {{}}, fields={{}}); '
    'print("held", flush=True); sys.stdin.read()'
  )
  holder = subprocess.Popen(
    [sys.executable, '-c', code],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
    cwd=ROOT,
  )
  try:
    assert holder.stdout.readline() == 'held\n'
    (tmp_path / 'link').symlink_to(path)
    for name in ('j.jsonl', 'link'):
      with pytest.raises(
        files.StoreError, match=f'{name} .pid {holder.pid} .*another file'
      ):
        journal.Journal(tmp_path / name, {}, fields={})
    # Reading does not wait.
    assert journal.Journal(path, {}, fields={}, write=False).records == []
  finally:
    holder.communicate()
  journal.Journal(path, {}, fields={}).close()


def test_what_cannot_be_read_is_not_told_to_be_damaged(tmp_path):
  path = tmp_path / 'j.jsonl'
  path.symlink_to(path)  # which root can't read either
  with pytest.raises(OSError, match='j.jsonl') as caught:
    open_journal(path)
  assert caught.value.errno == errno.ELOOP
  with pytest.raises(files.StoreError, match='j.jsonl.*may be whole.*keep it'):
    files.read_json(path)
  with pytest.raises(files.StoreError, match='may be whole.*keep it'):
    files.check_readable(path, caught.value)
  files.check_readable(path, OSError('of a decoder'))


def test_a_full_disk_names_the_file(tmp_path):
  """/dev/full says so at every write."""
  if not os.path.exists('/dev/full'):
    pytest.skip('no /dev/full here')
  made = journal.Journal(tmp_path / 'j.jsonl', {}, fields={})
  made._file.close()
  made._file = open('/dev/full', 'ab')  # noqa: SIM115
  with pytest.raises(OSError, match='make room.*j.jsonl') as caught:
    made.add({})
  assert caught.value.errno == errno.ENOSPC
  path = tmp_path / 'x.json'
  files.write_json(path, {'a': 1})
  with (
    pytest.raises(OSError, match='make room.*x.json'),
    files.atomic_file(path),
    open('/dev/full', 'ab', buffering=0) as full,
  ):
    full.write(b'x')
  assert files.read_json(path) == {'a': 1}
  assert sorted(p.name for p in tmp_path.iterdir() if p.suffix == '.json') == [
    'x.json'
  ]


# JSON and folders.


def test_json_is_damaged_by_its_own_name_and_sealed_json_by_a_flipped_bit(
  tmp_path,
):
  path = tmp_path / 'x.json'
  for text in ('{"a', '5', '[]', 'null', '', '\0', '[' * 9999):
    path.write_text(text)
    with pytest.raises(
      files.StoreError, match=r'x.json is damaged \(.*\): delete that'
    ):
      files.read_json(path, 'delete that')
  value = {'rows': 12, 'ä': [1.5, None]}
  files.write_json(path, files.seal(value))
  whole, refused = path.read_bytes(), 0
  for at in range(len(whole)):
    data = bytearray(whole)
    data[at] ^= 1
    path.write_bytes(data)
    try:
      found = files.read_json(path)
      assert {k: found[k] for k in value} == value
    except files.StoreError as e:
      assert f'{path} is damaged' in str(e)
      refused += 1
  assert refused > len(whole) - 25  # white space, and the name of the seal
  assert files.read_json(tmp_path / 'none.json') is None


def test_atomic_folder_takes_the_place_or_leaves_the_old_one(tmp_path):
  path = tmp_path / 'out'
  for text in ('first', 'second'):
    with files.atomic_folder(path) as folder:
      (folder / 'sub').mkdir()
      (folder / 'sub' / 'file').write_text(text)
  with pytest.raises(RuntimeError), files.atomic_folder(path) as folder:
    (folder / 'file').write_text('half')
    raise RuntimeError
  assert (path / 'sub' / 'file').read_text() == 'second'
  with files.atomic_folder(path) as folder:  # what was left is no obstacle
    (folder / 'file').write_text('third')
  assert [p.name for p in tmp_path.iterdir()] == ['out']
