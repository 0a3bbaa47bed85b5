"""The selection rules; importing this registers them, the method's first."""

from qaq_jax.selection.rules import method

# isort: split
from qaq_jax.selection.rules import baselines

__all__ = ['baselines', 'method']
