"""What a run reports: counts, rates, the lines of its learning curve."""

import dataclasses
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence

from qaq_jax.finetune import trackers as trackers_lib
from qaq_jax.finetune.batches import Batch
from qaq_jax.workdir import journal as journal_lib


@dataclasses.dataclass(frozen=True)
class Run:
  """What a curve must know of its run.

  Attributes:
    name: the name for the bar and trackers.
    steps: updates of the whole run.
    per_epoch: updates of an epoch.
    tokens_left: about how many tokens are still to be trained on.
    log_every: updates between lines.
    flops: batch -> operations that it needs.
    peak: operations per second that the devices could do.
    settings: settings for trackers.
    trackers: names of `metrics.TRACKERS`.
    show: whether to show the bar.
  """

  name: str
  steps: int
  per_epoch: int
  tokens_left: int
  log_every: int
  flops: Callable[[Batch], float]
  peak: float
  settings: Mapping
  trackers: Sequence[str] = ()
  show: bool = True


class Curve:
  """Writes metrics.jsonl and samples.jsonl, feeds bar and trackers.

  Rates are of the time since the last line, without compilation of the first
  update, evaluations and saving.
  """

  def __init__(
    self,
    workdir: pathlib.Path,
    run: Run,
    *,
    step: int,
    progress: Mapping | None,
    write: bool = True,
  ):
    """Opens the files for the lines behind `step`.

    Args:
      workdir: the work directory of the run.
      run: see Run.
      step: updates made.
      progress: the progress from the checkpoint of that step, see `progress`;
        None: none.
      write: False in all processes but one: counts only.
    """
    progress = progress or {'tokens': 0, 'seconds': 0.0, 'window': None}
    self._run = run
    self.tokens = progress['tokens']
    self._window = trackers_lib.Window(progress['window'])
    self._started = time.perf_counter() - progress['seconds']
    self._since: float | None = None  # start of the time that rates are of
    self._rated_tokens, self._rated_flops = 0, 0.0
    self._journal = self._samples = None
    self._trackers = []
    if write:
      self._trackers = trackers_lib.open_trackers(
        run.trackers, workdir, name=run.name, config=dict(run.settings)
      )
      self._journal, self._samples = (
        journal_lib.Journal(
          workdir / name,
          fields={'step': int},
          # A run that was killed leaves lines behind its last checkpoint.
          keep=lambda record: record['step'] <= step,
          back='delete the line: the curve lacks it, and all else is the same',
        )
        for name in ('metrics.jsonl', 'samples.jsonl')
      )
    self._bar = trackers_lib.Bar(
      run.name,
      tokens=run.tokens_left,
      steps=run.steps,
      show=run.show and write,
    )

  @property
  def seconds(self) -> float:
    """Since the start, earlier runs included."""
    return time.perf_counter() - self._started

  def add(
    self,
    batch: Batch,
    rate: float,
    *,
    loss: float,
    weight: float,
    grad_norm: float,
  ) -> None:
    """Counts an update, and writes a line if one is due.

    Args:
      batch: the batch that it was made with.
      rate: learning rate.
      loss: weighted mean, nats per token.
      weight: sum of the weights.
      grad_norm: the global norm before clipping.
    """
    run = self._run
    self._window.add(loss, weight, grad_norm)
    self.tokens += batch.tokens
    tokens_per_second = used = None
    if self._since is None:  # the first update was also compiled
      self.restart_clock()
    else:
      self._rated_tokens += batch.tokens
      self._rated_flops += run.flops(batch)
      seconds = time.perf_counter() - self._since
      tokens_per_second = self._rated_tokens / seconds
      used = self._rated_flops / seconds / run.peak
    self._bar.add(batch.step, batch.tokens, loss, used)
    if batch.step % run.log_every and batch.step != run.steps:
      return
    self._write(
      batch.step,
      **self._window.means(),
      learning_rate=rate,
      tokens=self.tokens,
      tokens_per_second=_rounded(tokens_per_second, 1),
      mfu=_rounded(used, 4),
    )
    self._window = trackers_lib.Window()
    if self._since is not None:
      self.restart_clock()

  def restart_clock(self) -> None:
    """Measures rates from now on."""
    self._since = time.perf_counter()
    self._rated_tokens, self._rated_flops = 0, 0.0

  def evaluated(self, step: int, values: Mapping) -> None:
    """Writes the numbers of an evaluation."""
    if values:
      self._write(step, **values)

  def looked(self, step: int, samples: Sequence) -> None:
    """Writes what the model wrote at an evaluation."""
    if self._samples is not None:
      self._samples.add({'step': step, 'samples': list(samples)})

  def _write(self, step, **values):
    if self._journal is None:
      return
    values = {
      'epoch': round(step / self._run.per_epoch, 4),
      **values,
      'seconds': round(self.seconds, 2),
    }
    self._journal.add({'step': step, **values})
    numbers = {k: v for k, v in values.items() if v is not None}
    for tracker in self._trackers:
      tracker.log(step, numbers)

  def progress(self) -> dict:
    """What a resumed curve needs; all lines so far are on disk then."""
    for journal in (self._journal, self._samples):
      if journal is not None:
        journal.sync()
    return {
      'tokens': self.tokens,
      'seconds': self.seconds,
      'window': dict(self._window.sums),
    }

  def close(self) -> None:
    """Closes files, bar and trackers."""
    self._bar.close()
    for part in (self._journal, self._samples, *self._trackers):
      if part is not None:
        part.close()


def _rounded(value, digits):
  return None if value is None else round(value, digits)
