"""The mine stage: the demo's input."""

import ml_collections

from qaq_jax.demo import defects
from qaq_jax.runtime import console
from qaq_jax.workdir.layout import WorkDir


def run(config: ml_collections.ConfigDict, workdir: WorkDir) -> dict:
  """The demo's input: mined pairs with planted defects -> data.path."""
  info = defects.write_demo_data(
    workdir.filled(config.data.path),
    rows=config.mine.rows,
    shares=config.mine.defects.to_dict(),
    seed=config.seed,
    held_out=config.mine.held_out,
    held_out_path=workdir.held_out,
  )
  console.say(f'mined {info["source"]}')
  planted = ', '.join(f'{n} {name}' for name, n in info['defects'].items())
  console.say(
    f'kept {info["rows"]} pairs (hash {info["content_hash"]}): {planted}'
  )
  if info['held_out']:
    console.say(f'held out {info["held_out"]} other pairs: {workdir.held_out}')
  return info
