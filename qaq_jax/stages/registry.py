"""The table of stages: usage, order, barriers and hints come from it.

A stage is one record here and one file with `run(config, workdir)`: it reads
its input artifacts from the work directory, writes its own there, prints what a
user wants to know and returns it for the run log. Where the file has
`check(config)`, that is called before any work is done. It is imported when
it is to run, so that this table costs nothing.
"""

import dataclasses
import difflib
import importlib
import types
from collections.abc import Iterable


@dataclasses.dataclass(frozen=True)
class Flag:
  """A word of the command line that sets a field of the config.

  Attributes:
    name: what stands behind the hyphens: `--name=VALUE`, or `--name` alone
      where the default is False.
    field: name of the config's field, 'plan.topology' say.
    says: one sentence of help.
    default: where it is not given; None leaves the field to the recipe.
  """

  name: str
  field: str
  says: str
  default: bool | None = None


@dataclasses.dataclass(frozen=True)
class Stage:
  """One stage.

  Attributes:
    name: the word of `qaq NAME` and `config.stages`.
    says: what it makes of what, for the usage.
    module: the file that has its `run`; '' is that of its name beside this.
    together: whether all processes run it; else the first does, and the rest
      wait.
    one_folder: whether its processes must all see one folder.
    loads_models: whether it loads `config.models`.
    elsewhere: whether it uses neither a chip that is here nor other processes.
    workdir: the work directory where none is given; '' asks for one.
    flags: the words of the command line that it adds.
    sections: the sections of the config whose fields its help lists.
    next: what to do after `qaq run`, with `{workdir}`, `{config.FIELD}` and
      `{given}`, the command's arguments.
  """

  name: str
  says: str
  module: str = ''
  together: bool = False
  one_folder: bool = False
  loads_models: bool = False
  elsewhere: bool = False
  workdir: str = ''
  flags: tuple[Flag, ...] = ()
  sections: tuple[str, ...] = ()
  next: str = ''

  def load(self) -> types.ModuleType:
    """Imports its file."""
    return importlib.import_module(self.module or f'{__package__}.{self.name}')


RUN = 'run'  # the command that runs all stages of the config
STAGES: dict[str, Stage] = {}
# Of any command; those of absl begin in other ways.
_WORDS = ('config', 'workdir', 'help', 'version')


def add(stage: Stage) -> None:
  """Adds a stage.

  Raises:
    ValueError: there is one of that name, or another flag of one of its.
  """
  if stage.name in (RUN, *STAGES):
    raise ValueError(f'there is a stage {stage.name!r} already')
  taken = [*_WORDS, *(flag.name for flag in flags())]
  for flag in stage.flags:
    if flag.name in taken:
      raise ValueError(
        f'stage {stage.name!r}: there is a flag --{flag.name} already'
      )
    taken.append(flag.name)
  STAGES[stage.name] = stage


def named(name: str, listed: Iterable[str]) -> tuple[Stage, ...]:
  """The stages of a command, in order.

  Args:
    name: a stage's name, or 'run'.
    listed: the names that 'run' stands for, `config.stages`.

  Raises:
    ValueError: there is no such stage; names the nearest.
  """
  names = tuple(listed) if name == RUN else (name,)
  for wanted in (wanted for wanted in names if wanted not in STAGES):
    known = (*STAGES, RUN) if name != RUN else tuple(STAGES)
    near = difflib.get_close_matches(wanted, known, n=1)
    raise ValueError(
      ('config.stages: ' if name == RUN else '')
      + f'there is no stage {wanted!r}'
      + (f' (did you mean {near[0]!r}?)' if near else '')
      + f'; there are: {", ".join(known)}'
    )
  return tuple(STAGES[wanted] for wanted in names)


def flags() -> list[Flag]:
  """All words of the command line; each may be given with any stage."""
  return [flag for stage in STAGES.values() for flag in stage.flags]


