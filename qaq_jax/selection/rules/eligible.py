"""Whose status makes a row eligible: `Rule.models` of the rules."""

from qaq_jax.selection.roles import ROLES

# The option that `chosen_model` reads.
MODEL = ('strong', 'whose score: a role or a model name')


def strong(columns, options):
  """The strong model."""
  del options
  return (columns.model('strong'),)


def strong_and_weak(columns, options):
  """Both role models."""
  del options
  return columns.model('strong'), columns.model('weak')


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
