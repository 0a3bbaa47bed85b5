"""How samples become token ids: for scoring, and for training."""

import dataclasses

from qaq_jax.data.types import REVERSE_INSTRUCTION

ON_LONG = ('skip', 'truncate_context')  # of scoring
ON_LONG_EXAMPLE = ('skip', 'truncate')  # of training


@dataclasses.dataclass(frozen=True)
class EncoderOptions:
  """The sequences that a model is given.

  Attributes:
    template: 'auto' (the tokenizer's own), 'plain', a shipped name, or a path
      to a template or to a checkpoint whose template is borrowed.
    system_prompt: the system prompt for rows without their own; '' = the
      template's default.
    reverse_instruction: user text of the reverse sequence, with an `{answer}`
      slot.
    max_length: tokens of the longer sequence.
    on_long: 'skip' (status too_long) or 'truncate_context' (spec 1, rule 5).
    author_compatible: the two sequences of the paper's released scorer (rule
      8) in place of ours.
    ifd_cherry: also the two sequences of arXiv 2308.12032.
    cherry_limit: tokens of prompt and answer, 512 in the release.
    ifd_superfilter: also the two sequences of arXiv 2402.00530.
    superfilter_limit: tokens of prompt and answer, 1,024 in the release.
    embeddings: pooled hidden states, for rule rds_plus; a 'forward' sequence
      is made in any case.
    date_string: 'DD Mon YYYY', what templates that print a date print (Llama
      3.1 and later).
    merge_check_every: boundary merges are measured on rows whose number is a
      multiple of this; 0 = on none.
  """

  template: str = 'auto'
  system_prompt: str = ''
  reverse_instruction: str = REVERSE_INSTRUCTION
  max_length: int = 2048
  on_long: str = 'skip'
  author_compatible: bool = False
  ifd_cherry: bool = False
  cherry_limit: int = 512
  ifd_superfilter: bool = False
  superfilter_limit: int = 1024
  embeddings: bool = False
  date_string: str = '26 Jul 2024'
  merge_check_every: int = 16

  def __post_init__(self):
    if self.on_long not in ON_LONG:
      raise ValueError(
        f'score.on_long={self.on_long!r}: choose one of {ON_LONG}'
      )


@dataclasses.dataclass(frozen=True)
class TrainingOptions:
  """How samples become training examples.

  Attributes:
    prompt_weight: the weight of the loss of everything before the answer.
    response_weight: the weight of the loss of the answer and its end of turn.
    on_long: 'skip', or 'truncate': the answer's tail is cut, and with it the
      end of turn, since the model should not learn to stop there.
  """

  prompt_weight: float = 0.0
  response_weight: float = 1.0
  on_long: str = 'skip'

  def __post_init__(self):
    if self.on_long not in ON_LONG_EXAMPLE:
      raise ValueError(
        f'on_long={self.on_long!r}: choose one of {ON_LONG_EXAMPLE}'
      )
    weights = self.prompt_weight, self.response_weight
    if min(weights) < 0 or max(weights) <= 0:
      raise ValueError(
        f'prompt_weight={weights[0]}, response_weight={weights[1]}: none '
        'negative, and one of them above 0'
      )
