"""The arithmetic of one layer: norms, attention, MLP.

Letters of dimensions: see `decoder.py`.
"""

import dataclasses

import jax
import jax.numpy as jnp

from qaq_jax.models import experts, precision, quantized, sharding
from qaq_jax.models.attention import choose as attention_lib
from qaq_jax.models.cache import StackCache
from qaq_jax.models.config import LayerKind, ModelConfig
from qaq_jax.models.rope import rotate


@dataclasses.dataclass(frozen=True)
class Layer:
  """How every layer of a model computes; its parameters come with the call.

  Attributes:
    config: sizes and switches.
    dtype: the dtype of the computation; float32 also sets matmul precision
      'highest'.
    rules: logical to mesh axes, resolved.
    attention: implementation, see `attention.choose`.
    case: what it must support, packed rows apart.
    lora_scale: multiplies what low-rank adapters add.
    dynamic: int8 kernels are multiplied with activations in int8.
  """

  config: ModelConfig
  dtype: jnp.dtype
  rules: sharding.ShardingRules
  attention: str
  case: attention_lib.Case
  lora_scale: float = 0.0
  dynamic: bool = False

  def weight(self, value, *axes):
    """Gathers a parameter over fsdp, in the dtype of the computation.

    An int8 kernel is gathered as it is, and stays so for products of int8.
    """
    if value.dtype == jnp.int8:
      value = sharding.reshard(value, self.rules.gathered(*axes))
      return value if self.dynamic else value.astype(self.dtype)
    return sharding.reshard(
      value.astype(self.dtype), self.rules.gathered(*axes)
    )

  def einsum(self, expression, x, w, *out_axes):
    """Multiplies, the result split as `out_axes` say where a mesh is set."""
    if w.dtype == jnp.int8:  # these expressions sum over the last axis of x
      axes = (x.ndim - 1,), (0,)
      return self._int8_product(x, w, axes, self._out(*out_axes))
    return jnp.einsum(
      expression,
      x,
      w,
      precision=precision.of(self.dtype),
      out_sharding=self._out(*out_axes),
    )

  def _int8_product(self, x, w, axes, out):
    """Products of int8 in int32, times the scale of each token."""
    x, scale_BT = quantized.by_token(x, axes[0])
    y = jax.lax.dot_general(
      x,
      w,
      (axes, ((), ())),
      preferred_element_type=jnp.int32,
      out_sharding=out,
    )
    scale = scale_BT.reshape(*scale_BT.shape, *[1] * (y.ndim - 2))
    return (y.astype(jnp.float32) * scale).astype(self.dtype)

  def rescaled(self, y, p, name, *out_axes):
    """Multiplies by the output channels' scales, where a kernel has some."""
    if f'{name}_kernel_scale' not in p:
      return y
    scale = sharding.reshard(
      p[f'{name}_kernel_scale'], self.rules.gathered(*out_axes)
    )
    return (y.astype(jnp.float32) * scale).astype(self.dtype)

  def _out(self, *axes):
    meshed = sharding.current_mesh() is not None
    return self.rules.spec(*axes) if meshed else None

  def adapted(self, y, p, name, x, in_axes, out_axes):
    """Adds the low-rank term of projection `name`, where it has one."""
    if f'{name}_lora_a' not in p:
      return y
    a = self.weight(p[f'{name}_lora_a'], *in_axes, None)
    b = self.weight(p[f'{name}_lora_b'], None, *out_axes)
    inner, last = len(in_axes), x.ndim
    low_BTR = self._contract(x, a, range(last - inner, last), None)
    z = self._contract(low_BTR, b, (2,), *out_axes)
    return y + z * jnp.asarray(self.lora_scale, z.dtype)

  def _contract(self, x, w, axes, *out_axes):
    """Contracts axes of x with the first ones of w, in this order.

    Not einsum: it would contract K before N and transpose both for that.
    """
    out = ('batch', None, *(None if a == 'embed' else a for a in out_axes))
    if w.dtype == jnp.int8:
      axes = tuple(axes), tuple(range(len(axes)))
      return self._int8_product(x, w, axes, self._out(*out))
    return jax.lax.dot_general(
      x,
      w,
      ((tuple(axes), tuple(range(len(axes)))), ((), ())),
      precision=precision.of(self.dtype),
      out_sharding=self._out(*out),
    )

  def norm(self, x, scale, bias=None):
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

  def __call__(
    self,
    p,
    kind: LayerKind,
    x_BTD,
    tables,
    segment_ids_BT,
    cache: StackCache | None = None,
    index: jax.Array | int = 0,
  ):
    """Returns the residual stream [B, T, D] after one layer, and its cache.

    Args:
      p: the layer's parameters by name, see `params.layer_specs`.
      kind: its window and rotary embedding.
      x_BTD: the residual stream before it.
      tables: (cos, sin) of its rotary embedding, or None.
      segment_ids_BT: tokens attend within equal ids; None: one segment.
      cache: gets the new keys and values; one new token attends to all of it,
        several attend to each other alone.
      index: which layer of the cache's stack this is.
    """

    def norm(name, x):
      if f'{name}_scale' not in p:
        return x
      return self.norm(x, p[f'{name}_scale'], p.get(f'{name}_bias'))

    h_BTD, cache = self._attend(
      p,
      kind,
      norm('attn_norm', x_BTD),
      tables,
      norm,
      segment_ids_BT,
      cache,
      index,
    )
    x_BTD = x_BTD + norm('post_attn_norm', h_BTD)
    h_BTD = self._mlp(p, norm('mlp_norm', x_BTD))
    return x_BTD + norm('post_mlp_norm', h_BTD), cache

  def _attend(self, p, kind, x_BTD, tables, norm, segment_ids_BT, cache, index):
    config = self.config

    def project(name, heads):
      kernel = self.weight(p[f'{name}_kernel'], 'embed', heads, None)
      y = self.einsum(
        'btd,dnk->btnk', x_BTD, kernel, 'batch', None, heads, None
      )
      y = self.rescaled(y, p, name, heads, None)
      y = self.adapted(y, p, name, x_BTD, ('embed',), (heads, None))
      if f'{name}_bias' in p:
        y = y + self.weight(p[f'{name}_bias'], heads, None)
      return norm(f'{name}_norm', y)

    q_BTNK = project('q', 'heads')
    k_BTGK = project('k', 'kv_heads')
    v_BTGK = project('v', 'kv_heads')
    if tables is not None:
      q_BTNK, k_BTGK = rotate(q_BTNK, *tables), rotate(k_BTGK, *tables)
    options = {
      'scale': config.query_scale,
      'window': kind.window,
      'soft_cap': config.attn_soft_cap,
      'rules': self.rules,
    }
    if cache is not None:
      cache = cache.write(index, k_BTGK, v_BTGK)
    if cache is not None and x_BTD.shape[1] == 1:
      k_BGSK, v_BGSK = cache.read(index)
      y_BTNK = attention_lib.cached_attention(
        q_BTNK, k_BGSK, v_BGSK, cache.start_B, cache.slot, **options
      )
    else:
      case = dataclasses.replace(self.case, segments=segment_ids_BT is not None)
      y_BTNK = attention_lib.attention(
        q_BTNK,
        k_BTGK,
        v_BTGK,
        segment_ids_BT,
        **options,
        implementation=attention_lib.choose(self.attention, case),
      )
    kernel = self.weight(p['o_kernel'], 'heads', None, 'embed')
    y_BTD = self._contract(y_BTNK, kernel, (2, 3), 'embed')
    y_BTD = self.rescaled(y_BTD, p, 'o', 'embed')
    y_BTD = self.adapted(y_BTD, p, 'o', y_BTNK, ('heads', None), ('embed',))
    if 'o_bias' in p:
      y_BTD = y_BTD + p['o_bias'].astype(self.dtype)
    return y_BTD, cache

  @property
  def activation(self):
    """The function between the MLP's projections."""
    return {
      'silu': jax.nn.silu,
      'gelu_tanh': lambda x: jax.nn.gelu(x, approximate=True),
      'gelu': lambda x: jax.nn.gelu(x, approximate=False),
    }[self.config.activation]

  def _mlp(self, p, x_BTD):
    if self.config.num_experts:
      return self._experts(p, x_BTD)

    def project(name):
      kernel = self.weight(p[f'{name}_kernel'], 'embed', 'mlp')
      y = self.einsum('btd,df->btf', x_BTD, kernel, 'batch', None, 'mlp')
      y = self.rescaled(y, p, name, 'mlp')
      y = self.adapted(y, p, name, x_BTD, ('embed',), ('mlp',))
      if f'{name}_bias' in p:
        y = y + self.weight(p[f'{name}_bias'], 'mlp')
      return y

    if self.config.gated_mlp:
      h_BTF = self.activation(project('gate')) * project('up')
    else:
      h_BTF = self.activation(project('up'))
    kernel = self.weight(p['down_kernel'], 'mlp', 'embed')
    y_BTD = self.einsum('btf,fd->btd', h_BTF, kernel, 'batch', None, None)
    y_BTD = self.rescaled(y_BTD, p, 'down', 'embed')
    y_BTD = self.adapted(y_BTD, p, 'down', h_BTF, ('mlp',), ('embed',))
    if 'down_bias' in p:
      y_BTD = y_BTD + p['down_bias'].astype(self.dtype)
    return y_BTD

  def _experts(self, p, x_BTD):
    inwards = 'experts', 'embed', 'expert_mlp'
    return experts.mlp(
      x_BTD,
      self.weight(p['router_kernel'], 'embed', None),
      self.weight(p['experts_gate_kernel'], *inwards),
      self.weight(p['experts_up_kernel'], *inwards),
      self.weight(p['experts_down_kernel'], 'experts', 'expert_mlp', 'embed'),
      config=self.config,
      rules=self.rules,
      activation=self.activation,
      platform=self.case.platform,
    )
