"""The training loop: batches in, parameters and a learning curve out."""

import dataclasses
import json
import math
import os
import pathlib
import time
from collections.abc import Callable, Sequence

import jax
import numpy as np
from absl import logging
from flax import nnx

from qaq_jax.finetune import batches as batches_lib
from qaq_jax.finetune import checkpoints, step


@dataclasses.dataclass(frozen=True)
class LoopOptions:
  """Batches, logging, evaluation.

  Attributes:
    tokens_per_batch: rows times padded length, at most.
    num_buckets: shapes to compile.
    seed: of the order of the batches.
    log_every: updates between lines of the learning curve.
    eval_every: updates between evaluations; a checkpoint is kept then too.
  """

  tokens_per_batch: int = 4096
  num_buckets: int = 12
  seed: int = 0
  log_every: int = 20
  eval_every: int = 200


def fit(
    model: nnx.Module,
    examples: Sequence[batches_lib.Example],
    workdir: str | os.PathLike,
    *,
    options: LoopOptions,
    optimizer_options: step.OptimizerOptions,
    evaluate: Callable[[nnx.Module], dict] | None = None,
) -> nnx.Module:
  """Trains `model` until `optimizer_options.steps`, resuming when it can.

  Writes WORKDIR/curve.jsonl (loss, tokens, seconds; and what `evaluate`
  returns) and WORKDIR/checkpoints. A run that was killed goes on from its
  last checkpoint with the batches it would have had.

  Args:
    model: a Decoder with float32 parameters.
    examples: the training sequences.
    workdir: made when missing.
    options: see LoopOptions.
    optimizer_options: see OptimizerOptions.
    evaluate: called with the model; returns numbers for the curve.

  Returns:
    The trained model.

  Raises:
    FloatingPointError: the loss is not finite; names the step.
  """
  workdir = pathlib.Path(workdir)
  workdir.mkdir(parents=True, exist_ok=True)
  graphdef, params = nnx.split(model)
  optimizer = step.make_optimizer(optimizer_options)
  state = {
      'params': params,
      'opt_state': optimizer.init(params),
      'progress': {
          'step': np.int64(0), 'tokens': np.int64(0), 'seconds': np.float64(0)
      },
  }
  state = checkpoints.restore_latest(workdir / 'checkpoints', state)
  params, opt_state = state['params'], state['opt_state']
  progress = {k: v.item() for k, v in state['progress'].items()}
  first = progress['step']
  buckets = batches_lib.make_buckets(
      examples,
      tokens_per_batch=options.tokens_per_batch,
      num_buckets=options.num_buckets,
  )
  logging.info(
      '%d examples, shapes %s, %d batches per epoch, from step %d of %d',
      len(examples),
      list(zip(buckets.rows, buckets.lengths, strict=True)),
      buckets.batches_per_epoch,
      first,
      optimizer_options.steps,
  )
  curve = (workdir / 'curve.jsonl').open('a', encoding='utf-8')
  stream = batches_lib.batches(
      examples, buckets, seed=options.seed, start=first
  )
  started = time.monotonic() - progress['seconds']
  pending = []  # losses still on the device: read at the next log line

  def write(**values):
    progress['seconds'] = time.monotonic() - started
    line = dict(progress, **values)
    curve.write(json.dumps(line) + '\n')
    curve.flush()
    logging.info('%s', line)

  for number in range(first, optimizer_options.steps):
    batch = next(stream)
    progress['tokens'] += int(np.count_nonzero(batch['weights']))
    params, opt_state, metrics = step.train_step(
        graphdef, optimizer, params, opt_state, batch
    )
    pending.append(metrics)
    progress['step'] = number + 1
    last = progress['step'] == optimizer_options.steps
    if last or progress['step'] % options.log_every == 0:
      means = {
          name: float(np.mean([m[name] for m in jax.device_get(pending)]))
          for name in pending[0]
      }
      pending = []
      if not math.isfinite(means['loss']):
        raise FloatingPointError(
            f'loss {means["loss"]} in the {options.log_every} updates before'
            f' step {progress["step"]}: lower the learning rate; checkpoints'
            f' of earlier steps are in {workdir / "checkpoints"}'
        )
      write(**means)
    if last or progress['step'] % options.eval_every == 0:
      if evaluate:
        write(**evaluate(nnx.merge(graphdef, params)))
      checkpoints.save(
          workdir / 'checkpoints',
          {
              'params': params,
              'opt_state': opt_state,
              'progress': jax.tree.map(np.asarray, progress),
          },
          progress['step'],
      )
  curve.close()
  return nnx.merge(graphdef, params)
