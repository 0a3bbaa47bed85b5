"""What a config says to the stages alone, and how they read the rest of it.

A section of the config holds the fields of some options dataclasses: those of
the rooms (`scoring/options.py`, say), whose defaults and comments it shares,
and those here. `qaq_jax/config.py` makes the sections; `of` reads them.
"""

import dataclasses
import typing
from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
  from _typeshed import DataclassInstance

Options = TypeVar('Options', bound='DataclassInstance')


def of(kind: type[Options], section: Mapping, **given) -> Options:
  """Options from a section of a config that has their fields, by name.

  A field that holds options itself is read from the section of its name in
  this one, or else from this one.

  Args:
    kind: the dataclass.
    section: the section of the config; fields of other options in it are not
      read.
    **given: fields that the section lacks, or that it is overruled in.
  """
  values = {}
  hints = typing.get_type_hints(kind)
  for field in dataclasses.fields(kind):
    inner = hints[field.name]
    if isinstance(inner, type) and dataclasses.is_dataclass(inner):
      values[field.name] = of(inner, section.get(field.name, section))
    elif field.name in section:
      values[field.name] = section[field.name]
  return kind(**values | given)


@dataclasses.dataclass(frozen=True)
class Run:
  """What holds for every stage.

  Attributes:
    seed: the seed of every draw.
    stages: what `qaq run` runs.
  """

  seed: int = 0
  stages: tuple[str, ...] = ('prepare', 'score', 'select', 'report')


@dataclasses.dataclass(frozen=True)
class Model:
  """A model of `config.models`.

  Attributes:
    path: a local checkpoint folder or a hub id.
    revision: branch, tag or commit on the hub; '' = the default branch.
    dtype: the dtype of weights and compute: 'float32' or 'bfloat16'.
    chat_template: 'auto' (the tokenizer's own), 'plain', a shipped name, or a
      path to a template or to a checkpoint whose template is borrowed.
    system_prompt: overrides `config.score.system_prompt` for this model.
    max_length: overrides `config.score.max_length`; 0 does not.
    quantization: the scheme of the layers' kernels, for scoring: '', 'int8'
      (weights), 'int8_dynamic' (activations too).
  """

  path: str
  revision: str = ''
  dtype: str = 'bfloat16'
  chat_template: str = 'auto'
  system_prompt: str = ''
  max_length: int = 0
  quantization: str = ''


@dataclasses.dataclass(frozen=True)
class Roles:
  """Which of `config.models` is which.

  Attributes:
    strong: name of the strong model.
    weak: name of the weak model.
  """

  strong: str = 'strong'
  weak: str = 'weak'


@dataclasses.dataclass(frozen=True)
class Score:
  """Of the score stage.

  Attributes:
    targets_path: rds_plus: examples of the target tasks, in any format that
      data.path has.
    attention: 'auto' = the fastest on the platform; or 'xla', 'splash' (TPU),
      'cudnn'.
  """

  targets_path: str = ''
  attention: str = 'auto'


@dataclasses.dataclass(frozen=True)
class Finetune:
  """Of the finetune stage.

  Attributes:
    folder: the folder in the work directory, of checkpoints and the exported
      model; another name for another run (with LoRA, say).
    model: where training starts: a role or name of config.models, whose path,
      revision, template and system prompt are then used.
    path: or any other model: a folder or a hub id.
    revision: the revision of that model.
    chat_template: '' = the model's own setting.
    system_prompt: '' = the model's, else the score section's.
    data: 'selected' (what the select stage chose), 'all' (every prepared
      sample), or a file or data set in any format that data.path has.
    validation: held-out samples, in any format; '' = validation_rows of the
      data.
    validation_rows: drawn by the seed; 0 = no validation.
  """

  folder: str = 'finetune'
  model: str = 'strong'
  path: str = ''
  revision: str = ''
  chat_template: str = ''
  system_prompt: str = ''
  data: str = 'selected'
  validation: str = ''
  validation_rows: int = 0


@dataclasses.dataclass(frozen=True)
class Evaluate:
  """Of the evaluate stage.

  Attributes:
    path: the model: a folder or a hub id; '' = the fine-tuned.
    revision: the revision of the model.
    chat_template: the template as in `config.models`; for chat prompts.
    system_prompt: '' = the template's own default.
    benchmarks: humaneval, mbpp: base tests; humaneval_plus, mbpp_plus: those
      and more; humaneval_original, mbpp_original: the files as first
      published; demo_tasks: the demo's ten toy tasks.
    limit: first tasks only; 0 = all.
  """

  path: str = ''
  revision: str = ''
  chat_template: str = 'auto'
  system_prompt: str = ''
  benchmarks: tuple[str, ...] = ('humaneval_plus', 'mbpp_plus')
  limit: int = 0


@dataclasses.dataclass(frozen=True)
class Files:
  """The published files of benchmarks, gzipped or plain.

  docs/evaluation.md says where they are.

  Attributes:
    humaneval: EvalPlus's HumanEvalPlus.
    mbpp: EvalPlus's MbppPlus.
    humaneval_original: OpenAI's HumanEval.
    mbpp_original: Google's mbpp.
    demo_tasks: `config.embedded_tasks()`.
  """

  humaneval: str = ''
  mbpp: str = ''
  humaneval_original: str = ''
  mbpp_original: str = ''
  demo_tasks: str = ''


@dataclasses.dataclass(frozen=True)
class Compare:
  """Fine-tunes on the choice of every rule, and compares held-out losses.

  All start from the same model, with the settings of `config.finetune`.

  Attributes:
    table: rows of (rule, budget, amount, seeds); budget is 'share', 'rows',
      'tokens', or 'token_share' (of the tokens of all eligible rows).
    held_out: samples to judge by, in any format.
    baseline: subtracted from lines of the same budget.
    keep_models: export the model of every cell.
    evaluate: also evaluate every cell's model as config.evaluate says; its
      programs are run, so this needs --allow-code-execution.
  """

  table: tuple = ()
  held_out: str = ''
  baseline: str = 'random'
  keep_models: bool = False
  evaluate: bool = False


@dataclasses.dataclass(frozen=True)
class Plan:
  """What a pod would need, before it is paid for; docs/planning.md.

  Attributes:
    topology: the topology of scoring: 'v5e:4x4', 'v5p:2x2x4', 'h100:8', ...
    finetune_topology: '' = the same.
    survey_rows: rows whose lengths are read; counts are scaled.
  """

  topology: str = ''
  finetune_topology: str = ''
  survey_rows: int = 2000


@dataclasses.dataclass(frozen=True)
class Mine:
  """The demo's input; only configs/demo.py mines it.

  Attributes:
    rows: mined pairs.
    held_out: clean pairs that are not in the input, for compare.
  """

  rows: int = 0
  held_out: int = 0
