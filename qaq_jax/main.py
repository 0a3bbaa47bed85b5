"""The command line: `qaq STAGE --config=FILE.py[:arg] --workdir=DIR`.

Kept short, so that everything else can be imported, called from a notebook
and tested. `python -m qaq_jax.main` is the same command.
"""

import os
import sys

from absl import app, flags, logging
from ml_collections import config_flags

import qaq_jax
from qaq_jax.stages import registry


def main(argv: list[str]) -> None:
  """Runs one stage, or with `run` all that the config lists."""
  name, given = argv[1] if len(argv) == 2 else '', sys.argv[1:]
  config = flags.FLAGS.config
  workdir = flags.FLAGS.workdir or registry.default_workdir(name)
  if not (name and config and workdir):
    sys.exit(
      'qaq: error: a stage, --config and --workdir, please\n' + registry.usage()
    )
  given.remove(name)
  for flag in registry.flags():
    if flags.FLAGS[flag.name].value is not None:
      config.update_from_flattened_dict(
        {flag.field: flags.FLAGS[flag.name].value}
      )
  if not flags.FLAGS['verbosity'].present:
    logging.set_verbosity(logging.ERROR)  # jax says much at INFO
  # transformers is here for tokenizers; that torch is missing is no news.
  os.environ.setdefault('TRANSFORMERS_NO_ADVISORY_WARNINGS', '1')
  from qaq_jax import pipeline  # loads jax
  from qaq_jax.runtime import processes

  try:
    pipeline.command(name, config, workdir, given)
  except processes.MENDABLE as e:
    sys.exit(f'qaq {name}: error: {e}')
  except KeyboardInterrupt:
    sys.stderr.write(f'qaq {name}: {processes.INTERRUPTED}\n')
    sys.exit(130)


def _parse(argv: list[str]) -> list[str]:
  """Parses flags; a misspelt field of the config is told without a trace."""
  config_flags.DEFINE_config_file('config', None, 'Recipe.', lock_config=True)
  flags.DEFINE_string('workdir', None, 'Folder of all output.')
  for flag in registry.flags():
    define = flags.DEFINE_string if flag.default is None else flags.DEFINE_bool
    define(flag.name, flag.default, flag.says)
  try:
    return app.parse_flags_with_usage(argv)
  except AttributeError as e:
    cause = e.args[0]
    cause = cause.args[0] if isinstance(cause, Exception) else cause
    sys.exit(f'qaq: error: no such field of the config: {cause}')


def run() -> None:
  """Entry point of the `qaq` command."""
  if {'-h', '--help', 'help'} & set(sys.argv[1:]):
    print(registry.usage())
  elif '--version' in sys.argv[1:]:
    print(f'qaq_jax {qaq_jax.__version__}')
  else:
    app.run(main, flags_parser=_parse)


if __name__ == '__main__':
  run()
