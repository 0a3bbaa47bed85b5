"""Every parameter of the decoder, declared once.

Abstract trees, shardings, random weights and checkpoint reading all derive from
these declarations. Letters of dimensions: see `decoder.py`.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp

from qaq_jax.models.config import ModelConfig
from qaq_jax.models.options import LoraOptions


@dataclasses.dataclass(frozen=True)
class ParamSpec:
  """Declares one parameter.

  Attributes:
    shape: its shape.
    axes: logical dimension (a field of ShardingRules) or None, per axis.
    init: standard deviation of a normal, or the constants 'ones', 'zeros'.
  """

  shape: tuple[int, ...]
  axes: tuple[str | None, ...]
  init: float | str

  def stacked(self, number: int) -> 'ParamSpec':
    """Returns the spec of `number` such parameters stacked in front."""
    return ParamSpec((number, *self.shape), (None, *self.axes), self.init)


def layer_specs(config: ModelConfig) -> dict[str, ParamSpec]:
  """Returns the parameters of one layer by name."""
  d, f = config.hidden_size, config.intermediate_size
  n, g, k = config.num_heads, config.num_kv_heads, config.head_dim
  deep = (2 * config.num_layers) ** -0.5  # keeps the residual stream's scale
  unit = 'zeros' if config.norm == 'rms_plus_one' else 'ones'
  specs = {
    'q_kernel': ParamSpec((d, n, k), ('embed', 'heads', None), d**-0.5),
    'k_kernel': ParamSpec((d, g, k), ('embed', 'kv_heads', None), d**-0.5),
    'v_kernel': ParamSpec((d, g, k), ('embed', 'kv_heads', None), d**-0.5),
    'o_kernel': ParamSpec(
      (n, k, d), ('heads', None, 'embed'), (n * k) ** -0.5 * deep
    ),
  }
  if config.num_experts:
    specs |= _expert_specs(config, deep)
  else:
    specs['up_kernel'] = ParamSpec((d, f), ('embed', 'mlp'), d**-0.5)
    specs['down_kernel'] = ParamSpec((f, d), ('mlp', 'embed'), f**-0.5 * deep)
    if config.gated_mlp:
      specs['gate_kernel'] = ParamSpec((d, f), ('embed', 'mlp'), d**-0.5)
  if config.qkv_bias:
    specs['q_bias'] = ParamSpec((n, k), ('heads', None), 'zeros')
    specs['k_bias'] = ParamSpec((g, k), ('kv_heads', None), 'zeros')
    specs['v_bias'] = ParamSpec((g, k), ('kv_heads', None), 'zeros')
  if config.out_bias:
    specs['o_bias'] = ParamSpec((d,), (None,), 'zeros')
  if config.mlp_bias:
    specs['up_bias'] = ParamSpec((f,), ('mlp',), 'zeros')
    specs['down_bias'] = ParamSpec((d,), (None,), 'zeros')
    if config.gated_mlp:
      specs['gate_bias'] = ParamSpec((f,), ('mlp',), 'zeros')
  if config.qk_norm:
    specs['q_norm_scale'] = ParamSpec((k,), (None,), unit)
    specs['k_norm_scale'] = ParamSpec((k,), (None,), unit)
  norms = ['attn_norm', 'mlp_norm']
  if config.post_norms:
    norms += ['post_attn_norm', 'post_mlp_norm']
  for norm in norms:
    specs[f'{norm}_scale'] = ParamSpec((d,), (None,), unit)
    if config.norm == 'layer':
      specs[f'{norm}_bias'] = ParamSpec((d,), (None,), 'zeros')
  return specs


def _expert_specs(config, deep):
  """The router and the experts' kernels, which are stacked over E."""
  d, f, e = config.hidden_size, config.intermediate_size, config.num_experts
  inwards = ParamSpec((e, d, f), ('experts', 'embed', 'expert_mlp'), d**-0.5)
  return {
    'router_kernel': ParamSpec((d, e), ('embed', None), d**-0.5),
    'experts_gate_kernel': inwards,
    'experts_up_kernel': inwards,
    'experts_down_kernel': ParamSpec(
      (e, f, d), ('experts', 'expert_mlp', 'embed'), f**-0.5 * deep
    ),
  }


