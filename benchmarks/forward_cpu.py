"""Forward passes of a 48M-parameter Qwen2-shaped model, in CPU time.

  python benchmarks/forward_cpu.py

For several batch shapes: useful float operations per second of the layers (no
head), as a share of the rate of the model's own largest layer product measured
beside it; and attention beside plain attention with one dense mask. Time is the
process's CPU time, so that other work on the machine disturbs it little.
"""

import statistics
import time

import jax
import jax.numpy as jnp
from flax import nnx

from qaq_jax.models import sharding
from qaq_jax.models.attention import choose as attention
from qaq_jax.models.hf import checkpoint
from qaq_jax.models.hf.read_config import read_config

SHAPES = ((8, 104), (4, 256), (2, 512), (1, 1000), (1, 104))
CONFIG = read_config(
  {
    'model_type': 'qwen2',
    'vocab_size': 49152,
    'hidden_size': 512,
    'intermediate_size': 1408,
    'num_hidden_layers': 8,
    'num_attention_heads': 8,
    'num_key_value_heads': 2,
    'max_position_embeddings': 4096,
    'rms_norm_eps': 1e-6,
    'hidden_act': 'silu',
    'tie_word_embeddings': True,
  }
)


def seconds(function, *arguments, repeats=7):
  """Returns the median CPU time of a call."""
  jax.block_until_ready(function(*arguments))
  times = []
  for _ in range(repeats):
    start = time.process_time()
    jax.block_until_ready(function(*arguments))
    times.append(time.process_time() - start)
  return statistics.median(times)


def operations(rows, length):
  """Returns useful operations of the layers: (products, attention)."""
  c = CONFIG
  width = c.head_dim * (2 * c.num_heads + 2 * c.num_kv_heads)
  kernel = c.hidden_size * (width + 3 * c.intermediate_size)
  products = 2 * rows * length * kernel * c.num_layers
  pairs = rows * length * (length + 1) // 2
  return products, 4 * pairs * c.num_heads * c.head_dim * c.num_layers


@jax.jit
def dense_attention(q, k, v):
  """Attention with one dense mask and all scores at once."""
  b, t, n, d = q.shape
  q = q.reshape(b, t, k.shape[2], -1, d)
  scores = jnp.einsum('btgrk,bsgk->bgrts', q, k) * d**-0.5
  scores = jnp.where(jnp.tril(jnp.ones((t, t), bool)), scores, -1e30)
  weights = jax.nn.softmax(scores, axis=-1)
  return jnp.einsum('bgrts,bsgk->btgrk', weights, v).reshape(b, t, n, d)


def main():
  """Prints one line per shape."""
  mesh = sharding.make_mesh(1, devices=jax.devices()[:1])
  graphdef, params = nnx.split(checkpoint.random_init(CONFIG, mesh=mesh))
  decode = jax.jit(lambda p, t: nnx.merge(graphdef, p)(t))
  blocks = jax.jit(
    lambda q, k, v: attention.attention(q, k, v, scale=q.shape[-1] ** -0.5)
  )
  product = jax.jit(jnp.matmul)
  x = jnp.ones((1024, CONFIG.hidden_size))
  w = jnp.ones((CONFIG.hidden_size, CONFIG.intermediate_size))
  for rows, length in SHAPES:
    rate = 2 * x.shape[0] * w.size / seconds(product, x, w, repeats=25)
    with jax.set_mesh(mesh):
      took = seconds(decode, params, jnp.zeros((rows, length), jnp.int32))
    useful = sum(operations(rows, length)) / took
    q = jnp.ones((rows, length, CONFIG.num_heads, CONFIG.head_dim))
    kv = jnp.ones((rows, length, CONFIG.num_kv_heads, CONFIG.head_dim))
    print(
      f'{rows} x {length}: {took * 1e3:.0f} ms,'
      f' {useful / 1e9:.0f} of {rate / 1e9:.0f} Gflop/s'
      f' ({useful / rate:.0%}); attention of a layer'
      f' {seconds(blocks, q, kv, kv) * 1e3:.1f} ms,'
      f' dense mask {seconds(dense_attention, q, kv, kv) * 1e3:.1f} ms',
      flush=True,
    )


if __name__ == '__main__':
  main()
