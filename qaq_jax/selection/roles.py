"""Which scored model plays which role."""

from collections.abc import Iterable, Mapping

ROLES = ('strong', 'weak')
_STATUS = 'status_'  # of a column that every scored model has


class MissingColumn(ValueError):
  """A rule needs something that the score table (or the run) lacks."""


class Roles:
  """The models of a score table, and their roles.

  Args:
    names: names of the table's columns.
    roles: role -> model, '' or None for nobody; by default a role is played
      by the model of that name, where the table has it.

  Attributes:
    models: names of the scored models.
    roles: role -> model, of those that are played.

  Raises:
    ValueError: a role that there is not.
    MissingColumn: a role's model was not scored there.
  """

  def __init__(
    self, names: Iterable[str], roles: Mapping[str, str] | None = None
  ):
    self.models = tuple(
      name.removeprefix(_STATUS) for name in names if name.startswith(_STATUS)
    )
    if roles is None:
      roles = {role: role for role in ROLES if role in self.models}
    self.roles = {role: model for role, model in roles.items() if model}
    for role, model in self.roles.items():
      if role not in ROLES:
        raise ValueError(f'Unknown role {role!r}; roles are {ROLES}.')
      if model not in self.models:
        raise MissingColumn(
          f'roles.{role} is {model!r}, but the score table has no column '
          f"'{_STATUS}{model}': models scored there: {self.scored()}."
        )

  def scored(self) -> str:
    """The scored models, for a message."""
    return ', '.join(self.models) or 'none'

  def model(self, role: str) -> str:
    """The model that plays a role.

    Raises:
      MissingColumn: nobody plays it.
    """
    if role not in self.roles:
      raise MissingColumn(
        f'This needs a {role} model: set `--config.roles.{role}=NAME` to a '
        f'scored model ({self.scored()}), or score one.'
      )
    return self.roles[role]

  def token_model(self) -> str:
    """Whose tokens a token budget counts: the strong model's."""
    if 'strong' not in self.roles and self.models:
      return self.models[0]
    return self.model('strong')
