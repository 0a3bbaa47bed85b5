"""What a program sends costs the trusted process in proportion to its bytes."""

import decimal
import fractions
import itertools
import json
import pathlib
import random
import subprocess
import sys
import time
import tracemalloc

import numpy as np
import pytest

from qaq_jax.evaluation import judge, oracles
from qaq_jax.sandbox.child import hashing, values
from qaq_jax.sandbox.process import ProgramError

# One small object of Python for each three or four bytes of JSON.
_MEMORY_PER_BYTE = 64
_SECONDS_PER_BYTE = 2e-5
_PRIME = (1 << 61) - 1  # a whole number's hash is what it leaves over this
_MANY = 4000

_UNEVEN = ['a' * _MANY] + [''] * _MANY
_COLUMN = ['numpy', ['<f8', [_MANY, 1], [0.5] * _MANY]]
_SAME_HASH = [['int', hex(i * _PRIME)] for i in range(1, 10 * _MANY)]
_RANDOM = random.Random(0)
_LONG = [hex(5 + _PRIME * _RANDOM.getrandbits(400_000)) for _ in range(3)]
_TERMS = [hex(_RANDOM.getrandbits(4_000_000)) for _ in range(2)]


def _nested(depth):
  value = ['list', []]
  for _ in range(depth):
    value = ['list', [value]]
  return value


def _listed(*items):
  return ['list', list(items)]


# Name -> what is sent, what is expected, the absolute tolerance.
_SENT = {
  'padded texts': (['numpy', ['<U1', [_MANY + 1], _UNEVEN]], _UNEVEN, 0),
  'padded texts in a list': (
    _listed(['numpy', ['<U1', [_MANY + 1], _UNEVEN]]),
    [_UNEVEN],
    0,
  ),
  'padded bytes': (
    [
      'numpy',
      ['|S1', [_MANY], [['bytes', '00' * 9 * _MANY], *[['bytes', '']] * 3999]],
    ],
    None,
    0,
  ),
  'a dtype with a length': (['numpy', ['<U999999999', [1], ['a']]], 'a', 0),
  'a column and a list': (_COLUMN, list(range(_MANY)), 0),
  'a column and an array': (_COLUMN, np.arange(float(_MANY)), 1e-6),
  'a column and a column': (
    _COLUMN,
    np.arange(float(_MANY)).reshape(1, -1),
    1e-6,
  ),
  'a column in a list': (_listed(_COLUMN), [list(range(_MANY))], 0),
  'a column in a dictionary': (
    ['dict', [[1, _COLUMN]]],
    {1: list(range(_MANY))},
    0,
  ),
  'a column of objects': (
    ['numpy', ['|O', [1], [_listed(_COLUMN)]]],
    [[list(range(_MANY))]],
    0,
  ),
  'a column of lists': (
    _listed(*[_listed(0.5)] * _MANY),
    [0.25] * _MANY,
    1e-6,
  ),
  'columns in a list': (
    _listed(*[['numpy', ['<f8', [1], [0.5]]]] * _MANY),
    [0.25] * _MANY,
    1e-6,
  ),
  'a scalar and uneven texts': (['numpy', ['<f8', None, [1]]], _UNEVEN, 0),
  'a scalar and uneven texts in lists': (
    _listed(['numpy', ['<f8', None, [1]]]),
    [_UNEVEN],
    0,
  ),
  'an array and uneven texts': (['numpy', ['<f8', [2], [1, 2]]], _UNEVEN, 0),
  'uneven texts and numbers': (
    _listed(*_UNEVEN),
    [0.5] * (_MANY + 1),
    1e-6,
  ),
  'one text among numbers': (
    _listed('a' * _MANY, *[0.5] * _MANY),
    [0.5] * (_MANY + 1),
    1e-6,
  ),
  'a set with one hash': (['set', _SAME_HASH], {1}, 0),
  'a frozen set with one hash': (['frozenset', _SAME_HASH], {1}, 0),
  'keys with one hash': (['dict', [[k, 0] for k in _SAME_HASH]], {1: 0}, 0),
  'tuples with one hash': (
    ['set', [['tuple', [k, 'x']] for k in _SAME_HASH]],
    {1},
    0,
  ),
  'a set of decimal and long numbers': (
    ['set', [['decimal', '5'], *[['int', n] for n in _LONG]]],
    {5},
    0,
  ),
  'decimal numbers and long numbers': (
    _listed(*[['decimal', '5']] * 3),
    [int(n, 16) for n in _LONG],
    0,
  ),
  'a long fraction': (['fraction', _TERMS], 0.5, 1e-6),
  'a long decimal number': (['decimal', '0.' + '3' * 999_999], 0.5, 1e-6),
  'a decimal number to a high power': (['decimal', '1e999999'], 5, 1e-6),
  'a decimal number to a low power': (['decimal', '1e-999999'], 5, 1e-6),
  'nothing to a high power': (['decimal', '0e999999'], 0, 1e-6),
  'no quiet number': (_listed(['decimal', 'sNaN']), [0.5], 1e-6),
  'a long number': (['int', _TERMS[0]], 5, 1e-6),
  'long numbers in an array': (
    ['numpy', ['|O', [3], [['int', n] for n in _LONG]]],
    0.5,
    1e-6,
  ),
  'depth': (_nested(150), [], 0),
  'depth of Python': (_nested(450), [], 0),
  'a deep array': (['numpy', ['|O', [1], [_nested(150)]]], [], 0),
  'a shape of many': (['numpy', ['<f8', [1 << 40, 1 << 20], [1]]], 1, 0),
  'a shape of many and none': (['numpy', ['<f8', [1 << 62, 0], []]], [], 0),
  'a shape of many dimensions': (
    ['numpy', ['<f8', [int('9' * 4000)] * 200, [1]]],
    1,
    0,
  ),
  'many dimensions of two': (['numpy', ['<f8', [2] * 300_000, [1]]], 1, 0),
  'a negative shape': (['numpy', ['<f8', [-1, 1], [1] * _MANY]], 1, 0),
  'a dtype without bytes': (['numpy', ['V1000000000', [1], [0]]], 1, 0),
  'a dtype of fields': (['numpy', ['i4,i4', None, [1]]], 1, 0),
  'a dtype of time': (['numpy', ['<M8[ns]', None, [1]]], 1, 0),
  'texts of long numbers': (
    ['numpy', ['<U1', [3], [['int', n] for n in _LONG]]],
    1,
    0,
  ),
  'numbers of long texts': (['numpy', ['<i8', [1], ['9' * 300_000]]], 1, 0),
  'a long name': (['opaque', [['x'] * _MANY] * 50], 1, 0),
  'a long hash': (['digest', ['list', '9' * 4000, ['x'] * _MANY]], 1, 0),
  'a long type': (['x' * 100_000, 1], 1, 0),
  'an object of JSON': ({'list': 1, 'x': 'y' * _MANY}, 1, 0),
  'small sets': (_listed(*[['set', []]] * _MANY), [], 0),
  'small dictionaries': (_listed(*[['dict', []]] * _MANY), [], 0),
  'small arrays': (_listed(*[['numpy', ['O', [0], []]]] * _MANY), [], 0),
  'small iterators': (_listed(*[['iter', []]] * _MANY), [], 0),
  'small lists': (_listed(*[_listed()] * _MANY), [], 0),
}


