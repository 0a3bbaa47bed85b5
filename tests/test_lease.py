"""Of the runs that want to write to an object store, one may."""

import os
import threading
import time

import fsspec
import pytest

from qaq_jax.workdir import files, lease

PATH = '/bucket/m/.lease'
DEAD = b'{"holder": "gone, pid 1", "id": "x", "beat": 3}'


@pytest.fixture
def memory(monkeypatch):
  """A file system of the process's memory, empty; quick leases."""
  monkeypatch.setattr(lease, 'BEAT_SECONDS', 0.2)
  monkeypatch.setattr(lease, 'LOST_SECONDS', 1.0)
  system = fsspec.filesystem('memory')
  system.store.clear()
  system.pseudo_dirs[:] = ['']
  return system


def new(memory):
  return lease.Lease(memory, PATH, 'memory://bucket/m')


def test_a_living_run_keeps_the_others_out(memory):
  a, b = new(memory), new(memory)
  a.take()
  with pytest.raises(files.StoreError, match=f'pid {os.getpid()}.*--workdir'):
    b.take()
  a.check()
  a.give()
  assert not memory.exists(PATH)
  b.take()
  b.give()


def test_the_lease_of_a_dead_run_is_taken_over(memory, capsys):
  memory.pipe_file(PATH, DEAD)
  start = time.monotonic()
  a = new(memory)
  a.take()
  assert time.monotonic() - start > 1
  assert 'gone, pid 1' in capsys.readouterr().out
  a.check()
  a.give()


@pytest.mark.parametrize('dead', [False, True])
def test_of_many_that_want_it_one_gets_it(memory, dead, monkeypatch):
  if dead:  # all of them write before the first looks again
    monkeypatch.setattr(lease, 'BEAT_SECONDS', 1.0)
    memory.pipe_file(PATH, DEAD)
  leases = [new(memory) for _ in range(6)]
  refused = []

  def take(one):
    try:
      one.take()
    except files.StoreError:
      refused.append(one)

  threads = [threading.Thread(target=take, args=(one,)) for one in leases]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert len(refused) == 5
  (holder,) = [one for one in leases if one not in refused]
  holder.check()
  holder.give()


class Late:
  """A file system that writes once somebody else has written."""

  def __init__(self, system):
    self._system = system

  def __getattr__(self, name):
    return getattr(self._system, name)

  def pipe_file(self, path, data, **options):
    while 'mode' not in options and self._system.cat(path) == DEAD:
      time.sleep(0.005)
    self._system.pipe_file(path, data, **options)


def test_who_takes_it_over_last_has_it(memory):
  """Both have seen the dead one; the first to write looks again."""
  memory.pipe_file(PATH, DEAD)
  late, early = new(Late(memory)), new(memory)
  thread = threading.Thread(target=late.take)
  thread.start()
  time.sleep(0.1)
  with pytest.raises(files.StoreError, match='another run writes'):
    early.take()
  thread.join()
  late.check()
  late.give()


def test_a_holder_that_comes_back_finds_it_taken(memory):
  """It neither writes a life sign over the other's nor removes that."""
  a = new(memory)
  a.take()
  theirs = DEAD.replace(b'gone', b'other')
  memory.pipe_file(PATH, theirs)
  time.sleep(0.6)
  assert memory.cat(PATH) == theirs
  with pytest.raises(files.StoreError, match='other, pid 1.*Nothing more'):
    a.check()
  a.give()
  assert memory.cat(PATH) == theirs
