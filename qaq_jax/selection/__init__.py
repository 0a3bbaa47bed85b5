"""Strata and selection rules over a score table."""

# Importing them registers their rules; the method's own come first.
from qaq_jax.selection import rules

# isort: split
from qaq_jax.selection import baselines

__all__ = ['baselines', 'rules']
