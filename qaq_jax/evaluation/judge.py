"""One program against one task: runs it, compares its outputs, gives a verdict.

A task with inputs: the program's process gets the inputs and sends the outputs
back, which are compared here. A task with test code: the tests run in a second
process that never sees the program; the function that they call is answered by
the program's process. In both, the process that runs the program learns
neither the expected outputs nor the verdict.
"""

import dataclasses
import functools
import json
import time

from qaq_jax.evaluation import oracles
from qaq_jax.evaluation.benchmarks import Task
from qaq_jax.evaluation.options import Timing
from qaq_jax.sandbox.child import values
from qaq_jax.sandbox.process import Process, ProgramError
from qaq_jax.sandbox.sandbox import Sandbox

PASS, FAIL, TIMEOUT = 'pass', 'fail', 'timeout'

_ANSWER_SLACK = 1 << 16  # bytes over twice the right answer's
_TESTER_SECONDS = 60.0  # between two calls of test code
_REFERENCE_BYTES = 1 << 28  # of one answer of a reference
_NOMINAL_SECONDS = 0.08  # of `machine_scale`'s loop, where a second is enough
_REFERENCE_SECONDS = 600.0  # for one answer of a reference


@dataclasses.dataclass(frozen=True)
class Reference:
  """What a reference solution did on one suite.

  Attributes:
    calls: the arguments of each test, encoded JSON.
    outputs: encoded outputs; empty for test code.
    seconds: CPU time of each test; one number for test code.
    error: why the reference itself fails; '' if it does not.
  """

  calls: list[str]
  outputs: list
  seconds: list[float]
  error: str = ''

  @functools.cached_property
  def expected(self) -> list:
    """The outputs, decoded."""
    return [values.decode(output) for output in self.outputs]

  @functools.cached_property
  def sizes(self) -> list[int]:
    """Bytes of each output, encoded."""
    return [len(json.dumps(output)) for output in self.outputs]


@dataclasses.dataclass(frozen=True)
class Verdict:
  """Of one program on one suite.

  Attributes:
    status: PASS, FAIL or TIMEOUT.
    reason: the reason of the first failure: 'wrong output', or an error
      message.
    failed: numbers of the failed tests; only the first, unless all were run.
    tests: how many tests the suite has.
    seconds: the seconds that the program had for its tests, after its load.
  """

  status: str
  reason: str
  failed: list[int]
  tests: int
  seconds: float


def machine_scale() -> float:
  """How many times slower than nominal this machine is; at least 1.

  Measured by CPU time, so that a loaded machine is not taken for a slow one:
  what other processes take is not counted against a program either.
  """

  def loop():
    started = time.process_time()
    total, table = 0, {}
    for i in range(400_000):
      total += i * i % 7
      table[i % 1000] = total
    return time.process_time() - started

  return max(1.0, sorted(loop() for _ in range(3))[1] / _NOMINAL_SECONDS)


def encode_calls(inputs: list) -> list[str]:
  """Returns the arguments of each test as JSON."""
  return [json.dumps(values.encode(list(arguments))) for arguments in inputs]


def run_reference(
  sandbox: Sandbox, family: str, task: Task, suite: str
) -> Reference:
  """Runs the reference solution for its outputs and times."""
  if suite == 'check':
    verdict = judge_check(
      sandbox,
      task,
      task.reference,
      Timing(test_code=_REFERENCE_SECONDS),
      Reference([], [], [0.0]),
    )
    error = '' if verdict.status == PASS else verdict.reason
    return Reference([], [], [verdict.seconds], error)
  calls = encode_calls(task.suites[suite])
  outputs, seconds, error = [], [], ''
  try:
    with sandbox.start() as process:
      _load(process, task.reference, _REFERENCE_SECONDS)
      _send_calls(process, task.entry_point, calls)
      for _ in calls:
        answer = process.receive(_REFERENCE_SECONDS, _REFERENCE_BYTES)
        if 'error' in answer:
          raise ProgramError('error', answer['error'])
        returned = values.decode(answer['value'])
        output = oracles.expect(family, task.entry_point, returned)
        if not oracles.comparable(output):
          raise ProgramError('error', f'it returned {output!r:.100}')
        same = output is returned
        outputs.append(answer['value'] if same else values.encode(output))
        seconds.append(float(answer['seconds']))
  except ProgramError as e:
    error = _clean(f'test {len(outputs)}: {e.kind}: {e.message}')
  return Reference(calls, outputs, seconds, error)


def judge(
  sandbox: Sandbox,
  family: str,
  task: Task,
  suite: str,
  program: str,
  reference: Reference,
  timing: Timing,
  *,
  all_tests: bool = False,
) -> Verdict:
  """Runs `program` on a suite of `task`.

  Args:
    sandbox: where it runs.
    family: 'humaneval' or 'mbpp'.
    task: what it should solve.
    suite: 'base', 'plus', or 'check' for tasks with test code.
    program: complete source text.
    reference: the reference of this task and suite.
    timing: scaled to this machine.
    all_tests: go on after a failed test, in a fresh process where needed.

  Returns:
    The verdict. Whatever the program does is part of it, never an exception.
  """
  if suite == 'check':
    return judge_check(sandbox, task, program, timing, reference)
  if reference.error:
    tests = len(reference.calls)
    return Verdict(FAIL, f'reference: {reference.error}', [], tests, 0.0)
  run = _Run(sandbox, family, task, suite, reference, timing)
  while run.next < len(reference.calls) or not run.loaded:
    run.go(program, all_tests)
    if run.stopped or (run.failed and not all_tests):
      break
  return Verdict(
    run.status,
    run.reason,
    run.failed,
    len(reference.calls),
    round(run.seconds, 3),
  )


