"""Products of experts: `ragged_dot` against blocks of rows, on any platform.

  python benchmarks/experts.py --rows=4096 --experts=128 --size=512 --width=192
  python benchmarks/experts.py --dtype=bfloat16 --rows=262144 --skip_ragged

Rows go to random experts. Prints the median milliseconds of one product and of
its gradients, GFLOP/s of the rows' own work, and temporary memory, as compiled.
The second line is a layer of Qwen3-Coder-30B-A3B with 32,768 tokens, for a GPU;
there `ragged_dot` would want temporary memory of rows x experts x size.
"""

import functools
import statistics
import time

import jax
import jax.numpy as jnp
from absl import app, flags

from qaq_jax.models import grouped

_ROWS = flags.DEFINE_integer('rows', 4096, 'tokens x experts of each')
_EXPERTS = flags.DEFINE_integer('experts', 128, 'number of experts')
_SIZE = flags.DEFINE_integer('size', 2048, 'of a row')
_WIDTH = flags.DEFINE_integer('width', 768, 'of an expert')
_DTYPE = flags.DEFINE_string('dtype', 'float32', 'of rows and kernels')
_SKIP_RAGGED = flags.DEFINE_bool('skip_ragged', False, 'blocks alone')
_REPEATS = 5


def measure(call, arguments, operations: float) -> str:
  """Compiles and times one call."""
  program = jax.jit(call).lower(*arguments).compile()
  memory = program.memory_analysis().temp_size_in_bytes
  jax.block_until_ready(program(*arguments))
  seconds = []
  for _ in range(_REPEATS):
    start = time.perf_counter()
    jax.block_until_ready(program(*arguments))
    seconds.append(time.perf_counter() - start)
  median = statistics.median(seconds)
  return (
    f'{median * 1e3:,.1f} ms, {operations / median / 1e9:,.1f} GFLOP/s,'
    f' {memory / 2**20:,.1f} MiB'
  )


def main(_):
  rows, number = _ROWS.value, _EXPERTS.value
  size, width = _SIZE.value, _WIDTH.value
  keys = jax.random.split(jax.random.key(0), 3)
  x_RD = jax.random.normal(keys[0], (rows, size), _DTYPE.value)
  kernel_EDF = jax.random.normal(keys[1], (number, size, width), _DTYPE.value)
  group_R = jax.random.randint(keys[2], (rows,), 0, number)
  sizes_E = jnp.bincount(group_R, length=number).astype(jnp.int32)
  arguments = x_RD, kernel_EDF, sizes_E
  device = jax.devices()[0]
  chosen = grouped.block_rows(rows, number, 'gpu')
  blocks = {b for b in (chosen // 2, chosen, 2 * chosen) if 0 < b <= rows}
  print(
    f'{device.device_kind}: {rows:,} rows of {size}, {number} experts of'
    f' {size} x {width}, {_DTYPE.value}'
  )
  for block in ([] if _SKIP_RAGGED.value else [None]) + sorted(blocks):
    product = functools.partial(grouped.product, block=block)

    def loss(x_RD, kernel_EDF, sizes_E, product=product):
      y_RF = product(x_RD, kernel_EDF, sizes_E)
      return jnp.sum(y_RF.astype(jnp.float32) ** 2)

    work = 2.0 * rows * size * width
    name = f'blocks of {block}' if block else 'ragged_dot'
    name += ' (chosen)' if block == chosen else ''
    print(
      f'{name}: forward {measure(product, arguments, work)};'
      f' with gradients'
      f' {measure(jax.grad(loss, (0, 1)), arguments, 3 * work)}',
      flush=True,
    )


if __name__ == '__main__':
  app.run(main)
