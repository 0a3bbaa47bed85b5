"""The default config, made from the options of the rooms; the config argument.

A recipe in `configs/` calls `get_default` and states only what differs. Each
section has the fields of some options dataclasses, which give defaults and
comments: what a field means, `describe` says. The stages read the resolved
config at their door; the rooms behind it take plain arguments.
"""

import ast
import dataclasses
import difflib
import importlib.resources
import inspect
import re
import sys
import textwrap
import typing
from collections.abc import Iterable, Mapping

import ml_collections
from ml_collections.config_dict import placeholder

from qaq_jax.data.types import DataSource
from qaq_jax.encoding.options import EncoderOptions, TrainingOptions
from qaq_jax.evaluation.options import EvaluateOptions, Options, Timing
from qaq_jax.finetune import options as finetune_options
from qaq_jax.generation.options import GeneratorOptions, Sampling
from qaq_jax.models.options import LoraOptions, MeshOptions
from qaq_jax.planner.options import Assumptions
from qaq_jax.sandbox.process import Limits
from qaq_jax.scoring.options import ScoreOptions
from qaq_jax.selection import options as selection_options
from qaq_jax.selection.budget import Budget
from qaq_jax.selection.rules import rule as rule_lib
from qaq_jax.stages import options as stage_options


class WrongWord(ValueError):
  """A word of the command line cannot be used; says what to do."""


def nearest(name: str, known: Iterable[str]) -> str:
  """' (did you mean ...?)' of the nearest name, '' if none is near."""
  near = difflib.get_close_matches(name, list(known), n=1)
  return f' (did you mean {near[0]!r}?)' if near else ''


@dataclasses.dataclass(frozen=True)
class Field:
  """A field of the config.

  Attributes:
    default: its value; a placeholder where it has a type alone.
    comment: what it means.
  """

  default: typing.Any
  comment: str


def fields(*kinds, without=()) -> dict[str, Field]:
  """The fields of options dataclasses, or of their instances.

  Args:
    *kinds: the dataclasses; of a field that two of them have, the first's.
    without: names that the section lacks: the config says them elsewhere, or
      they are for callers from Python.
  """
  found = {}
  for kind in kinds:
    comments = _comments(kind)
    hints = typing.get_type_hints(
      kind if isinstance(kind, type) else type(kind)
    )
    for field in dataclasses.fields(kind):
      nested = dataclasses.is_dataclass(hints[field.name])
      if field.name in found or field.name in without or nested:
        continue
      default = _default(kind, field, hints)
      found[field.name] = Field(default, comments[field.name])
  return found


def _default(kind, field, hints):
  if field.default_factory is not dataclasses.MISSING:
    return field.default_factory()
  value = getattr(kind, field.name)
  if value is None:  # of `float | None`, say
    return placeholder(typing.get_args(hints[field.name])[0])
  return value


def _rule_options() -> dict[str, Field]:
  """Options of single rules, whose own default holds where none is set."""
  found, rules = {}, rule_lib.RULES.values()
  for name, kind in rule_lib.option_types(*rules).items():
    meanings: dict[str, list[str]] = {}  # -> rules and their defaults
    for rule in rules:
      if name in rule.options:
        named = f'{rule.name} ({rule.defaults()[name]})'
        meanings.setdefault(rule.options[name][1], []).append(named)
    comment = '; '.join(
      f'{", ".join(named)}: {meaning}' for meaning, named in meanings.items()
    )
    found[name] = Field(placeholder(kind), comment)
  return found


def _comments(kind) -> dict[str, str]:
  """Field -> its entry under `Attributes:` in the docstring."""
  text = (inspect.getdoc(kind) or '').partition('Attributes:\n')[2]
  entries = re.findall(r'^  (\w+): (.*(?:\n    .*)*)', text, re.MULTILINE)
  return {name: ' '.join(entry.split()) for name, entry in entries}


def sections() -> dict[str, Field | dict]:
  """Section -> its fields, and sections in it."""
  timing = fields(Timing)
  job = finetune_options
  return {
    **fields(stage_options.Run),
    'data': fields(DataSource),
    'models': {},  # name -> model, any names; see `add_model`
    'roles': fields(stage_options.Roles),
    'score': fields(
      EncoderOptions,
      ScoreOptions,
      stage_options.Score,
      without=['template', 'merge_check_every', 'progress'],
    )
    | {'mesh': fields(MeshOptions)},
    'strata': fields(selection_options.StrataOptions),
    'select': fields(selection_options.SelectOptions)
    | _rule_options()
    | {'budget': fields(Budget)},
    'analyse': fields(selection_options.AnalyseOptions),
    'compare': fields(stage_options.Compare),
    'audit': fields(selection_options.AuditOptions),
    'finetune': fields(
      stage_options.Finetune,
      TrainingOptions,
      job.FitOptions,
      job.StepOptions,
      job.JobOptions,
      without=['seed', 'progress', 'head_rows'],
    )
    | {
      'optimizer': fields(job.OptimizerOptions),
      'lora': fields(LoraOptions),
      'mesh': fields(job.MESH),
    },
    'evaluate': fields(
      stage_options.Evaluate,
      EvaluateOptions,
      Sampling,
      GeneratorOptions,
      Options,
      without=['seed'],
    )
    | {
      'test_seconds': timing['floor'],
      'test_factor': timing['factor'],
      'memory_mb': fields(Limits)['memory_mb'],
      'files': fields(stage_options.Files),
      'mesh': fields(MeshOptions),
    },
    'plan': fields(stage_options.Plan, Assumptions),
    'mine': fields(stage_options.Mine)
    | {'defects': {}},  # defect -> share of the rows
  }


