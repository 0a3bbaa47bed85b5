"""One decoder-only transformer for every supported family.

Letters of dimensions, in names and einsums:

  B  batch (rows)            T  tokens of a row, as queries
  S  tokens, as keys         D  hidden size
  F  width of the MLP        N  query heads
  G  key/value heads         K  size of a head
  V  vocabulary, padded      L  layers of a stack

Layers of equal kind are stacked along a leading L and run by one `lax.scan`, so
compile time doesn't grow with depth; a short pattern that repeats (Gemma's
sliding and full layers) is the body of that scan. `params.py` declares every
parameter once.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import nnx

from qaq_jax.models import embedding, layers, precision, sharding
from qaq_jax.models import params as params_lib
from qaq_jax.models.attention import choose as attention_lib
from qaq_jax.models.cache import Cache
from qaq_jax.models.config import ModelConfig
from qaq_jax.models.options import LoraOptions

PAD_LOGIT = -1e30  # of ids beyond the vocabulary: finite, exp gives 0


class Stack(nnx.Module):
  """The stacked parameters of some layers; see `params.layer_specs`."""

  def __init__(self, values: dict):
    for name, value in values.items():
      setattr(self, name, nnx.Param(value))


class Decoder(nnx.Module):
  """Token ids to hidden states, and hidden states to logits.

  Call it, and `logits`, under `jax.set_mesh` of the mesh it was made for.
  """

  # Set from `params.param_specs`, where the config has them.
  embedding: nnx.Param
  final_norm_scale: nnx.Param
  final_norm_bias: nnx.Param
  position_embedding: nnx.Param
  head: nnx.Param

  def __init__(
    self,
    config: ModelConfig,
    *,
    rngs: nnx.Rngs | None,
    dtype=jnp.float32,
    param_dtype=jnp.float32,
    rules: sharding.ShardingRules | None = None,
    mesh: jax.sharding.Mesh | None = None,
    attention: str = 'auto',
    lora: LoraOptions | None = None,
  ):
    """Makes random parameters, or abstract ones when `rngs` is None.

    Args:
      config: sizes and switches.
      rngs: its `params` stream draws the weights.
      dtype: the dtype of the computation; float32 also sets matmul precision
        'highest'.
      param_dtype: the dtype of the parameters.
      rules: logical to mesh axes, before `resolve`.
      mesh: where the parameters live; None: the default device, no mesh.
      attention: implementation, see `attention.choose`; the choice depends on
        the mesh's devices, which may be those of a topology.
      lora: low-rank adapters beside the kernels; None: none.
    """
    self.config = config
    self.dtype = jnp.dtype(dtype)
    case = attention_lib.case_of(config, dtype, mesh)
    self.attention = attention
    attention_lib.choose(attention, case)  # refused early
    rules = rules or sharding.ShardingRules()
    self.rules = rules.resolve(config, mesh) if mesh is not None else rules
    self.has_mesh = mesh is not None
    self.lora = lora
    self.quantization = ''  # a scheme, where `quantization.prepare` set one
    self._layer = layers.Layer(
      config,
      self.dtype,
      self.rules,
      attention,
      case,
      lora.scale if lora else 0.0,
    )
    specs = params_lib.param_specs(config, lora)
    abstract = {
      path: jax.ShapeDtypeStruct(
        spec.shape,
        param_dtype,
        sharding=sharding.named(mesh, self.rules.spec(*spec.axes)),
      )
      for path, spec in specs.items()
    }
    values = (
      abstract
      if rngs is None
      else params_lib.random_values(config, specs, abstract, rngs.params())
    )
    for path, value in values.items():
      if len(path) == 1:
        setattr(self, path[0], nnx.Param(value))
    self.stacks = nnx.List(
      [
        Stack({p[2]: v for p, v in values.items() if p[:2] == ('stacks', i)})
        for i in range(len(config.stacks))
      ]
    )

  def __call__(
    self,
    tokens_BT: jax.Array,
    positions_BT: jax.Array | None = None,
    segment_ids_BT: jax.Array | None = None,
    *,
    remat: bool = False,
    cache: Cache | None = None,
  ) -> jax.Array | tuple[jax.Array, Cache]:
    """Returns the hidden states after the final norm, [B, T, D] in `dtype`.

    With a cache: the hidden states and the cache with these tokens in it.

    Args:
      tokens_BT: int32 ids. Rows are padded on the right: padding comes after
        every real token, so causal masking alone keeps it harmless.
      positions_BT: int32 position of each token; None: 0, 1, 2, ... restarting
        where the segment id changes.
      segment_ids_BT: int32; tokens attend only within equal, contiguous ids.
      remat: recompute each layer in the backward pass instead of keeping it.
      cache: T > 1 fills an empty one with rows padded on the left (segment id
        0, their tokens have 1); T = 1 adds a token to each row.
    """
    self._check_call(tokens_BT)
    config, rules = self.config, self.rules
    rows = rules.spec('batch', None)
    tokens_BT = sharding.reshard(tokens_BT, rows)
    if segment_ids_BT is not None:
      segment_ids_BT = sharding.reshard(segment_ids_BT, rows)
    if cache is not None and tokens_BT.shape[1] > 1:
      cache = cache.padded(segment_ids_BT)
    if positions_BT is None and cache is not None and tokens_BT.shape[1] == 1:
      positions_BT = cache.positions_B1()
    elif positions_BT is None:
      positions_BT = embedding.positions(tokens_BT, segment_ids_BT)
    positions_BT = sharding.reshard(positions_BT, rows)
    x_BTD = self._embed(tokens_BT, positions_BT)
    kinds = {k for s in config.segments for k in s.pattern}
    tables = {
      r: r.tables(positions_BT, config.head_dim)
      for r in {k.rope for k in kinds}
      if r is not None
    }
    views: list = [None] * len(self.stacks)
    if cache is not None:
      views = cache.views()
    stacks = list(self.stacks)
    for segment in config.segments:
      number = len(segment.pattern)
      here, stacks = stacks[:number], stacks[number:]
      params = [nnx.to_pure_dict(nnx.state(stack)) for stack in here]

      def body(carry, params_index, pattern=segment.pattern):
        x_BTD, views = carry
        params, index = params_index
        views = list(views)
        for i, (kind, layer) in enumerate(zip(pattern, params, strict=True)):
          x_BTD, views[i] = self._layer(
            layer,
            kind,
            x_BTD,
            tables.get(kind.rope),
            segment_ids_BT,
            views[i],
            index,
          )
        return (x_BTD, views), None

      if remat:
        body = jax.checkpoint(body, prevent_cse=False)
      carry = x_BTD, views[:number]
      if segment.repeats == 1:
        carry, _ = body(carry, (jax.tree.map(lambda v: v[0], params), 0))
      else:
        index = jnp.arange(segment.repeats, dtype=jnp.int32)
        carry, _ = jax.lax.scan(body, carry, (params, index))
      x_BTD = carry[0]
      views = views[number:] + carry[1]
    final = {'scale': self.final_norm_scale[...]}
    if config.norm == 'layer':
      final['bias'] = self.final_norm_bias[...]
    x_BTD = self._layer.norm(x_BTD, **final)
    if cache is None:
      return x_BTD
    return x_BTD, cache.after(views, tokens_BT.shape[1])

  def logits(self, hidden: jax.Array) -> jax.Array:
    """Returns float32 logits [..., V] of hidden states [..., D].

    Accumulated in float32; ids beyond the vocabulary have PAD_LOGIT.
    """
    table_VD = self.embedding if self.config.tie_embeddings else self.head
    table_VD = self._layer.weight(table_VD[...], 'vocab', 'embed')
    logits = jnp.einsum(
      '...d,vd->...v',
      hidden.astype(self.dtype),
      table_VD,
      precision=precision.of(self.dtype),
      preferred_element_type=jnp.float32,
    )
    cap = self.config.final_soft_cap
    if cap is not None:
      logits = cap * jnp.tanh(logits / cap)
    if self.config.vocab_size < self.config.padded_vocab_size:
      ids = jax.lax.broadcasted_iota(
        jnp.int32,
        logits.shape,
        logits.ndim - 1,
        out_sharding=_sharding_of(logits),
      )
      logits = jnp.where(ids < self.config.vocab_size, logits, PAD_LOGIT)
    return logits

  def _check_call(self, tokens_BT):
    if self.has_mesh and sharding.current_mesh() is None:
      raise ValueError(
        'this decoder lives on a mesh: call it under jax.set_mesh(mesh)'
      )
    limit = self.config.learned_positions
    if limit and tokens_BT.shape[1] > limit:
      raise ValueError(
        f'rows of {tokens_BT.shape[1]} tokens, but the model has'
        f' {limit} learned positions: set max_length to at most {limit}'
      )

  def _embed(self, tokens_BT, positions_BT):
    table_VD = self._layer.weight(self.embedding[...], 'vocab', 'embed')
    x_BTD = embedding.lookup(table_VD, tokens_BT, self.rules)
    if self.config.embed_scale:
      x_BTD = x_BTD * jnp.asarray(
        math.sqrt(self.config.hidden_size), self.dtype
      )
    if self.config.learned_positions:
      table_PD = self._layer.weight(self.position_embedding[...], None, 'embed')
      x_BTD = x_BTD + embedding.lookup(
        table_PD, positions_BT, dataclasses.replace(self.rules, vocab=None)
      )
    return x_BTD


def _sharding_of(x):
  return None if sharding.current_mesh() is None else jax.typeof(x).sharding
