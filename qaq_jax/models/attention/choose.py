"""Causal attention behind one function that chooses the implementation.

  xla     blocks of queries (`attention_xla.py`); everywhere, everything
  splash  TPU: flash attention in Pallas (`attention_tpu.py`)
  cudnn   GPU: flash attention of cuDNN (`attention_gpu.py`)

Letters of dimensions: see `decoder.py`.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from qaq_jax.models import sharding
from qaq_jax.models.attention import gpu, tpu, xla
from qaq_jax.models.config import ModelConfig

# Platform -> what there is, the fastest first.
_BY_PLATFORM = {'tpu': ('splash', 'xla'), 'gpu': ('cudnn', 'xla')}
_ATTEND = {
  'xla': xla.attend,
  'splash': tpu.attend,
  'cudnn': gpu.attend,
}
IMPLEMENTATIONS = tuple(_ATTEND)


@dataclasses.dataclass(frozen=True)
class Case:
  """What an implementation must support.

  Attributes:
    platform: 'cpu', 'gpu' or 'tpu': of the devices that the program is for,
      which need not be this machine's.
    dtype: the dtype of queries, keys and values.
    head_dim: K.
    soft_cap: whether scores are capped.
    segments: whether rows hold several segments.
    device_kind: the kind of the devices, '' where it is not known.
  """

  platform: str
  dtype: jnp.dtype
  head_dim: int
  soft_cap: bool = False
  segments: bool = False
  device_kind: str = ''


def refusal(name: str, case: Case) -> str | None:
  """Why an implementation can't do a case; None if it can."""
  own = {'splash': 'tpu', 'cudnn': 'gpu'}.get(name)
  if own and case.platform != own:
    return f'it is for {own}, this is {case.platform}'
  if name == 'splash':
    return tpu.refusal(case.dtype)
  if name == 'cudnn':
    return gpu.refusal(
      case.dtype,
      case.head_dim,
      case.soft_cap,
      case.segments,
      case.device_kind,
    )
  return None


def check(name: str) -> None:
  """Refuses a name that is neither 'auto' nor of an implementation.

  Raises:
    ValueError: names those that there are.
  """
  if name not in ('auto', *IMPLEMENTATIONS):
    raise ValueError(
      f"attention {name!r} is not known; choose 'auto' or one of"
      f' {", ".join(IMPLEMENTATIONS)}'
    )


def choose(name: str, case: Case) -> str:
  """Returns the implementation that `name` stands for.

  Args:
    name: 'auto' is the fastest that can do the case on its platform; one of
      IMPLEMENTATIONS is that one, never another.
    case: what it must support.

  Raises:
    ValueError: `name` is not known, or can't do the case; says why.
  """
  if name == 'auto':
    offered = _BY_PLATFORM.get(case.platform, ('xla',))
    return next(n for n in offered if refusal(n, case) is None)
  check(name)
  why = refusal(name, case)
  if why:
    raise ValueError(f"attention {name!r}: {why}; 'auto' chooses one that can")
  return name


def case_of(config: ModelConfig, dtype, mesh: jax.sharding.Mesh | None) -> Case:
  """What attention of a model on a mesh must support, unpacked rows."""
  device = jax.local_devices()[0] if mesh is None else mesh.devices.flat[0]
  return Case(
    device.platform,
    jnp.dtype(dtype),
    config.head_dim,
    soft_cap=config.attn_soft_cap is not None,
    device_kind=device.device_kind,
  )


def attention(
  q_BTNK: jax.Array,
  k_BTGK: jax.Array,
  v_BTGK: jax.Array,
  segment_ids_BT: jax.Array | None = None,
  *,
  scale: float,
  window: int | None = None,
  soft_cap: float | None = None,
  rules: sharding.ShardingRules | None = None,
  implementation: str = 'xla',
) -> jax.Array:
  """Returns softmax(scale * q k^T + mask) v, [B, T, N, K].

  Args:
    q_BTNK: queries.
    k_BTGK: keys; N is a multiple of G.
    v_BTGK: values.
    segment_ids_BT: positions attend within equal ids only; None: one segment.
    scale: multiplies the scores.
    window: keys seen, the position itself included; None: all before it.
    soft_cap: scores become cap * tanh(scores / cap).
    rules: how heads and batch are split when a mesh is set.
    implementation: one of IMPLEMENTATIONS, from `choose`.
  """
  local = functools.partial(
    _ATTEND[implementation], scale=scale, window=window, soft_cap=soft_cap
  )
  mesh = sharding.current_mesh()
  if mesh is None:
    return local(q_BTNK, k_BTGK, v_BTGK, segment_ids_BT)
  assert rules is not None, 'a mesh is set, so rules say how it is used'
  q_spec = rules.spec('batch', None, 'heads', None)
  kv_spec = rules.spec('batch', None, 'kv_heads', None)
  axis = rules.heads if rules.kv_heads is None else None

  def island(q, k, v, segments):
    if axis is not None:
      k, v = _own_kv_heads(q, k, v, axis, mesh.shape[axis])
    return local(q, k, v, segments)

  # Every device has all it needs: attention of its rows and heads is local.
  return jax.shard_map(
    island,
    in_specs=(
      q_spec,
      kv_spec,
      kv_spec,
      None if segment_ids_BT is None else rules.spec('batch', None),
    ),
    out_specs=q_spec,
    # Kernels don't say over which axes their results differ.
    check_vma=implementation == 'xla',
  )(q_BTNK, k_BTGK, v_BTGK, segment_ids_BT)


