"""One training step: loss, gradient, accumulation, optimiser update.

A batch is one update. It comes as micro-batches of fixed shape: dicts of
`tokens` int32 [B, T], `segment_ids` int32 [B, T] (1, 2, ... within a row, 0 is
padding, at the end) and `weights` float32 [B, T], of each token as a target.
Sums, not means, are accumulated over them, so that the update is the same
however the batch is cut up.

The functions are jitted at module level with a hashable static argument: two
Trainers of equal configuration share their compilations.
"""

import contextlib
import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from qaq_jax.finetune import loss as loss_lib
from qaq_jax.finetune.options import StepOptions
from qaq_jax.models import sharding
from qaq_jax.models.decoder import Decoder

_DEFAULTS = StepOptions()
MICRO_KEYS = ('tokens', 'segment_ids', 'weights')


class TrainState(NamedTuple):
  """What an update changes, and a checkpoint holds.

  Attributes:
    params: trained parameters by name ('stacks/0/q_kernel'), float32.
    opt_state: the state of the optimiser.
    step: int32, updates made.
  """

  params: dict[str, jax.Array]
  opt_state: Any
  step: jax.Array


class Accumulated(NamedTuple):
  """Sums over the targets of some micro-batches, in float32.

  Attributes:
    loss: the sum of weight * -log p, nats.
    weight: the sum of weights.
    gradient: the gradient of `loss`, by parameter name.
  """

  loss: jax.Array
  weight: jax.Array
  gradient: dict[str, jax.Array]


class Trainer:
  """All that stays the same during a run.

  Attributes:
    state: the initial TrainState. Its arrays are copies, so the model stays
      usable; the first update consumes them. Abstract if the model is.
  """

  def __init__(
    self,
    model: Decoder,
    optimizer: optax.GradientTransformation,
    options: StepOptions = _DEFAULTS,
  ):
    """Splits the model into what is trained and what is not.

    A model with adapters (`lora.add`) trains these alone; the rest is frozen,
    in the dtype of the computation, outside of the state.

    Args:
      model: the decoder to start from, on the mesh of the run.
      optimizer: the optimiser from `optimizer.make`.
      options: see StepOptions.
    """
    graphdef, state = nnx.split(model)
    values = {
      _name(path): variable.get_value()
      for path, variable in nnx.to_flat_state(state)
    }
    trained = {
      name: x
      for name, x in values.items()
      if model.lora is None or '_lora_' in name
    }
    self._program = _Program(
      graphdef, optimizer, options, tuple(sorted(trained))
    )
    self._rules = model.rules
    self.mesh = None
    if model.has_mesh:
      self.mesh = next(iter(values.values())).sharding.mesh
    abstract = any(isinstance(x, jax.ShapeDtypeStruct) for x in values.values())
    run = jax.eval_shape if abstract else lambda f, *args: f(*args)
    with self._on_mesh():
      self._frozen = run(
        lambda frozen: {k: x.astype(model.dtype) for k, x in frozen.items()},
        {k: x for k, x in values.items() if k not in trained},
      )
      self.state = run(functools.partial(_initial, self._program), trained)

  def compile(self, rows: int, length: int) -> dict[str, jax.stages.Compiled]:
    """Compiles the programs of an update; needs no arrays.

    Args:
      rows: the number of rows of a micro-batch; divides by the devices that
        rows are split over.
      length: tokens of a row.

    Returns:
      'gradient' (adds a micro-batch's gradient to the sum) and 'apply' (makes
      the update).
    """
    place = sharding.named(self.mesh, self._rules.spec('batch', None))
    micro = {
      key: jax.ShapeDtypeStruct(
        (rows, length),
        np.float32 if key == 'weights' else np.int32,
        sharding=place,
      )
      for key in MICRO_KEYS
    }
    arguments = self.state.params, self._frozen, micro
    with self._on_mesh():
      total = jax.eval_shape(
        functools.partial(_gradient, self._program), *arguments
      )
      gradient = _add_gradient.lower(self._program, total, *arguments)
      apply = _apply.lower(
        self._program,
        self.state,
        total,
        jax.ShapeDtypeStruct((), np.float32),
      )
      return {'gradient': gradient.compile(), 'apply': apply.compile()}

  def gradient(self, state: TrainState, micro: dict) -> Accumulated:
    """Returns loss, weight and gradient, summed over one micro-batch."""
    with self._on_mesh():
      return _gradient(
        self._program, state.params, self._frozen, self.put(micro)
      )

  def add_gradient(
    self, state: TrainState, micro: dict, accumulated: Accumulated
  ) -> Accumulated:
    """Returns the sums with one more micro-batch; consumes `accumulated`."""
    with self._on_mesh():
      return _add_gradient(
        self._program,
        accumulated,
        state.params,
        self._frozen,
        self.put(micro),
      )

  def apply(
    self, state: TrainState, accumulated: Accumulated, learning_rate: float
  ) -> tuple[TrainState, dict[str, jax.Array]]:
    """Makes the update of the accumulated mean gradient; consumes the state.

    Returns:
      The new state and metrics, on the device: `loss` (weighted mean, nats per
      token), `grad_norm` (of the mean gradient, before clipping) and `weight`.
    """
    with self._on_mesh():
      return _apply(
        self._program, state, accumulated, np.float32(learning_rate)
      )

  def update(
    self, state: TrainState, micro: dict, learning_rate: float
  ) -> tuple[TrainState, dict[str, jax.Array]]:
    """`gradient` and `apply` in one, for a batch of one micro-batch."""
    with self._on_mesh():
      return _update(
        self._program,
        state,
        self._frozen,
        self.put(micro),
        np.float32(learning_rate),
      )

  def evaluate(self, state: TrainState, micro: dict) -> dict[str, jax.Array]:
    """Returns `loss_sum` (nats) and `weight_sum` of one micro-batch."""
    with self._on_mesh():
      return _evaluate(
        self._program, state.params, self._frozen, self.put(micro)
      )

  def model(self, state: TrainState) -> Decoder:
    """Returns the trained decoder, adapters still separate.

    It shares the state's arrays, which the next update consumes.
    """
    return self._program.model(state.params, self._frozen)

  def put(self, micro: dict) -> dict[str, jax.Array]:
    """Places a micro-batch, its rows split over the mesh.

    Raises:
      ValueError: keys are missing, or the rows don't divide.
    """
    missing = [key for key in MICRO_KEYS if key not in micro]
    if missing:
      raise ValueError(
        f'micro-batch without {", ".join(missing)}: it has'
        f' {", ".join(sorted(micro))}'
      )
    micro = {key: micro[key] for key in MICRO_KEYS}
    if self.mesh is None:
      return micro
    spec = self._rules.spec('batch', None)
    place = sharding.named(self.mesh, spec)
    rows = micro['tokens'].shape[0]
    shards = self._rules.batch_shards(self.mesh)
    if rows % shards:
      raise ValueError(
        f'micro-batch of {rows} rows cannot be split over {shards} devices'
        f' (mesh axes {spec[0]}): use a multiple of {shards}'
      )
    return jax.device_put(micro, place)

  def _on_mesh(self):
    if self.mesh is None:
      return contextlib.nullcontext()
    return jax.set_mesh(self.mesh)