def is_expert(name: str) -> bool:
  """Whether a parameter is stacked over experts."""
  return name.startswith('experts_')


def lora_specs(config: ModelConfig, lora: LoraOptions) -> dict[str, ParamSpec]:
  """Returns the adapters of one layer by name.

  `{target}_lora_a` [in..., R] is random with the deviation of PEFT's uniform
  draw, `{target}_lora_b` [R, out...] zero: the model begins unchanged. Each is
  split as the kernel's own axes are. Routers and experts get none.

  Raises:
    ValueError: targets that the family doesn't have.
  """
  layer = layer_specs(config)
  suffix = '_kernel'
  known = [
    name[: -len(suffix)]
    for name in layer
    if name.endswith(suffix) and name != 'router_kernel' and not is_expert(name)
  ]
  unknown = [target for target in lora.targets if target not in known]
  if unknown:
    raise ValueError(
      f'lora targets {list(lora.targets)}: {unknown}; a {config.family}'
      f' layer has {", ".join(known)}'
    )
  specs = {}
  for target in lora.targets or known:
    kernel = layer[target + suffix]
    inputs = 2 if target == 'o' else 1  # heads and their size
    size = math.prod(kernel.shape[:inputs])
    specs[f'{target}_lora_a'] = ParamSpec(
      (*kernel.shape[:inputs], lora.rank),
      (*kernel.axes[:inputs], None),
      (3 * size) ** -0.5,
    )
    specs[f'{target}_lora_b'] = ParamSpec(
      (lora.rank, *kernel.shape[inputs:]),
      (None, *kernel.axes[inputs:]),
      'zeros',
    )
  return specs


def param_specs(
  config: ModelConfig, lora: LoraOptions | None = None
) -> dict[tuple, ParamSpec]:
  """Returns every parameter of the model by its path in the Decoder.

  Stack i holds the layers `config.stacks[i]`: ('stacks', i, name).
  """
  d, v = config.hidden_size, config.padded_vocab_size
  unit = 'zeros' if config.norm == 'rms_plus_one' else 'ones'
  specs: dict[tuple, ParamSpec] = {
    ('embedding',): ParamSpec((v, d), ('vocab', 'embed'), 0.02),
    ('final_norm_scale',): ParamSpec((d,), (None,), unit),
  }
  if config.norm == 'layer':
    specs['final_norm_bias',] = ParamSpec((d,), (None,), 'zeros')
  if config.learned_positions:
    specs['position_embedding',] = ParamSpec(
      (config.learned_positions, d), (None, 'embed'), 0.02
    )
  if not config.tie_embeddings:
    specs['head',] = ParamSpec((v, d), ('vocab', 'embed'), 0.02)
  layer = layer_specs(config)
  if lora is not None:
    layer |= lora_specs(config, lora)
  for i, layers in enumerate(config.stacks):
    for name, spec in layer.items():
      specs['stacks', i, name] = spec.stacked(len(layers))
  return specs


def random_values(config, specs, abstract, key):
  """Draws each parameter where it will live."""
  values = {}
  for i, (path, spec) in enumerate(specs.items()):
    like = abstract[path]
    # Rows of padding are zero: they never count.
    rows = config.vocab_size if path in (('embedding',), ('head',)) else None
    draw = _drawer(spec.shape, spec.init, like.dtype, like.sharding, rows)
    values[path] = draw(jax.random.fold_in(key, i))
  return values


@functools.lru_cache(maxsize=64)
def _drawer(shape, init, dtype, placed, rows):
  """Returns key -> one parameter; equal ones share their compilation."""

  def draw(key):
    if init in ('ones', 'zeros'):
      return jnp.full(shape, init == 'ones', dtype)
    x = jax.random.normal(key, shape, jnp.float32) * init
    if rows is not None:
      x = jnp.where(jnp.arange(shape[0])[:, None] < rows, x, 0)
    return x.astype(dtype)

  return jax.jit(draw, out_shardings=placed)
