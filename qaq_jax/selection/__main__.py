"""`python -m qaq_jax.selection` prints the selection rules."""

from qaq_jax.selection import registry

print(registry.describe_rules())
