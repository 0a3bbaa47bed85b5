"""The finetune stage: chosen samples to a trained, exported model."""

import jax
import ml_collections

from qaq_jax.encoding import chat, encoder
from qaq_jax.finetune import job as job_lib
from qaq_jax.finetune import trackers
from qaq_jax.finetune.options import FitOptions, JobOptions
from qaq_jax.models import sharding
from qaq_jax.models.attention import choose as attention
from qaq_jax.runtime import console
from qaq_jax.stages import model as model_lib
from qaq_jax.stages import options, select, training_data
from qaq_jax.workdir.layout import WorkDir


def check(config: ml_collections.ConfigDict) -> None:
  """Refuses what no model can be trained with, and its data's selection."""
  c = config.finetune
  start_of(config)
  trackers.check(job_options(config).fit.trackers)
  attention.check(c.attention)
  sharding.mesh_sizes(jax.device_count(), **c.mesh)
  if c.data == 'selected':
    select.check(config)


def run(config: ml_collections.ConfigDict, workdir: WorkDir) -> dict:
  """Fine-tunes on the chosen samples and exports the model.

  Args:
    config: the resolved config; `config.finetune` above all.
    workdir: the work directory with prepared samples, and a selection where
      that is the data.

  Returns:
    Summary for the run log.

  Raises:
    ValueError: data, model or options cannot be used; says what to do.
  """
  job = make_job(config, workdir)
  data, origin = training_data.training_samples(config, workdir)
  train, validation = training_data.split(config, workdir, data)
  console.say(f'fine-tuning {job.model.source.path} on {origin}')
  folder = workdir.path / config.finetune.folder
  return job.run(train, folder, validation=validation)


def make_job(
  config: ml_collections.ConfigDict, workdir: WorkDir
) -> job_lib.Job:
  """Fine-tuning as the config describes it.

  Raises:
    ValueError: the start is not known or its files cannot be used.
  """
  return job_lib.Job(
    open_model(config, workdir),
    job_options(config),
    mesh=sharding.make_mesh(**config.finetune.mesh),
    **_encoding(config),
  )


def job_options(config: ml_collections.ConfigDict) -> JobOptions:
  """How a model is fine-tuned, as `config.finetune` says."""
  c = config.finetune
  return options.of(
    JobOptions, c, fit=options.of(FitOptions, c, seed=config.seed)
  )


def open_model(
  config: ml_collections.ConfigDict, workdir: WorkDir, *, weights: bool = True
) -> model_lib.Model:
  """The start; `weights` as `model.open_model` has it.

  Raises:
    ValueError: it cannot be used, or has no positions for the examples.
  """
  start = start_of(config)
  model = model_lib.open_model(
    workdir.filled(start['path']),
    start['revision'],
    field=start['field'],
    weights=weights,
  )
  length = config.finetune.max_length
  model.check_lengths({'config.finetune.max_length': length})
  return model


def make_encoder(
  config: ml_collections.ConfigDict, model: model_lib.Model
) -> encoder.Encoder:
  """The encoder of training examples, for a plan."""
  length = config.finetune.max_length
  return job_lib.make_encoder(model, length, **_encoding(config))


def _encoding(config) -> dict[str, str]:
  """Options of the encoder of training examples."""
  start = start_of(config)
  return {
    'template': start['chat_template'],
    'system_prompt': start['system_prompt'],
    'date_string': config.score.date_string,
  }


def start_of(config: ml_collections.ConfigDict) -> dict:
  """field, path, revision, chat_template, system_prompt of the start."""
  c = config.finetune
  name = config.roles.get(c.model) or c.model
  model = config.models.get(name)
  if model is None and not c.path:
    raise ValueError(
      f'config.finetune.model is {c.model!r}; it is a role or one of '
      f'config.models ({", ".join(config.models) or "none"}), or give '
      'config.finetune.path'
    )
  own = model if model is not None and not c.path else None
  return {
    'field': 'config.finetune.path' if c.path else f'config.models.{name}',
    'path': own.path if own else c.path,
    'revision': c.revision or (own.revision if own else ''),
    'chat_template': (
      c.chat_template or (own.chat_template if own else chat.AUTO)
    ),
    'system_prompt': (
      c.system_prompt
      or (own.system_prompt if own else '')
      or config.score.system_prompt
    ),
  }
