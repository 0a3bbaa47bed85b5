"""What a plan assumes."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Assumptions:
  """Shares of the data sheet's rates that a program reaches.

  Attributes:
    utilisation: the share of the chip's peak of products in their dtype, within
      a step.
    bandwidth: the share of its memory's rate.
    links: the share of its links' rate.
  """

  utilisation: float = 0.5
  bandwidth: float = 0.8
  links: float = 0.8

  def __post_init__(self):
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      if not 0 < value <= 1:
        raise ValueError(
          f'config.plan.{field.name} is {value}: a share, above 0 and at most 1'
        )
