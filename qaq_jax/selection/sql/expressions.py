"""The operations of a selection as SQL expressions, to the last bit."""

from qaq_jax.selection import budget as budget_lib
from qaq_jax.selection import strata

_GRID = int(strata.GRID)


def text(value: str) -> str:
  """A string literal."""
  return "'" + value.replace("'", "''") + "'"


def number(value: float) -> str:
  """A float64 that SQL reads as the same bits."""
  return f"'{float(value)!r}'::DOUBLE"


def log_ppl(term: str, model: str) -> str:
  """`metrics.log_ppl` of a term's columns; null where there is none."""
  total, count = f'"nll_{term}_{model}"', f'"n_{term}_{model}"'
  return (
    f'CASE WHEN isfinite({total}) AND {count} > 0 '
    f'THEN {total}::DOUBLE / {count}::DOUBLE END'
  )


def grid(x: str) -> str:
  """`strata.to_grid` in SQL."""
  return (
    f'sign({x}) * floor(abs({x}) * {_GRID}.0::DOUBLE + 0.5::DOUBLE) '
    f'/ {_GRID}.0::DOUBLE'
  )


def row_hash(seed: int, stream: int) -> str:
  """`budget.row_hash` in SQL."""

  def mix(x):
    x = f'xor({x}, {x} >> 16)'
    x = f'(({x}) * 2146121005 & 4294967295)'
    x = f'xor({x}, {x} >> 15)'
    x = f'(({x}) * 73244475 & 4294967295)'
    return f'xor({x}, {x} >> 16)'

  key = budget_lib.hash_key(seed, stream)
  low = mix(f'xor(row & 4294967295, {key})')
  return mix(f'({low} + (row >> 32)) & 4294967295')
