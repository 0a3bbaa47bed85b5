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

from qaq_jax.models import attention as attention_lib
from qaq_jax.models import embedding, sharding
from qaq_jax.models import params as params_lib
from qaq_jax.models.config import LayerKind, ModelConfig
from qaq_jax.models.rope import rotate

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
  ):
    """Makes random parameters, or abstract ones when `rngs` is None.

    Args:
      config: sizes and switches.
      rngs: its `params` stream draws the weights.
      dtype: of the computation; float32 also sets matmul precision 'highest'.
      param_dtype: of the parameters.
      rules: logical to mesh axes, before `resolve`.
      mesh: where the parameters live; None: the default device, no mesh.
      attention: implementation, see `attention.choose`.
    """
    self.config = config
    self.dtype = jnp.dtype(dtype)
    self.attention = attention
    attention_lib.choose(attention)
    rules = rules or sharding.ShardingRules()
    self.rules = rules.resolve(config, mesh) if mesh is not None else rules
    self.has_mesh = mesh is not None
    specs = params_lib.param_specs(config)
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
    self.stacks = nnx.List([
        Stack({p[2]: v for p, v in values.items() if p[:2] == ('stacks', i)})
        for i in range(len(config.stacks))
    ])

  def __call__(
      self,
      tokens_BT: jax.Array,
      positions_BT: jax.Array | None = None,
      segment_ids_BT: jax.Array | None = None,
      *,
      remat: bool = False,
  ) -> jax.Array:
    """Returns the hidden states after the final norm, [B, T, D] in `dtype`.

    Args:
      tokens_BT: int32 ids. Rows are padded on the right: padding comes after
        every real token, so causal masking alone keeps it harmless.
      positions_BT: int32 position of each token; None: 0, 1, 2, ... restarting
        where the segment id changes.
      segment_ids_BT: int32; tokens attend only within equal, contiguous ids.
      remat: recompute each layer in the backward pass instead of keeping it.
    """
    self._check_call(tokens_BT)
    config, rules = self.config, self.rules
    rows = rules.spec('batch', None)
    tokens_BT = sharding.reshard(tokens_BT, rows)
    if segment_ids_BT is not None:
      segment_ids_BT = sharding.reshard(segment_ids_BT, rows)
    if positions_BT is None:
      positions_BT = embedding.positions(tokens_BT, segment_ids_BT)
    positions_BT = sharding.reshard(positions_BT, rows)
    x_BTD = self._embed(tokens_BT, positions_BT)
    kinds = {k for s in config.segments for k in s.pattern}
    tables = {
        r: r.tables(positions_BT, config.head_dim)
        for r in {k.rope for k in kinds} - {None}
    }
    stacks = iter(self.stacks)
    for segment in config.segments:
      params = [
          nnx.to_pure_dict(nnx.state(next(stacks))) for _ in segment.pattern
      ]

      def body(x_BTD, params, pattern=segment.pattern):
        for kind, layer in zip(pattern, params, strict=True):
          x_BTD = self._layer(
              layer, kind, x_BTD, tables.get(kind.rope), segment_ids_BT
          )
        return x_BTD, None

      if remat:
        body = jax.checkpoint(body, prevent_cse=False)
      x_BTD, _ = jax.lax.scan(body, x_BTD, params)
    final = {'scale': self.final_norm_scale[...]}
    if config.norm == 'layer':
      final['bias'] = self.final_norm_bias[...]
    return self._norm(x_BTD, **final)

  def logits(self, hidden: jax.Array) -> jax.Array:
    """Returns float32 logits [..., V] of hidden states [..., D].

    Accumulated in float32; ids beyond the vocabulary have PAD_LOGIT.
    """
    table_VD = self.embedding if self.config.tie_embeddings else self.head
    table_VD = self._weight(table_VD[...], 'vocab', 'embed')
    logits = jnp.einsum(
        '...d,vd->...v',
        hidden.astype(self.dtype),
        table_VD,
        precision=self._precision,
        preferred_element_type=jnp.float32,
    )
    cap = self.config.final_soft_cap
    if cap is not None:
      logits = cap * jnp.tanh(logits / cap)
    if self.config.vocab_size < self.config.padded_vocab_size:
      ids = jax.lax.broadcasted_iota(
          jnp.int32, logits.shape, logits.ndim - 1,
          out_sharding=_sharding_of(logits),
      )
      logits = jnp.where(ids < self.config.vocab_size, logits, PAD_LOGIT)
    return logits

  @property
  def _precision(self):
    # Otherwise TPU and GPU would multiply float32 in bfloat16 or TF32.
    highest = self.dtype == jnp.float32
    return jax.lax.Precision.HIGHEST if highest else None

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

  def _weight(self, value, *axes):
    """Gathers a parameter over fsdp, in the dtype of the computation."""
    return sharding.reshard(
        value.astype(self.dtype), self.rules.gathered(*axes)
    )

  def _out(self, *axes):
    meshed = sharding.current_mesh() is not None
    return self.rules.spec(*axes) if meshed else None

  def _einsum(self, expression, x, w, *out_axes):
    return jnp.einsum(
        expression,
        x,
        w,
        precision=self._precision,
        out_sharding=self._out(*out_axes),
    )

  def _embed(self, tokens_BT, positions_BT):
    table_VD = self._weight(self.embedding[...], 'vocab', 'embed')
    x_BTD = embedding.lookup(table_VD, tokens_BT, self.rules)
    if self.config.embed_scale:
      x_BTD = x_BTD * jnp.asarray(
          math.sqrt(self.config.hidden_size), self.dtype
      )
    if self.config.learned_positions:
      table_PD = self._weight(self.position_embedding[...], None, 'embed')
      x_BTD = x_BTD + embedding.lookup(
          table_PD, positions_BT, dataclasses.replace(self.rules, vocab=None)
      )
    return x_BTD

  def _norm(self, x, scale, bias=None):
    """RMS or layer norm over the last axis, computed in float32."""
    config = self.config
    x = x.astype(jnp.float32)
    if config.norm == 'layer':
      x = x - jnp.mean(x, axis=-1, keepdims=True)
    x = x * jax.lax.rsqrt(
        jnp.mean(x * x, axis=-1, keepdims=True) + config.norm_eps
    )
    scale = scale.astype(jnp.float32)
    if config.norm == 'rms_plus_one':
      scale = scale + 1.0
    x = x * scale
    if bias is not None:
      x = x + bias.astype(jnp.float32)
    return x.astype(self.dtype)

  def _layer(self, p, kind: LayerKind, x_BTD, tables, segment_ids_BT):
    def norm(name, x):
      if f'{name}_scale' not in p:
        return x
      return self._norm(x, p[f'{name}_scale'], p.get(f'{name}_bias'))

    h_BTD = self._attend(p, kind, norm('attn_norm', x_BTD), tables, norm,
                         segment_ids_BT)
    x_BTD = x_BTD + norm('post_attn_norm', h_BTD)
    h_BTD = self._mlp(p, norm('mlp_norm', x_BTD))
    return x_BTD + norm('post_mlp_norm', h_BTD)

  def _attend(self, p, kind, x_BTD, tables, norm, segment_ids_BT):
    config = self.config

    def project(name, heads):
      kernel = self._weight(p[f'{name}_kernel'], 'embed', heads, None)
      y = self._einsum('btd,dnk->btnk', x_BTD, kernel, 'batch', None, heads,
                       None)
      if f'{name}_bias' in p:
        y = y + self._weight(p[f'{name}_bias'], heads, None)
      return norm(f'{name}_norm', y)

    q_BTNK = project('q', 'heads')
    k_BTGK = project('k', 'kv_heads')
    v_BTGK = project('v', 'kv_heads')
    if tables is not None:
      q_BTNK, k_BTGK = rotate(q_BTNK, *tables), rotate(k_BTGK, *tables)
    y_BTNK = attention_lib.attention(
        q_BTNK,
        k_BTGK,
        v_BTGK,
        segment_ids_BT,
        scale=config.query_scale,
        window=kind.window,
        soft_cap=config.attn_soft_cap,
        rules=self.rules,
        implementation=self.attention,
    )
    kernel = self._weight(p['o_kernel'], 'heads', None, 'embed')
    # Not einsum: it would contract K before N and transpose both for that.
    y_BTD = jax.lax.dot_general(
        y_BTNK,
        kernel,
        (((2, 3), (0, 1)), ((), ())),
        precision=self._precision,
        out_sharding=self._out('batch', None, None),
    )
    if 'o_bias' in p:
      y_BTD = y_BTD + p['o_bias'].astype(self.dtype)
    return y_BTD

  def _mlp(self, p, x_BTD):
    def project(name):
      kernel = self._weight(p[f'{name}_kernel'], 'embed', 'mlp')
      y = self._einsum('btd,df->btf', x_BTD, kernel, 'batch', None, 'mlp')
      if f'{name}_bias' in p:
        y = y + self._weight(p[f'{name}_bias'], 'mlp')
      return y

    activation = {
        'silu': jax.nn.silu,
        'gelu_tanh': lambda x: jax.nn.gelu(x, approximate=True),
        'gelu': lambda x: jax.nn.gelu(x, approximate=False),
    }[self.config.activation]
    if self.config.gated_mlp:
      h_BTF = activation(project('gate')) * project('up')
    else:
      h_BTF = activation(project('up'))
    kernel = self._weight(p['down_kernel'], 'mlp', 'embed')
    y_BTD = self._einsum('btf,fd->btd', h_BTF, kernel, 'batch', None, None)
    if 'down_bias' in p:
      y_BTD = y_BTD + p['down_bias'].astype(self.dtype)
    return y_BTD


def _sharding_of(x):
  return None if sharding.current_mesh() is None else jax.typeof(x).sharding
