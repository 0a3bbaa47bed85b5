"""The evaluate stage: a model to programs, and programs to pass@k.

What it writes to WORKDIR/evaluate is told in `evaluation/job.py`.
"""

import pathlib

import jax
import ml_collections

from qaq_jax.encoding import chat
from qaq_jax.evaluation import benchmarks, job
from qaq_jax.evaluation.options import EvaluateOptions, Options, Timing
from qaq_jax.generation.options import Sampling
from qaq_jax.models import sharding
from qaq_jax.models.attention import choose as attention
from qaq_jax.stages import model as model_lib
from qaq_jax.stages import options
from qaq_jax.workdir.layout import WorkDir


def check(config: ml_collections.ConfigDict) -> None:
  """Refuses what no model can be evaluated with, or by."""
  c = config.evaluate
  if not c.benchmarks:
    raise ValueError('config.evaluate.benchmarks names none')
  for name in c.benchmarks:
    _file_of(c, name)
  _options(config)
  attention.check(c.attention)
  sharding.mesh_sizes(jax.device_count(), **c.mesh)


def run(config: ml_collections.ConfigDict, workdir: WorkDir) -> dict:
  """Generates programs for every benchmark; runs them where that is allowed.

  Args:
    config: the resolved config; `config.evaluate` above all.
    workdir: the work directory with a fine-tuned model, unless the config names
      another.

  Returns:
    Summary for the run log.

  Raises:
    ValueError: a file, the model or an option cannot be used, or what is in
      the work directory was made with other settings; says what to do.
    Refused: programs cannot be contained on this machine.
  """
  c = config.evaluate
  read = read_benchmarks(config, workdir)
  path = workdir.filled(c.path)
  if not path:
    path = str(workdir.path / config.finetune.folder / 'model')
    if not pathlib.Path(path).is_dir():
      raise ValueError(
        f'{path}: there is no fine-tuned model; run `qaq finetune`, or give '
        'config.evaluate.path'
      )
  return of_model(config, path, c.revision, read, workdir.evaluate)


def of_model(
  config: ml_collections.ConfigDict,
  path: str,
  revision: str,
  read: list[benchmarks.Benchmark],
  folder: pathlib.Path,
) -> dict:
  """Evaluates a model as `config.evaluate` says; see `job.evaluate`."""
  c = config.evaluate
  model = model_lib.open_model(path, revision, field='config.evaluate.path')
  return job.evaluate(
    model,
    read,
    folder,
    _options(config),
    mesh=sharding.make_mesh(**c.mesh),
    template=c.chat_template or chat.AUTO,
    system_prompt=c.system_prompt,
    date_string=config.score.date_string,
  )


def _options(config) -> EvaluateOptions:
  c = config.evaluate
  return options.of(
    EvaluateOptions,
    c,
    sampling=options.of(Sampling, c, seed=config.seed),
    execution=options.of(
      Options,
      c,
      timing=Timing(floor=c.test_seconds, factor=c.test_factor),
    ),
  )


def read_benchmarks(
  config: ml_collections.ConfigDict, workdir: WorkDir
) -> list[benchmarks.Benchmark]:
  """Reads what `config.evaluate.benchmarks` names.

  Raises:
    ValueError: one of them is not known or has no file that can be read.
  """
  c = config.evaluate
  return [
    benchmarks.read(name, workdir.filled(_file_of(c, name)), limit=c.limit)
    for name in c.benchmarks
  ]


def _file_of(c, name) -> str:
  if name not in benchmarks.NAMES:
    raise ValueError(
      f'config.evaluate.benchmarks: there is no {name!r}; there are: '
      + ', '.join(benchmarks.NAMES)
    )
  field = name.removesuffix('_plus')
  path = c.files[field]
  if not path:
    raise ValueError(
      f'config.evaluate.files.{field} is empty; {name} is read from a '
      f'published file: {benchmarks.PUBLISHED[name]}'
    )
  return path