@pytest.mark.parametrize('name', _SENT)
def test_the_cost_of_a_value_is_that_of_its_bytes(name):
  sent, expected, atol = _SENT[name]
  body = json.dumps(sent)
  size = len(body) + len(json.dumps(values.encode(expected)))
  data = json.loads(body)
  started = time.process_time()
  tracemalloc.start()
  try:
    try:
      output = values.decode(data)
      for function in ('f', 'sum_div', 'similar_elements', 'check_str'):
        oracles.matches('mbpp', function, [], output, expected, atol)
      oracles.matches('humaneval', 'find_zero', [[1, 1]], output, 1, atol)
    except ValueError as e:
      assert len(str(e)) < 300
    peak = tracemalloc.get_traced_memory()[1]
  finally:
    tracemalloc.stop()
  assert peak < _MEMORY_PER_BYTE * size + (1 << 18)
  assert time.process_time() - started < 1 + _SECONDS_PER_BYTE * size


def test_values_that_only_look_hostile_still_match():
  def same(value, expected, name='f'):
    data = json.loads(json.dumps(values.encode(value)))
    output = values.decode(data)
    return oracles.matches('mbpp', name, [], output, expected, 0)

  powers = {2**i for i in range(3000)}  # of each hash there are fifty
  assert same(powers, powers)
  assert same({k: 1 for k in powers}, {k: 1 for k in powers})
  assert same([1] * 9999 + [2], (2, 1), 'similar_elements')
  assert same(np.array(_UNEVEN), ('a' * _MANY, ''), 'similar_elements')
  assert same(np.array([3]), 3)
  assert same(np.array([[3]]), [3])
  assert not same(np.array([[3]]), [4])
  assert same([np.float64(0.5), np.str_('a')], [0.5, 'a'])
  assert not same(np.array([3, 4]), [3, 4])  # NumPy gives it no truth
  assert same({'a': [1, (2, {3})]}, {'a': [1, (2, {3})]})
  assert not same({'a': [1, (2, {3})]}, {'a': [1, (2, {4})]})
  assert not same({'a': 1}, {'b': 1})
  assert not same([1, [2]], [1, (2,)])
  number = decimal.Decimal('0.5')
  for expected in (0.5, number, fractions.Fraction(1, 2)):
    assert same(number, expected)
  assert same(decimal.Decimal('-inf'), float('-inf'))
  assert same({number: 1}, {0.5: 1})
  assert not same(number, 0.25)


