"""What is asked of a model, and how what it wrote is run."""

import dataclasses

from qaq_jax.generation.options import GeneratorOptions, Sampling
from qaq_jax.models.options import check_dtype
from qaq_jax.sandbox.process import Limits

STYLES = ('chat', 'base')  # of prompts


@dataclasses.dataclass(frozen=True)
class Timing:
  """Time limits of tests, in seconds of this machine.

  Attributes:
    floor: the least for one test, on a machine of nominal speed.
    factor: times the reference's own time, if that is more.
    total: the most for all tests of a suite.
    test_code: the least for a task with test code, all of it.
    load: seconds until the program's own top level has run.
  """

  floor: float = 1.0
  factor: float = 4.0
  total: float = 60.0
  test_code: float = 3.0
  load: float = 10.0

  def scaled(self, scale: float) -> 'Timing':
    """Returns the limits for a machine that is `scale` times slower."""
    return Timing(
      self.floor * scale,
      self.factor,
      self.total * scale,
      self.test_code * scale,
      self.load * scale,
    )


@dataclasses.dataclass(frozen=True)
class Options:
  """How samples are run.

  Attributes:
    workers: programs at a time; 0 = one per core, if memory is enough for the
      limits of all.
    all_tests: go on after a failed test, for results per test.
    timing: time limits, before they are scaled to this machine.
    limits: what one program may use.
    allow_uncontained: run programs although they would reach files, network
      or other processes.
  """

  workers: int = 0
  all_tests: bool = False
  timing: Timing = Timing()
  limits: Limits = Limits()
  allow_uncontained: bool = False


@dataclasses.dataclass(frozen=True)
class EvaluateOptions:
  """How a model is evaluated.

  Attributes:
    prompt: 'chat', or 'base': the task's text, to go on with.
    samples: programs per task.
    sampling: how they are drawn.
    generator: how long they are, and how many are written at a time.
    dtype: the dtype of weights and compute: 'float32' or 'bfloat16'.
    attention: 'auto', or the name of an implementation.
    allow_code_execution: programs that a model wrote are run only if this is
      set. `qaq` sets it to what --allow-code-execution says, whatever a recipe
      says; callers from Python may set it. docs/evaluation.md: what contains
      them.
    execution: how they are run.
  """

  prompt: str = 'chat'
  samples: int = 1
  sampling: Sampling = Sampling()
  generator: GeneratorOptions = GeneratorOptions()
  dtype: str = 'bfloat16'
  attention: str = 'auto'
  allow_code_execution: bool = False
  execution: Options = Options()

  def __post_init__(self):
    if self.prompt not in STYLES:
      raise ValueError(f'prompt style {self.prompt!r}: choose one of {STYLES}')
    check_dtype('dtype', self.dtype)
    if self.samples < 1:
      raise ValueError(f'samples={self.samples}: 1 per task at least')
    if self.samples > 1 and not self.sampling.temperature:
      raise ValueError(
        f'samples={self.samples} at temperature 0 would be the same program '
        'each time; set temperature, 0.8 say'
      )
