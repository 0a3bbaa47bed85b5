"""The plan stage: what scoring and fine-tuning would need on a pod.

Needs no accelerator and no weights: sizes come from config.json, lengths from
the user's own data, memory and collectives from the real step, compiled for the
topology.
"""

import ml_collections

from qaq_jax.finetune import batches
from qaq_jax.models import sharding
from qaq_jax.planner import (
  score_plan,
  text,
  topology,
  train_plan,
)
from qaq_jax.planner.footprint import Mesh
from qaq_jax.planner.options import Assumptions
from qaq_jax.runtime import console
from qaq_jax.scoring import kinds
from qaq_jax.scoring.options import ScoreOptions
from qaq_jax.stages import finetune, options, score
from qaq_jax.stages import surveys as surveys_lib
from qaq_jax.workdir import files
from qaq_jax.workdir.layout import WorkDir


def run(config: ml_collections.ConfigDict, workdir: WorkDir) -> dict:
  """Plans scoring, and fine-tuning where the config's stages have it.

  Prints the plans and writes them to plan.json of the work directory.

  Args:
    config: the resolved config; `config.plan` above all.
    workdir: prepared samples and surveys in it are used.

  Returns:
    Stage and model -> plan.

  Raises:
    ValueError: a field, topology or model cannot be used; says what to do.
  """
  c = config.plan
  if not c.topology:
    raise ValueError(
      'config.plan.topology is empty: say --topology=NAME, as in '
      + ', '.join(topology.EXAMPLES)
    )
  assumed = options.of(Assumptions, c)
  where = topology.describe(c.topology)
  console.say(text.header(where))
  mesh = _mesh(config.score.mesh, where)
  by_model: dict[str, dict] = {}
  result: dict[str, object] = {'topology': where.name, 'score': by_model}
  scored = [] if 'score' not in config.stages else list(config.models)
  surveys = surveys_lib.Surveys(config, workdir)
  for name in scored:
    found = score_plan.plan(
      _score_request(config, workdir, name, surveys), where, mesh, assumed
    )
    by_model[name] = found
    _say(f'score {name}', found)
  hours = [p['chip_hours'] for p in by_model.values() if 'chip_hours' in p]
  if len(hours) == len(scored) > 1:
    console.say(f'scoring with all models: {sum(hours):,.2f} chip-hours')
  if 'finetune' in config.stages:
    there = where
    if c.finetune_topology and c.finetune_topology != c.topology:
      there = topology.describe(c.finetune_topology)
      console.say(text.header(there))
    mesh = _mesh(config.finetune.mesh, there)
    found = train_plan.plan(
      _train_request(config, workdir, mesh, surveys), there, mesh, assumed
    )
    result['finetune'] = found | {'topology': there.name}
    _say('finetune', found)
  files.write_json(workdir.plan, result)
  console.say(f'wrote {workdir.plan}')
  return result


def _say(what, found):
  console.say()
  first, *rest = text.describe(found)
  console.say(f'{what}: {first}')
  for line in rest:
    console.say(line)


def _mesh(config, where) -> Mesh:
  return Mesh(*sharding.mesh_sizes(where.number, **config.to_dict()))


def _score_request(config, workdir, name, surveys) -> score_plan.Request:
  m = config.models[name]
  model = score.open_model(config, workdir, name, weights=False)
  return score_plan.Request(
    name=f'{name} ({m.path})',
    config=model.config,
    dtype=m.dtype,
    max_length=m.max_length or config.score.max_length,
    survey=surveys.of(name, model),
    options=options.of(ScoreOptions, config.score),
    kinds=kinds.wanted(config.score, config.score.terms),
    attention=config.score.attention,
    quantized=m.quantization,
  )


def _train_request(config, workdir, mesh, surveys) -> train_plan.Request:
  model = finetune.open_model(config, workdir, weights=False)
  samples, tokens = surveys.training(model)
  how = finetune.job_options(config)
  return train_plan.Request(
    name=finetune.start_of(config)['path'],
    config=model.config,
    options=how,
    layout=batches.Layout.of(how.fit, mesh.rows),
    samples=samples,
    tokens=tokens,
  )
