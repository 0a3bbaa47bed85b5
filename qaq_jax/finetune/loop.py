"""The training loop: examples in, weights and a learning curve out."""

import contextlib
import dataclasses
import errno
import math
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from qaq_jax.encoding.examples import Example
from qaq_jax.finetune import (
  batches,
  checkpoints,
  curve,
  identity,
  optimizer,
  signals,
)
from qaq_jax.finetune import plan as plan_lib
from qaq_jax.finetune import step as step_lib
from qaq_jax.finetune.options import FREE, FitOptions, OptimizerOptions
from qaq_jax.runtime import console, progress
from qaq_jax.workdir import files

__all__ = ['FitOptions', 'FitResult', 'NonFiniteError', 'fit']

_SHOWN_ROWS = 20  # of a batch whose loss is not finite


class NonFiniteError(FloatingPointError):
  """Loss or gradient is not finite; names the update and its rows."""


@dataclasses.dataclass(frozen=True)
class FitResult:
  """What a run gave.

  Attributes:
    state: the state after the last update.
    steps: updates made.
    tokens: real tokens trained on, repeats counted.
    seconds: spent, of all runs if it was resumed.
    best_step: updates made by the best checkpoint; the last one's without
      validation examples.
    best_loss: its validation loss, nats per weighted token; None without.
    load_best: reads the state of the best checkpoint.
  """

  state: Any
  steps: int
  tokens: int
  seconds: float
  best_step: int
  best_loss: float | None
  load_best: Callable[[], Any]


def fit(
  trainer,
  state,
  examples: Sequence[Example],
  workdir: str | os.PathLike,
  *,
  options: FitOptions,
  optimizer_options: OptimizerOptions,
  validation: Sequence[Example] = (),
  sample_fn: Callable[[object], Sequence] | None = None,
  measure_fn: Callable[[Any], Mapping[str, float]] | None = None,
  fingerprint: Mapping | None = None,
  reserve: int = 0,
  name: str = '',
) -> FitResult:
  """Trains to the last update, going on from the folder's checkpoint.

  Writes WORKDIR/metrics.jsonl (the curve), samples.jsonl (what `sample_fn`
  gave), checkpoints/ and fingerprint.json. A run that was killed goes on from
  its last checkpoint with the batches it would have had: on the same devices
  the same curve, bit for bit; on others the same up to rounding.

  Args:
    trainer: a `step.Trainer`.
    state: its state to start from; donated.
    examples: the examples, at most `options.max_length` tokens each.
    workdir: the work directory of this run; made when missing.
    options: see FitOptions.
    optimizer_options: the schedule's.
    validation: examples to evaluate on; the best checkpoint is chosen by them.
    sample_fn: called with the state at each evaluation; gives JSON values, an
      early look at what the model writes.
    measure_fn: called with the state at each evaluation; gives further numbers
      for the validation line.
    fingerprint: JSON-serialisable; what else the weights depend on: the files
      of the model that training starts from, LoRA options.
    reserve: bytes that the caller will write to the folder afterwards.
    name: the name of the run, for the bar and trackers.

  Raises:
    StoreError: the folder is in use, full, can't be written, or holds
      checkpoints of another run; before the first update.
    NonFiniteError: loss or gradient; names the update and its rows. What was
      saved before stays.
    Interrupted: SIGTERM or SIGINT came, and the run is saved; a SystemExit.
  """
  workdir = pathlib.Path(workdir)
  _check_examples(examples, options, 'examples')
  _check_examples(validation, options, 'validation')
  if not examples:
    raise ValueError('there are no examples to train on')
  room = checkpoints.check_folder(
    workdir / 'checkpoints', state, options.keep, reserve
  )
  with contextlib.ExitStack() as stack:
    if jax.process_index() == 0:
      stack.callback(files.Lock(workdir).release)
    store = checkpoints.Checkpoints(workdir / 'checkpoints', options.keep)
    stack.callback(store.close)
    first = store.latest or 0
    identity.check(
      workdir / 'fingerprint.json',
      {
        'version': identity.VERSION,
        'examples': identity.digest(examples),
        'validation': identity.digest(validation),
        'options': identity.describe_options(options, FREE),
        'optimizer': identity.describe_options(optimizer_options),
        'model': identity.describe_model(trainer.model(state)),
        'state': identity.shapes(state),
        'given': dict(fingerprint or {}),
      },
      started=bool(first),
    )
    saved = None
    like = checkpoints.abstract(state)
    if first:
      for x in jax.tree.leaves(state):
        x.delete()  # room for the one that is read
      state, saved = store.restore(first, like)
    plan = plan_lib.Plan(trainer, state, examples, options, first)
    for line in plan.describe(name, room) if options.progress else ():
      console.say(line)
    the_curve = curve.Curve(
      workdir,
      plan.curve(name, optimizer_options),
      step=first,
      progress=saved,
      write=jax.process_index() == 0,
    )
    stack.callback(the_curve.close)
    loop = _Loop(
      trainer=trainer,
      state=state,
      examples=examples,
      validation=validation,
      options=options,
      plan=plan,
      store=store,
      curve=the_curve,
      sample_fn=sample_fn,
      measure_fn=measure_fn,
      rate_of=lambda step: optimizer.learning_rate(
        optimizer_options, step, plan.steps
      ),
    )
    del state
    try:
      loop.run(first)
    except OSError as e:
      if e.errno not in (errno.ENOSPC, errno.EDQUOT):
        raise
      raise files.StoreError(
        f'the disk of {workdir} is full: free some, and the same command '
        'goes on from the last checkpoint'
      ) from e
    best = store.best or (plan.steps, None)
  directory = workdir / 'checkpoints'
  return FitResult(
    state=loop.state,
    steps=plan.steps,
    tokens=the_curve.tokens,
    seconds=the_curve.seconds,
    best_step=best[0],
    best_loss=best[1],
    load_best=lambda: checkpoints.load(directory, best[0], like),
  )


