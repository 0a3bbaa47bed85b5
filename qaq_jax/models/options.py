"""How devices are laid out, and adapters beside a model's kernels."""

import dataclasses

DTYPES = ('float32', 'bfloat16')  # of weights and compute


def check_dtype(field: str, value: str, known: tuple[str, ...] = DTYPES):
  """Refuses a dtype that is not known.

  Args:
    field: the name of the field that holds it.
    value: the name of the dtype.
    known: the dtypes that the field may have.

  Raises:
    ValueError: it is another; names the field and those there are.
  """
  if value not in known:
    raise ValueError(f'{field} is {value!r}; it is one of ' + ', '.join(known))


@dataclasses.dataclass(frozen=True)
class MeshOptions:
  """Sizes of the mesh axes; one of them may be -1, all that is left.

  Attributes:
    data: groups of devices that each hold a copy of the model.
    fsdp: devices that share one copy and gather it layer by layer.
    tensor: devices that split every head and matrix product.
  """

  data: int = -1
  fsdp: int = 1
  tensor: int = 1


@dataclasses.dataclass(frozen=True)
class LoraOptions:
  """Low-rank adapters beside chosen kernels (LoRA, arXiv 2106.09685).

  A projection with one computes `x W + alpha / rank * (x A) B`.

  Attributes:
    rank: R, inner size of every adapter; 0 = no adapters, all parameters are
      trained.
    alpha: numerator of the scale.
    targets: the projections that get one, by the name of their kernel (q, k,
      v, o, gate, up, down); () = all that a layer of the family has.
  """

  rank: int = 0
  alpha: float = 16.0
  targets: tuple[str, ...] = ()

  def __post_init__(self):
    if self.rank < 0:
      raise ValueError(
        f'config.finetune.lora.rank is {self.rank}; 0 trains all parameters, '
        'a rank from 1 on trains adapters'
      )

  @property
  def scale(self) -> float:
    """What multiplies the adapter's output."""
    if not self.rank:
      raise ValueError('lora rank 0: of an adapter it is at least 1')
    return self.alpha / self.rank