def get_default() -> ml_collections.ConfigDict:
  """Returns the config that every recipe starts from."""
  return _values(sections())


def _values(section: Mapping) -> ml_collections.ConfigDict:
  """The default of every field."""
  config = ml_collections.ConfigDict()
  for name, field in section.items():
    config[name] = field.default if isinstance(field, Field) else _values(field)
  return config


def describe(*names: str) -> str:
  """The fields of some sections, with defaults and comments, as text.

  Args:
    *names: names of sections; none: all.

  Raises:
    WrongWord: there is no such section.
  """
  found = sections()
  for name in names:
    if name not in found:
      raise WrongWord(
        f'the config has no section {name!r}{nearest(name, found)}; it has: '
        + ', '.join(found)
      )
  lines = []
  for name in names or found:
    lines += _described(f'config.{name}', found[name])
  return '\n'.join(lines)


def _described(path, field) -> list[str]:
  if not isinstance(field, Field):
    return [
      line
      for name, inner in field.items()
      for line in _described(f'{path}.{name}', inner)
    ]
  value = field.default
  if isinstance(value, ml_collections.FieldReference):
    value = value.get()
  comment = textwrap.indent(textwrap.fill(field.comment, 76), ' ' * 4)
  return [f'--{path}={value!r}', *comment.split('\n')]


def add_model(
  config: ml_collections.ConfigDict, name: str, path: str, **changes
) -> None:
  """Adds model `name` to the config.

  Args:
    config: the config; `config.models[name]` is set.
    name: the `<m>` of the score table's columns.
    path: a local checkpoint folder or a hub id.
    **changes: other fields of `stages.options.Model` than their defaults.
  """
  model = stage_options.Model(path, **changes)
  config.models[name] = ml_collections.ConfigDict(dataclasses.asdict(model))


def parse_arg(arg: str | None, **defaults) -> ml_collections.ConfigDict:
  """Turns what follows a config's colon into typed options.

  `configs/x.py:runlocal,limit=100` gives `runlocal=True, limit=100`.

  Args:
    arg: comma-separated names (True) and name=value pairs.
    **defaults: every option there is, with its default value and so its type.

  Returns:
    The options.

  Raises:
    WrongWord: on an option that is not among the defaults, or whose value
      has another type.
  """
  options = dict(defaults)
  for item in filter(None, (arg or '').split(',')):
    name, equals, text = item.partition('=')
    if name not in options:
      raise WrongWord(
        f'config argument {name!r} is unknown{nearest(name, options)}; there '
        'are: ' + (', '.join(sorted(options)) or 'none')
      )
    kind = type(defaults[name])
    options[name] = parse_value(text, kind) if equals else True
    if type(options[name]) is not kind:
      raise WrongWord(
        f'config argument {item!r}: expected '
        f'{type(defaults[name]).__name__}, as in {name}={defaults[name]!r}'
      )
  return ml_collections.ConfigDict(options)


def parse_value(text: str, kind: type):
  """Text as a value of a type, where it can be read as one."""
  if kind is str:
    return text
  try:
    return ast.literal_eval(text)
  except (ValueError, SyntaxError):
    return text  # a bare word is a string


def embedded_model(name: str) -> str:
  """Path of an embedded model, 'strong' or 'weak'."""
  return str(importlib.resources.files('qaq_jax.demo') / 'models' / name)


def use_demo(config: ml_collections.ConfigDict, *, rows: int) -> None:
  """Sets the demo's data, models, and settings that suit both.

  Args:
    config: the config.
    rows: mined pairs, 6% of them with each of five defects.
  """
  config.mine.rows = rows
  for defect in ('swapped', 'nonsense', 'echo', 'cut_off', 'boilerplate'):
    config.mine.defects[defect] = 0.06
  config.data.path = '{workdir}/demo.jsonl'
  for name in ('strong', 'weak'):
    add_model(
      config,
      name,
      embedded_model(name),
      dtype='float32',
      chat_template='plain',
    )
  config.score.max_length = 1024
  config.score.max_shapes = 8  # compiling takes longer than padding saves
  # The words with which the models were trained (qaq_jax/demo/corpus.py).
  config.score.reverse_instruction = '{answer}\n# doc'
  config.finetune.max_length = 512
  config.finetune.batch_size = 16
  config.finetune.epochs = 2
  config.finetune.remat = False
  config.finetune.optimizer.learning_rate = 1e-3
  config.finetune.optimizer.warmup_ratio = 0.1


def embedded_tasks() -> str:
  """Path of the demo's ten toy tasks, in the format of EvalPlus."""
  return str(importlib.resources.files('qaq_jax.demo') / 'tasks/tasks.jsonl')


def shrink(config: ml_collections.ConfigDict) -> None:
  """Turns a recipe into a smoke run for a laptop: its data, tiny models."""
  for name in list(config.models):
    role = 'weak' if name == config.roles.weak else 'strong'
    add_model(
      config,
      name,
      embedded_model(role),
      dtype='float32',
      chat_template='plain',
    )
  config.data.limit = 64
  config.score.max_length = 512
  config.score.reverse_instruction = '{answer}'
  config.finetune.max_length = 512
  config.finetune.dtype = 'float32'
  config.finetune.batch_size = 8
  config.finetune.tokens_per_device = 2048
  config.finetune.max_steps = 4
  config.finetune.validation_rows = 8


if __name__ == '__main__':
  try:
    print(describe(*sys.argv[1:]))
  except WrongWord as error:
    sys.exit(f'error: {error}')
