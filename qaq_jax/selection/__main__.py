"""`python -m qaq_jax.selection` prints the selection rules."""

from qaq_jax.selection.rules import rule

print(rule.describe_rules())
