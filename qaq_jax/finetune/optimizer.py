"""Optimisers without a rate, and the rate of each update.

The rate is computed on the host and multiplies the update on the device, so
that runs of any length and rate share one compiled step.
"""

import functools
import math

import jax
import optax

from qaq_jax.finetune.options import OptimizerOptions
from qaq_jax.models import sharding


def learning_rate(options: OptimizerOptions, step: int, steps: int) -> float:
  """Returns the rate of update number `step` (from 0) of `steps`.

  Cosine, linear and constant with warm-up are transformers' schedules of these
  names: with a warm-up, the first update has rate 0.
  """
  warmup = math.ceil(options.warmup_ratio * steps)
  if step < warmup:
    return options.learning_rate * step / warmup
  if options.schedule == 'constant':
    return options.learning_rate
  decay = steps - warmup
  if options.schedule == 'wsd':
    decay = min(math.ceil(options.decay_ratio * steps), decay)
  left = max(steps - step, 0) / max(decay, 1)
  left = min(left, 1.0)
  if options.schedule == 'cosine':
    left = 0.5 * (1.0 + math.cos(math.pi * (1.0 - left)))
  factor = options.final_ratio + (1.0 - options.final_ratio) * left
  return options.learning_rate * factor


def make(options: OptimizerOptions) -> optax.GradientTransformation:
  """Returns the optimiser at rate 1: multiply its updates by the rate.

  Options that differ in rate and schedule alone give the same object, so that
  their steps share a compilation.
  """
  return _make(
    options.name,
    options.weight_decay,
    options.b1,
    options.b2,
    options.eps,
    options.clip,
  )


@functools.cache
def _make(name, weight_decay, b1, b2, eps, clip):
  if name == 'muon':
    rule = _by_compiler(
      optax.contrib.muon(
        1.0,
        weight_decay=weight_decay,
        adam_b1=b1,
        adam_b2=b2,
        eps=eps,
        consistent_rms=0.2,
        muon_weight_dimension_numbers=_matrices,
      )
    )
  else:
    rule = optax.adamw(
      1.0, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay, mask=_decayed
    )
  return optax.chain(optax.clip_by_global_norm(clip), rule) if clip else rule


def _by_compiler(rule):
  """Lets the compiler split an optimiser's own matrix products."""

  def update(gradient, state, params):
    if sharding.current_mesh() is None:
      return rule.update(gradient, state, params)
    out = jax.tree.map(lambda x: jax.typeof(x).sharding.spec, (gradient, state))
    return jax.sharding.auto_axes(rule.update, out_sharding=out)(
      gradient, state, params
    )

  return optax.GradientTransformation(rule.init, update)


def _decayed(params):
  """Which parameters decay: all but biases and the scales of norms."""
  return {name: not name.endswith(('_bias', '_scale')) for name in params}


def _matrices(params):
  """Which axes of the stacked kernels are rows and columns (Muon).

  Kernels are [layers, in..., out...]; only the output projection of attention
  has two input axes, and each expert is a matrix of its own. Embeddings, norms
  and biases go to Adam; adapters are matrices [layers, in..., rank] and
  [layers, rank, out...].
  """

  def numbers(name, value):
    inputs = 2 if name.endswith(('/o_kernel', '/o_lora_a')) else 1
    if not name.endswith(('_kernel', '_lora_a', '_lora_b')):
      return None
    first = 2 if '/experts_' in name else 1
    axes = tuple(range(first, value.ndim))
    return optax.contrib.MuonDimensionNumbers(axes[:inputs], axes[inputs:])

  return {name: numbers(name, value) for name, value in params.items()}
