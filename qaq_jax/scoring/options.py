"""How samples are scored."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class ScoreOptions:
  """How to score; nothing here changes a number beyond rounding.

  Attributes:
    terms: the likelihoods to compute, others are null; () = all that the
      encoder offers. ('q', 'q_given_a') is all that the rules on ranks of RMI
      need: 22 to 37% fewer tokens; IFD has no values then.
    tokens_per_batch: tokens of a batch per device; 0 = found from the compiled
      program's memory.
    max_shapes: most compiled programs per model.
    length_multiple: lengths of the shapes are multiples of this; 0 = 128 on
      TPU, 16 on GPU, 1 on CPU.
    rows_per_part: rows of a window, which a kill can cost; 0 = chosen from the
      lengths.
    progress: whether to show a progress bar and print the plan.
  """

  terms: tuple[str, ...] = ()
  tokens_per_batch: int = 0
  max_shapes: int = 24
  length_multiple: int = 0
  rows_per_part: int = 0
  progress: bool = True

  def multiple(self, platform: str) -> int:
    """Multiple of the lengths on a platform."""
    defaults = {'tpu': 128, 'gpu': 16}
    return self.length_multiple or defaults.get(platform, 1)