def _check_examples(examples, options, what):
  for example in examples:
    size = len(example.ids)
    if not 2 <= size <= options.max_length:
      raise ValueError(
        f'{what}: row {example.row} has {size:,} tokens; it must be 2 to '
        f'max_length={options.max_length:,}'
      )
    if not example.weights[1:].any():
      raise ValueError(
        f'{what}: row {example.row} has no token of weight above 0 to learn'
      )


@dataclasses.dataclass
class _Loop:
  """Updates, evaluations, checkpoints."""

  trainer: step_lib.Trainer
  state: step_lib.TrainState
  examples: Sequence[Example]
  validation: Sequence[Example]
  options: FitOptions
  plan: plan_lib.Plan
  store: checkpoints.Checkpoints
  curve: curve.Curve
  sample_fn: Callable | None
  measure_fn: Callable | None
  rate_of: Callable[[int], float]

  def run(self, first: int) -> None:
    """Makes the updates behind `first`."""
    number = len(self.examples)
    stream = batches.batches(
      self.examples,
      self.plan.layout,
      seed=self.options.seed,
      first=first,
      last=self.plan.steps,
    )
    flying = None  # dispatched, its metrics not fetched
    with (
      contextlib.closing(progress.ahead(stream, depth=2)) as ready,
      signals.Signals() as asked,
    ):
      for batch in ready:
        metrics = self._update(batch)
        if flying is not None:
          self._land(*flying)
        flying = batch, metrics
        stop = asked.received()
        if stop or self.options.saves(batch.step, number):
          # Only a state whose metrics were checked is evaluated or saved.
          self._land(*flying)
          flying = None
          self._save(batch.step, self.options.evaluates(batch.step, number))
        if stop:
          self.store.wait()
          message = (
            f'stopped by signal {stop} after update {batch.step:,} of '
            f'{self.plan.steps:,}, which is saved in '
            f'{self.store.directory}: the same command goes on from there'
          )
          console.say(message, aside=True)  # an exit status says nothing
          raise signals.Interrupted(stop, message)

  def _update(self, batch):
    """Dispatches one update; returns its metrics, still on the device."""
    rate = self.rate_of(batch.step - 1)
    if len(batch.micros) == 1:
      self.state, metrics = self.trainer.update(
        self.state, batch.micros[0], rate
      )
      return metrics
    total = self.trainer.gradient(self.state, batch.micros[0])
    for micro in batch.micros[1:]:
      total = self.trainer.add_gradient(self.state, micro, total)
    self.state, metrics = self.trainer.apply(self.state, total, rate)
    return metrics

  def _land(self, batch, metrics):
    """Fetches an update's metrics, checks and reports them."""
    values = {k: float(v) for k, v in jax.device_get(metrics).items()}
    for key in ('loss', 'grad_norm'):
      if not math.isfinite(values[key]):
        rows = ', '.join(map(str, batch.rows[:_SHOWN_ROWS]))
        more = len(batch.rows) - _SHOWN_ROWS
        raise NonFiniteError(
          f'{key} is {values[key]} at update {batch.step}, made with rows '
          f'{rows}{f" and {more} more" if more > 0 else ""}. Look at these '
          'rows, or lower the learning rate; checkpoints of earlier updates '
          f'are in {self.store.directory}'
        )
    self.curve.add(
      batch,
      self.rate_of(batch.step - 1),
      loss=values['loss'],
      weight=values['weight'],
      grad_norm=values['grad_norm'],
    )

  def _save(self, step, evaluate):
    loss = None
    if evaluate:
      values = {}
      if self.validation:
        loss = values['validation_loss'] = self._evaluate(step)
      if self.measure_fn:
        values.update(self.measure_fn(self.state))
      self.curve.evaluated(step, values)
    self.store.save(step, self.state, self.curve.progress(), loss)
    if evaluate and self.sample_fn:  # a look that fails costs no update
      self.curve.looked(step, self.sample_fn(self.state))
    self.curve.restart_clock()

  def _evaluate(self, step) -> float:
    """Weighted mean of -log p over the validation examples."""
    sums = jax.device_get(
      [
        self.trainer.evaluate(self.state, micro)
        for micro in self.plan.layout.lay_out(self.validation)
      ]
    )
    loss = float(
      sum(float(s['loss_sum']) for s in sums)
      / sum(float(s['weight_sum']) for s in sums)
    )
    if not math.isfinite(loss):
      raise NonFiniteError(
        f'validation_loss is {loss} after update {step}: lower the learning '
        'rate; checkpoints of earlier updates are in '
        f'{self.store.directory}'
      )
    return loss