def unjudged(reference: Reference, error: Exception) -> Verdict:
  """Returns the verdict on a program that made the judge itself fail."""
  reason = _clean(f'judge: {type(error).__name__}: {error}')
  return Verdict(FAIL, reason, [], max(1, len(reference.calls)), 0.0)


class _Run:
  """The tests of a suite, over one process or, after a kill, several."""

  def __init__(self, sandbox, family, task, suite, reference, timing):
    self.sandbox, self.family, self.task = sandbox, family, task
    self.reference, self.timing = reference, timing
    self.inputs = task.suites[suite]
    self.atols = oracles.tolerances(task.atol, reference.expected)
    self.limits = [
      max(timing.floor, timing.factor * s) for s in reference.seconds
    ]
    self.budget = min(timing.total, sum(self.limits)) + timing.floor
    self.next, self.seconds = 0, 0.0
    self.before = 0.0  # seconds of the current process, start and load
    self.status, self.reason, self.failed = PASS, '', []
    self.loaded = self.stopped = False

  def go(self, program, all_tests):
    """Runs tests until all are done or the process is of no more use."""
    with self.sandbox.start() as process:
      self.before = process.seconds
      try:
        self._go(process, program, all_tests)
      except ProgramError as e:
        self._fail(TIMEOUT if e.kind == 'timeout' else FAIL, _reason(e))
        self.next += 1
      finally:
        self.seconds += process.seconds - self.before
    left = range(self.next, len(self.inputs))
    if not self.loaded or (left and self.seconds > self.budget):
      self.stopped = True
      self.failed += left
      if self.status == PASS:
        self.status, self.reason = TIMEOUT, 'all tests together'

  def _go(self, process, program, all_tests):
    self.loaded = False  # a fresh process whose load fails is the last one
    try:
      _load(process, program, self.timing.load)
    finally:
      self.before = process.seconds
    self.loaded = True
    _send_calls(
      process, self.task.entry_point, self.reference.calls[self.next :]
    )
    while self.next < len(self.inputs):
      self._test(process)
      self.next += 1
      if self.failed and not all_tests:
        return
      if self.seconds + process.seconds - self.before > self.budget:
        return

  def _test(self, process):
    i = self.next
    max_bytes = 2 * self.reference.sizes[i] + _ANSWER_SLACK
    answer = process.receive(self.limits[i], max_bytes)
    if 'error' in answer:
      self._fail(FAIL, _clean(answer['error']))
      return
    try:
      output = values.decode(answer.get('value'))
    except ValueError as e:
      raise ProgramError('output', str(e)) from e
    if not oracles.matches(
      self.family,
      self.task.entry_point,
      self.inputs[i],
      output,
      self.reference.expected[i],
      self.atols[i],
    ):
      self._fail(FAIL, 'wrong output')

  def _fail(self, status, reason):
    if not self.failed:
      self.status, self.reason = status, reason
    self.failed.append(self.next)


def judge_check(
  sandbox: Sandbox,
  task: Task,
  program: str,
  timing: Timing,
  reference: Reference,
) -> Verdict:
  """Runs a task's test code against `program`, in a process of its own."""
  limit = max(timing.test_code, timing.factor * reference.seconds[0])
  status, reason, before = PASS, '', None
  with sandbox.start() as tester, sandbox.start() as process:
    try:
      # HumanEval's tests use helpers of the prompt, so the tester has the
      # reference program; MBPP's call the function by its name.
      by_name = not task.prompt or task.task_id.startswith('Mbpp/')
      _load(tester, '' if by_name else task.reference, _REFERENCE_SECONDS)
      _load(process, program, timing.load)
      before = process.seconds
      tester.send(
        {'check': task.check, 'function': task.entry_point if by_name else ''}
      )
      _relay(tester, process, task.entry_point, limit)
    except ProgramError as e:
      status, reason = TIMEOUT if e.kind == 'timeout' else FAIL, _reason(e)
    seconds = 0.0 if before is None else process.seconds - before
  failed = [] if status == PASS else [0]
  return Verdict(status, reason, failed, 1, round(seconds, 3))


def _relay(tester, process, function, limit):
  """Carries calls to the program and values back, until the tests end."""
  before = process.seconds
  while True:
    message = tester.receive(_TESTER_SECONDS)
    if 'passed' in message:
      return
    if 'error' in message:
      raise ProgramError('test', message['error'])
    _send_calls(process, function, [json.dumps(message['call'])])
    left = limit - (process.seconds - before)
    if left <= 0:
      raise ProgramError('timeout', f'more than {limit:.2f} s')
    answer = process.receive(left)
    kept = 'error' if 'error' in answer else 'value'
    tester.send({kept: answer.get(kept)})


def _load(process: Process, program: str, limit: float) -> None:
  process.send({'load': program})
  answer = process.receive(limit, _ANSWER_SLACK)
  if 'loaded' not in answer:
    raise ProgramError('error', _clean(answer.get('error')))


def _send_calls(process, function, calls):
  head = json.dumps({'function': function})[:-1]
  process.send_bytes(f'{head}, "calls": [{", ".join(calls)}]}}'.encode())


def _reason(e):
  told = e.kind in ('error', 'test')
  return _clean(e.message if told else f'{e.kind}: {e.message}')


def _clean(text):
  """Text of a program, made harmless to a terminal and a log."""
  if not isinstance(text, str):  # it may be nested too deeply to be written
    return 'an error that is no text'
  return ''.join(c if c.isprintable() else '?' for c in text[:300])
