"""What can be known of a config before any work is done."""

import ml_collections

from qaq_jax.models import quantized
from qaq_jax.models.options import check_dtype
from qaq_jax.selection import budget, strata
from qaq_jax.selection.rules import rule as rule_lib
from qaq_jax.stages import artifacts


def check(config: ml_collections.ConfigDict, loads_models: bool) -> None:
  """Finds what can be known to be wrong before any work is done.

  Args:
    config: the resolved config.
    loads_models: a stage that loads them will run.

  Raises:
    ValueError: names the field and what to do.
  """
  for role, name in config.roles.items():
    if name and name not in config.models:
      raise ValueError(
        f'config.roles.{role} is {name!r}; config.models has: '
        + (', '.join(config.models) or 'none')
      )
  for name, model in config.models.items():
    if not model.path and loads_models:
      raise ValueError(f'config.models.{name}.path is empty')
    check_dtype(f'config.models.{name}.dtype', model.dtype)
    if model.quantization not in quantized.SCHEMES:
      raise ValueError(
        f'config.models.{name}.quantization is {model.quantization!r}; it '
        'is one of ' + ', '.join(map(repr, quantized.SCHEMES))
      )
  strata.check_by(config.strata.by)
  rule = rule_lib.get_rule(config.select.rule)
  budget.Budget.of(config.select.budget.to_dict())
  rule_lib.resolve_options(rule, artifacts.given_options(config))