def default_workdir(name: str) -> str:
  """Where a stage writes if nothing is said; '' where it must be said."""
  return STAGES[name].workdir if name in STAGES else ''


def usage() -> str:
  """The help of the command line."""
  told = {RUN: 'all that the config lists'}
  told |= {stage.name: stage.says for stage in STAGES.values()}
  return _USAGE.format('\n'.join(f'  {k:8} {v}' for k, v in told.items()))


def usage_of(stage: Stage) -> str:
  """How one stage is called, for its help."""
  where = '[--workdir=DIR]' if stage.workdir else '--workdir=DIR'
  lines = [
    f'usage: qaq {stage.name} --config=FILE.py[:arg] {where} '
    '[--config.field=value ...]',
    f'\n{" ".join(stage.says.split())}',
  ]
  lines += [f'\n--{flag.name}\n    {flag.says}' for flag in stage.flags]
  return '\n'.join(lines) + '\n'


_USAGE = """\
usage: qaq STAGE --config=FILE.py[:arg] --workdir=DIR [--config.field=value ...]

stages:
{}

example:
  qaq run --config=configs/demo.py --workdir=workdir/demo

--config comes before its fields; `qaq STAGE --help` lists those of a stage,
python -m qaq_jax.config lists them all."""

for _stage in (
  Stage(
    'prepare',
    says='input data -> prepared samples',
    sections=('data',),
  ),
  Stage(
    'score',
    says='samples and models -> scores.parquet',
    sections=('score', 'roles', 'strata'),
    together=True,
    loads_models=True,
  ),
  Stage(
    'select',
    says='scores.parquet -> chosen samples',
    sections=('select', 'strata', 'roles'),
  ),
  Stage(
    'finetune',
    says='chosen samples -> finetune/model, trained and exported',
    sections=('finetune',),
    together=True,
    one_folder=True,
    loads_models=True,
    next="""evaluate the model in {workdir}/{config.finetune.folder}/model:
      read docs/evaluation.md, then
      qaq evaluate {given}""",
  ),
  Stage(
    'evaluate',
    says="""a model -> programs for HumanEval(+) and MBPP(+), and with
           --allow-code-execution what they are worth""",
    sections=('evaluate',),
    together=True,
    one_folder=True,
    flags=(
      Flag(
        'allow-code-execution',
        'evaluate.allow_code_execution',
        'Run programs that a model wrote; see docs/evaluation.md.',
        default=False,  # a recipe of somebody else does not decide this
      ),
    ),
  ),
  Stage(
    'compare',
    says='what each rule is worth: fine-tunes on the choice of each',
    sections=('compare', 'finetune'),
    together=True,
    one_folder=True,
    loads_models=True,
    next='read {workdir}/compare/results.md and docs/finetuning.md',
  ),
  Stage(
    'report',
    says='report/index.html',
    sections=('select', 'strata'),
    next="""open {workdir}/report/index.html
      read docs/selection.md, or list the rules: python -m qaq_jax.selection
      choose again, without a model; put another rule in:
      qaq select {given} --config.select.rule={config.select.rule}
      look at single samples: notebooks/probe_rmi.ipynb
      train on what was chosen:
      qaq finetune {given}""",
  ),
  Stage(
    'audit',
    says='what each rule lets through, by a label in the input',
    sections=('audit', 'strata'),
  ),
  Stage(
    'analyse',
    says='rank correlations of scores, overlaps of rules',
    sections=('analyse', 'strata'),
  ),
  Stage('mine', says="the demo's input", sections=('mine',)),
  Stage(
    'plan',
    says='--topology=v5e:4x4: memory, batch, hours of a pod, without the pod',
    loads_models=True,
    elsewhere=True,
    workdir='workdir/plan',  # leaves a page of numbers, wherever
    sections=('plan',),
    flags=(Flag('topology', 'plan.topology', 'Chips to plan for.'),),
  ),
):
  add(_stage)