@dataclasses.dataclass(frozen=True)
class _Program:
  """The static argument of every jitted function."""

  graphdef: nnx.GraphDef
  optimizer: optax.GradientTransformation
  options: StepOptions
  trained: tuple[str, ...]

  def __hash__(self):
    return self._hash

  @functools.cached_property
  def _hash(self):  # jit asks for it at every call
    return hash((self.graphdef, self.optimizer, self.options, self.trained))

  def model(self, params, frozen) -> Decoder:
    flat = {_path(name): x for name, x in (params | frozen).items()}
    return nnx.merge(self.graphdef, nnx.from_flat_state(flat))

  def sums(self, params, frozen, micro):
    """Returns the sums of the loss and of the weights."""
    model = self.model(params, frozen)
    tokens_BT, segments_BT = micro['tokens'], micro['segment_ids']
    hidden_BTD = model(
      tokens_BT, segment_ids_BT=segments_BT, remat=self.options.remat
    )
    # A position predicts the token after it; the first of a segment has none
    # before it, whatever its weight says.
    same_BT = segments_BT[:, 1:] == segments_BT[:, :-1]
    weights_BT = micro['weights'].astype(jnp.float32)[:, 1:]
    weights_BT = _next(jnp.where(same_BT, weights_BT, 0.0))
    name = 'embedding' if model.config.tie_embeddings else 'head'
    head = loss_lib.head_of(
      model, rows=self.options.head_rows, trained=name in self.trained
    )
    loss = loss_lib.loss_sum(
      head,
      (params | frozen)[name],
      hidden_BTD,
      _next(tokens_BT[:, 1:]),
      weights_BT,
    )
    return loss, jnp.sum(weights_BT)


def _next(x_BT):
  return jnp.pad(x_BT, ((0, 0), (0, 1)))


def _name(path) -> str:
  return '/'.join(map(str, path))


def _path(name: str) -> tuple:
  return tuple(int(p) if p.isdigit() else p for p in name.split('/'))


@functools.partial(jax.jit, static_argnums=0)
def _initial(program, values):
  params = {name: x.astype(jnp.float32) for name, x in values.items()}
  state = TrainState(
    params, program.optimizer.init(params), jnp.zeros((), jnp.int32)
  )
  # Constants begin without a sharding; given theirs here, the second update
  # isn't compiled anew.
  return jax.tree.map(_placed, state)


def _placed(x):
  if sharding.current_mesh() is None:
    return x
  spec = tuple(jax.typeof(x).sharding.spec)
  return sharding.reshard(x, jax.P(*spec, *[None] * (x.ndim - len(spec))))


def _summed(program, params, frozen, micro) -> Accumulated:
  (loss, weight), gradient = jax.value_and_grad(
    lambda params: program.sums(params, frozen, micro), has_aux=True
  )(params)
  return Accumulated(loss, weight, gradient)


@functools.partial(jax.jit, static_argnums=0)
def _gradient(program, params, frozen, micro):
  return _summed(program, params, frozen, micro)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def _add_gradient(program, accumulated, params, frozen, micro):
  return jax.tree.map(
    jnp.add, accumulated, _summed(program, params, frozen, micro)
  )


def _applied(program, state, accumulated, learning_rate):
  loss, weight, gradient = accumulated
  gradient = jax.tree.map(lambda g: g / weight, gradient)
  updates, opt_state = program.optimizer.update(
    gradient, state.opt_state, state.params
  )
  params = jax.tree.map(
    lambda p, u: p + learning_rate * u, state.params, updates
  )
  metrics = {
    'loss': loss / weight,
    'grad_norm': optax.global_norm(gradient),
    'weight': weight,
  }
  return TrainState(params, opt_state, state.step + 1), metrics


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def _apply(program, state, accumulated, learning_rate):
  return _applied(program, state, accumulated, learning_rate)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def _update(program, state, frozen, micro, learning_rate):
  accumulated = _summed(program, state.params, frozen, micro)
  return _applied(program, state, accumulated, learning_rate)


@functools.partial(jax.jit, static_argnums=0)
def _evaluate(program, params, frozen, micro):
  loss, weight = program.sums(params, frozen, micro)
  return {'loss_sum': loss, 'weight_sum': weight}
