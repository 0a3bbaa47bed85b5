"""Whose status makes a row eligible: `Rule.models` of the rules."""

from qaq_jax.selection.roles import ROLES

# The option that `chosen_model` reads.
MODEL = ('strong', 'whose score: a role or a model name')


def played(*roles: str):
  """The models of these roles, each of which somebody must play."""
  return lambda columns, options: tuple(map(columns.model, roles))


def present_roles(columns, options):
  """The role models there are (else all): the same pool as the method's."""
  del options
  return tuple(dict.fromkeys(columns.roles.values())) or columns.models


def chosen_model(columns, options):
  """The model that the option `model` names (a role or a model)."""
  name = options['model']
  if name in ROLES and name not in columns.models:
    return (columns.model(name),)
  if name in columns.roles:
    return (columns.roles[name],)
  return (name,)
