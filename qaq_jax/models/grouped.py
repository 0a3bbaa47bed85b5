"""Products of rows, sorted by group, each with the matrix of its group.

  ragged   `jax.lax.ragged_dot`: on TPUs a kernel of the compiler. XLA for CPUs
           and, without experimental flags, for GPUs (jax 0.10) copies all rows
           for every group instead, zero where they aren't of it: E times the
           work and memory.
  blocks   a loop over blocks of rows of one group each, an ordinary product in
           every turn: work and memory of the rows alone, but for the last block
           of each group, which is part empty.

Letters of dimensions: R rows, E groups, D in, F out.
"""

import functools

import jax
import jax.numpy as jnp

_BLOCKS = 8, 1024  # rows: fewer spend their time on turns, more on empty rows


def block_rows(rows: int, groups: int, platform: str) -> int | None:
  """Returns the rows of a block; None where `ragged_dot` is the better one.

  Args:
    rows: R, over all groups.
    groups: the groups that share them, those of other devices too.
    platform: 'cpu', 'gpu' or 'tpu': of the devices that the program is for.
  """
  if platform == 'tpu':
    return None
  least, most = _BLOCKS
  block = least
  while 2 * block <= min(most, rows / groups):
    block *= 2
  return min(block, rows)


def product(
  x_RD: jax.Array,
  kernel_EDF: jax.Array,
  sizes_E: jax.Array,
  *,
  block: int | None,
  precision=None,
) -> jax.Array:
  """Returns each row times the matrix of its group, [R, F] in x's dtype.

  Within `shard_map`, all arguments vary over the same mesh axes.

  Args:
    x_RD: rows in the order of their groups.
    kernel_EDF: a matrix per group.
    sizes_E: int32 rows of each group. What rows beyond their sum get is
      undefined.
    block: the rows of a block from `block_rows`.
    precision: the precision of the products.
  """
  if block is None:
    return jax.lax.ragged_dot(x_RD, kernel_EDF, sizes_E, precision=precision)
  return _by_blocks(block, precision, x_RD, kernel_EDF, sizes_E)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _by_blocks(block, precision, x_RD, kernel_EDF, sizes_E):
  return _rows(block, precision, x_RD, kernel_EDF, sizes_E, 'rd,df->rf')


def _forward(block, precision, x_RD, kernel_EDF, sizes_E):
  y_RF = _rows(block, precision, x_RD, kernel_EDF, sizes_E, 'rd,df->rf')
  return y_RF, (x_RD, kernel_EDF, sizes_E)


def _backward(block, precision, saved, dy_RF):
  x_RD, kernel_EDF, sizes_E = saved
  dx_RD = _rows(block, precision, dy_RF, kernel_EDF, sizes_E, 'rf,df->rd')

  def turn(i, sum_EDF):
    group, first, mine_b = _block(i, block, sizes_E, len(x_RD))
    x_bD = jax.lax.dynamic_slice_in_dim(x_RD, first, block)
    dy_bF = jax.lax.dynamic_slice_in_dim(dy_RF, first, block)
    return sum_EDF.at[group].add(
      jnp.einsum(
        'rd,rf->df',
        jnp.where(mine_b[:, None], x_bD, 0),
        jnp.where(mine_b[:, None], dy_bF, 0),
        precision=precision,
        preferred_element_type=jnp.float32,
      )
    )

  sum_EDF = _loop(block, sizes_E, turn, kernel_EDF.shape, jnp.float32)
  return dx_RD, sum_EDF.astype(kernel_EDF.dtype), None


_by_blocks.defvjp(_forward, _backward)


def _rows(block, precision, x_R, kernel_E, sizes_E, expression):
  """Each row times the matrix of its group, or times its transpose."""
  out = kernel_E.shape[2 if expression.endswith('f') else 1]

  def turn(i, y_R):
    group, first, mine_b = _block(i, block, sizes_E, len(x_R))
    y_b = jnp.einsum(
      expression,
      jax.lax.dynamic_slice_in_dim(x_R, first, block),
      kernel_E[group],
      precision=precision,
    )
    old_b = jax.lax.dynamic_slice_in_dim(y_R, first, block)
    return jax.lax.dynamic_update_slice_in_dim(
      y_R, jnp.where(mine_b[:, None], y_b, old_b), first, 0
    )

  return _loop(block, sizes_E, turn, (len(x_R), out), x_R.dtype)


def _loop(block, sizes_E, turn, shape, dtype):
  """Runs a turn per block that has rows, from zeros."""
  # Made from an argument, so that they vary over the same mesh axes.
  zeros = jnp.broadcast_to((0 * sizes_E[0]).astype(dtype), shape)
  return jax.lax.fori_loop(0, jnp.sum(_blocks_of(sizes_E, block)), turn, zeros)


def _blocks_of(sizes_E, block):
  return (sizes_E + block - 1) // block


def _block(i, block, sizes_E, rows):
  """Returns block i's group, its first row, and which rows are the group's.

  The last blocks begin early enough to end within the rows: they then hold
  rows of groups before.
  """
  blocks_E = _blocks_of(sizes_E, block)
  ends_E, last_E = jnp.cumsum(sizes_E), jnp.cumsum(blocks_E)
  group = jnp.sum(last_E <= i)
  start = ends_E[group] - sizes_E[group]
  start += (i - last_E[group] + blocks_E[group]) * block
  first = jnp.minimum(start, rows - block)
  row_b = first + jnp.arange(block)
  return group, first, (row_b >= start) & (row_b < ends_E[group])
