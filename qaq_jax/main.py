"""The command line: `qaq STAGE --config=FILE.py[:arg] --workdir=DIR`.

Kept short, so that everything else can be imported, called from a notebook
and tested. `python -m qaq_jax.main` is the same command.
"""

import sys

from absl import app, flags, logging

from qaq_jax import __version__
from qaq_jax.stages import registry


def main(argv: list[str]) -> None:
  """Runs one stage, or with `run` all that the config lists."""
  from qaq_jax import recipe  # not for --help

  name, values = ''.join(argv[1:2]), flags.FLAGS
  workdir = values.workdir or registry.default_workdir(name)
  if len(argv) != 2 or not (values.config and workdir):
    wanted = f'a stage, --config and --workdir, please\n{registry.usage()}'
    sys.exit(f'qaq: error: {wanted}')
  recipe.override(values.config, values)
  from qaq_jax import pipeline

  pipeline.command(name, values.config, workdir, sys.argv[1:])


def _help(words: list[str]) -> str:
  """That of the stage among the words, or of all of it."""
  for stage in map(registry.STAGES.get, words):
    if stage and stage.sections:
      from qaq_jax import config

      return f'{registry.usage_of(stage)}\n{config.describe(*stage.sections)}'
  return registry.usage()


def run() -> None:
  """Entry point of the `qaq` command."""
  words = sys.argv[1:]
  if {'-h', '--help', 'help'} & set(words):
    print(_help(words))
  elif '--version' in words:
    print(f'qaq_jax {__version__}')
  else:
    from qaq_jax import config, recipe

    logging.set_verbosity(logging.ERROR)  # jax says much at INFO
    try:
      app.run(main, flags_parser=recipe.parse)
    except config.WrongWord as e:
      sys.exit(f'qaq: error: {e}')


if __name__ == '__main__':
  run()
