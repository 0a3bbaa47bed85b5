"""Test session set-up: eight fake CPU devices, cheap programs, a cache of them.

All must be set before jax starts its backend, hence at import time.
"""

import ctypes
import gc
import os
import pathlib
import resource
import sys

import pytest

_ROOT = pathlib.Path(__file__).resolve().parent.parent

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
# Tests run thousands of tiny programs a few times each: most of the time went
# into optimising them. What is checked is the program that we hand to XLA, not
# what LLVM makes of it. A flag that is given already comes later and wins:
# `make test-slow` gives those that users have, as do tests that start whole
# runs: code that is not optimised would cost them more than compiling does.
os.environ['XLA_FLAGS'] = ' '.join(
  (
    '--xla_backend_optimization_level=0',
    '--xla_cpu_use_fusion_emitters=false',
    # Cut in pieces for several threads, a program costs more CPU time.
    '--xla_cpu_parallel_codegen_split_count=1',
    os.environ.get('XLA_FLAGS', ''),
    '--xla_force_host_platform_device_count=8',
  )
)
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(_ROOT / '.jax_cache'))
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0.2')
# The workers share the cores: threads of torch's would wait for each other.
os.environ.setdefault('OMP_NUM_THREADS', '1')
# Tests never reach a hub: what they load, they made or ship themselves.
os.environ.setdefault('HF_HUB_OFFLINE', '1')


def pytest_collection_finish():
  """Leaves what was imported out of every later collection of garbage."""
  gc.collect()
  gc.freeze()
  gc.set_threshold(50_000)


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item, nextitem):
  """Drops a file's programs behind its last test: the next has others."""
  if (nextitem is None or nextitem.path != item.path) and 'jax' in sys.modules:
    sys.modules['jax'].clear_caches()
    gc.collect()
    if trim := getattr(ctypes.CDLL(None), 'malloc_trim', None):
      trim(0)  # glibc keeps what is free, in pieces that fit no other file


def pytest_sessionfinish(session):
  """Lets a worker of pytest-xdist tell its peak memory, in KiB."""
  if hasattr(session.config, 'workeroutput'):
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    session.config.workeroutput['peak'] = peak


_PEAKS = {}


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
  """Takes the peak memory of a worker that ends."""
  _PEAKS[node.gateway.id] = getattr(node, 'workeroutput', {}).get('peak', 0)


def pytest_terminal_summary(terminalreporter):
  """Says what the workers and all that they started have used."""
  if _PEAKS:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    peaks = [
      f'{name} {peak / 2**20:.2f} GiB' for name, peak in sorted(_PEAKS.items())
    ]
    terminalreporter.section('weight')
    terminalreporter.line(
      f'CPU time of all processes: {used.ru_utime / 60:.1f} min user, '
      f'{used.ru_stime / 60:.1f} min system'
    )
    terminalreporter.line(f'peak memory of the workers: {", ".join(peaks)}')
