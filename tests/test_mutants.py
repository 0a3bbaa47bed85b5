"""The faults of faults.py can still be planted, and cover the house."""

import re

import mutants
import pytest
from faults import FAULTS, ROOT, Fault


@pytest.mark.parametrize('fault', FAULTS, ids=lambda fault: fault.name)
def test_the_text_of_a_fault_is_there(fault):
  compile(fault.planted(), fault.file, 'exec')


def test_every_room_has_faults():
  files = {path.name for path in (ROOT / 'qaq_jax').glob('*.py')}
  rooms = {path.parent.name for path in (ROOT / 'qaq_jax').glob('*/*.py')}
  of_room = [fault.room for fault in FAULTS]
  assert len(FAULTS) >= 40
  assert set(of_room) - files == rooms
  assert all(of_room.count(room) > 1 for room in rooms)


def test_tests_of_faults_exist():
  for fault in FAULTS:
    for test in fault.tests.split():
      file, name = re.fullmatch(r'(test_\w+\.py)::(test_\w+)', test).groups()
      text = (ROOT / 'tests' / file).read_text()
      assert f'\ndef {name}(' in text, fault.name


def test_what_is_seen_and_what_is_not(tmp_path):
  """A fault, a change that is none, and tests that nobody can run."""
  mutants.copy_tree(tmp_path)
  file, test = 'scoring/metrics.py', 'test_metrics.py::test_values_by_hand'
  rmi = ' - log_ppl(nll_q_given_a, n_q_given_a)'
  whole = (tmp_path / 'qaq_jax' / file).read_text()
  for new, tests, seen, why in (
    (rmi.replace('-', '+'), test, True, f'FAILED tests/{test}'),
    (f'{rmi}  # none', test, False, '100%'),
    (rmi.replace('-', '+'), f'{test}_gone', False, 'not found'),
  ):
    fault = Fault(file, rmi, new, tests)
    found, told = mutants.is_seen(fault, tmp_path)
    assert found == seen and why in told
    assert (tmp_path / 'qaq_jax' / file).read_text() == whole