def cached_attention(
  q_B1NK: jax.Array,
  k_BGSK: jax.Array,
  v_BGSK: jax.Array,
  start_B: jax.Array,
  slot: jax.Array,
  *,
  scale: float,
  window: int | None = None,
  soft_cap: float | None = None,
  rules: sharding.ShardingRules | None = None,
) -> jax.Array:
  """Returns attention of one new token per row to a cache, [B, 1, N, K].

  Args:
    q_B1NK: the token's queries.
    k_BGSK: keys by slot, the token's own already among them.
    v_BGSK: values likewise.
    start_B: first slot that a row may see; its padding comes before.
    slot: the token's own slot, the last that it sees.
    scale: multiplies the scores.
    window: slots seen, the own included; None: all.
    soft_cap: scores become cap * tanh(scores / cap).
    rules: how heads and batch are split when a mesh is set.
  """
  local = functools.partial(
    _one_query, scale=scale, window=window, soft_cap=soft_cap
  )
  mesh = sharding.current_mesh()
  if mesh is None:
    return local(q_B1NK, k_BGSK, v_BGSK, start_B, slot)
  assert rules is not None, 'a mesh is set, so rules say how it is used'
  q_spec = rules.spec('batch', None, 'heads', None)
  kv_spec = rules.spec('batch', 'kv_heads', None, None)
  axis = rules.heads if rules.kv_heads is None else None

  def island(q, k, v, start, slot):
    if axis is not None:
      k, v = _own_kv_heads(q, k, v, axis, mesh.shape[axis], 1)
    return local(q, k, v, start, slot)

  return jax.shard_map(
    island,
    in_specs=(q_spec, kv_spec, kv_spec, rules.spec('batch'), jax.P()),
    out_specs=q_spec,
  )(q_B1NK, k_BGSK, v_BGSK, start_B, slot)


def _one_query(q, k, v, start, slot, *, scale, window, soft_cap):
  b, _, n, d = q.shape
  g, length = k.shape[1:3]
  highest = jax.lax.Precision.HIGHEST
  precision = highest if q.dtype == jnp.float32 else None
  q = q.reshape(b, g, n // g, d)
  if q.dtype == jnp.float32:
    q, scale = q * scale, 1.0
  scores = jnp.einsum(
    'bgrk,bgsk->bgrs',
    q,
    k,
    precision=precision,
    preferred_element_type=jnp.float32,
  )
  if scale != 1.0:
    scores = scores * scale
  if soft_cap is not None:
    scores = soft_cap * jnp.tanh(scores / soft_cap)
  slots = jnp.arange(length)
  mask = (slots >= start[:, None]) & (slots <= slot)
  if window is not None:
    mask &= slots > slot - window
  scores = jnp.where(mask[:, None, None], scores, xla.MASKED)
  weights = jnp.exp(scores - jnp.max(scores, axis=-1, keepdims=True))
  total = jnp.sum(weights, axis=-1, keepdims=True)
  y = jnp.einsum(
    'bgrs,bgsk->bgrk',
    weights.astype(v.dtype),
    v,
    precision=precision,
    preferred_element_type=jnp.float32,
  )
  return (y / total).astype(v.dtype).reshape(b, 1, n, d)


def _own_kv_heads(q, k, v, axis: str, shards: int, heads_axis: int = 2):
  """Picks, of all key/value heads, those of this device's query heads."""
  here = q.shape[2]
  groups = k.shape[heads_axis]
  per_group = here * shards // groups
  if shards == 1:
    return k, v
  first = jax.lax.axis_index(axis) * here
  if per_group % here == 0:  # all of this device's heads share one
    one = (first // per_group)[None]
  else:
    one = (first + jnp.arange(here)) // per_group
  return tuple(jnp.take(x, one, axis=heads_axis) for x in (k, v))
