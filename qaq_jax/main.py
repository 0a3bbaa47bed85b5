"""The command line: `qaq STAGE --config=FILE.py[:arg] --workdir=DIR`.

Kept short, so that everything else can be imported, called from a notebook
and tested. `python -m qaq_jax.main` is the same command.
"""

import sys

from absl import app, flags, logging
from ml_collections import config_flags

from qaq_jax import __version__
from qaq_jax.stages import registry


def main(argv: list[str]) -> None:
  """Runs one stage, or with `run` all that the config lists."""
  name, values = ''.join(argv[1:2]), flags.FLAGS
  workdir = values.workdir or registry.default_workdir(name)
  if len(argv) != 2 or not (values.config and workdir):
    wanted = f'a stage, --config and --workdir, please\n{registry.usage()}'
    sys.exit(f'qaq: error: {wanted}')
  short = {flag.field: values[flag.name].value for flag in registry.flags()}
  values.config.update_from_flattened_dict(
    {field: value for field, value in short.items() if value is not None}
  )
  from qaq_jax import pipeline  # loads jax, which --help can do without

  pipeline.command(name, values.config, workdir, sys.argv[1:])


def _parse(argv: list[str]) -> list[str]:
  """Parses flags; a misspelt field of the config is told without a trace."""
  config_flags.DEFINE_config_file('config', None, 'Recipe.', lock_config=True)
  flags.DEFINE_string('workdir', None, 'Folder of all output.')
  for flag in registry.flags():
    if flag.default is None:
      flags.DEFINE_string(flag.name, None, flag.says)
    else:
      flags.DEFINE_bool(flag.name, flag.default, flag.says)
  try:
    return app.parse_flags_with_usage(argv)
  except AttributeError as e:
    cause = getattr(e.args[0], 'args', e.args)[0]
    sys.exit(f'qaq: error: no such field of the config: {cause}')


def run() -> None:
  """Entry point of the `qaq` command."""
  if {'-h', '--help', 'help'} & set(sys.argv[1:]):
    print(registry.usage())
  elif '--version' in sys.argv[1:]:
    print(f'qaq_jax {__version__}')
  else:
    logging.set_verbosity(logging.ERROR)  # jax says much at INFO
    app.run(main, flags_parser=_parse)


if __name__ == '__main__':
  run()