@pytest.mark.parametrize(
  'make',
  [
    lambda i: i * _PRIME,
    lambda i: (0, i * _PRIME),
    lambda i: complex(-1_000_003 * i, i),
  ],
)
def test_keys_of_one_hash_are_refused_whatever_they_are(make):
  keys = [make(i) for i in range(1, 3000)]
  assert len(set(map(hash, keys))) == 1
  with pytest.raises(ValueError, match='values with one hash'):
    hashing.distinct(keys)


@pytest.mark.parametrize('kind', ['set', 'frozenset', 'dict'])
def test_values_of_one_hash_are_refused_where_they_are_hashed(kind):
  items = [[k, 0] for k in _SAME_HASH] if kind == 'dict' else _SAME_HASH
  with pytest.raises(ValueError, match='values with one hash'):
    values.decode([kind, items])


def _nested(fan, depth):
  """Frozensets of one hash, `fan` in each, down to integers of one hash."""

  def make(level, number):
    if not level:
      return ['int', hex(number * _PRIME + 5)]
    inside = [make(level - 1, k) for k in range(1, fan)]
    return ['frozenset', [*inside, make(level - 1, 1000**level + number)]]

  return ['set', [make(depth, number) for number in range(fan)]]


def test_few_sets_of_one_hash_within_each_other_are_refused():
  """Their comparisons multiply, though each has fewer than are counted."""
  start = time.process_time()
  with pytest.raises(ValueError, match='values with one hash'):
    values.decode(_nested(40, 2))
  assert time.process_time() - start < 2


def test_small_values_that_share_a_hash_are_sets():
  """-1 and -2 have one hash, and so has what is made of them."""
  signs = list(itertools.product((-1, -2), repeat=6))
  assert hashing.distinct(signs) == set(signs)
  sets = [frozenset((i, *range(40))) for i in (-1, -2)]
  assert hashing.distinct(sets) == set(sets)


def test_an_error_that_is_no_text_is_a_verdict():
  error = 'x'
  for _ in range(700):
    error = [error]
  assert (
    judge._reason(ProgramError('error', error)) == 'an error that is no text'
  )


def test_a_fraction_too_long_to_be_reduced_is_no_number():
  long, short = '0x' + '7' * values._MAX_HEX, '0x7'
  for terms in ((long, short), (short, long), (long, long)):
    assert type(values.decode(['fraction', list(terms)])) is values.Opaque
  terms = [long[: values._MAX_HEX], short]
  assert values.decode(['fraction', terms]) == int(terms[0], 16) // 7


_EVIL = """
from child import values
PAY = ["numpy", ["<U1", [10000], ["a" * 24000] + [""] * 9999]]
values.encode = lambda v, d=0: PAY
def f(n): return 1
"""


def test_a_hostile_value_fails_its_program_and_no_other(tmp_path, monkeypatch):
  """The harness in a process of its own, for what it needs at most."""
  right = 'def f(n):\n  return " ".join(map(str, range(n)))\n'
  record = {
    'prompt': 'def f(n):\n',
    'entry_point': 'f',
    'canonical_solution': right.partition('\n')[2],
    'base_input': [[20_000]],
    'plus_input': [[2]],
    'atol': 0,
    'test': '',
  }
  tasks = [{'task_id': f'HumanEval/{i}'} | record for i in range(3)]
  samples = [
    {'task_id': t['task_id'], 'solution': s}
    for t, s in zip(tasks, (right, _EVIL, right), strict=True)
  ]
  for name, lines in (('bench', tasks), ('samples', samples)):
    text = '\n'.join(map(json.dumps, lines))
    (tmp_path / f'{name}.jsonl').write_text(text)
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  script = (
    'import re, sys\n'
    'from qaq_jax.evaluation import harness\n'
    'harness.main(sys.argv[1:])\n'
    # Not ru_maxrss, which begins with that of the process which starts it.
    'status = open("/proc/self/status").read()\n'
    'print(int(re.search(r"VmHWM:\\s+(\\d+) kB", status)[1]) >> 10)\n'
  )
  command = [
    sys.executable,
    '-c',
    script,
    f'--samples={tmp_path / "samples.jsonl"}',
    '--benchmark=humaneval_plus',
    f'--path={tmp_path / "bench.jsonl"}',
    f'--output={tmp_path / "results.jsonl"}',
    '--allow-code-execution',
    '--allow-uncontained',
    '--workers=1',
  ]
  root = pathlib.Path(__file__).parent.parent
  for said in ('66.7', '3 samples have verdicts already'):
    done = subprocess.run(
      command, cwd=root, text=True, check=True, capture_output=True
    )
    assert said in done.stdout
    assert int(done.stdout.split()[-1]) < 500  # MiB; padded it takes 900
  _, *lines = (tmp_path / 'results.jsonl').read_text().splitlines()
  found = {r['task_id']: r['suites']['base'] for r in map(json.loads, lines)}
  statuses = [found[t['task_id']]['status'] for t in tasks]
  assert statuses == [judge.PASS, judge.FAIL, judge.PASS]
