"""The selection rules; importing this registers them, the method's first."""

from qaq_jax.selection.rules import method

# isort: split
from qaq_jax.selection.rules import baselines

# isort: split
from qaq_jax.selection.rules import neighbours

# isort: split
from qaq_jax.selection.rules import external

__all__ = ['baselines', 'external', 'method', 'neighbours']
