"""The command line: `qaq STAGE --config=FILE.py[:arg] --workdir=DIR`.

Kept short, so that everything else can be imported, called from a notebook
and tested. `python -m qaq_jax.main` is the same command.
"""

import sys

from absl import app, flags
from ml_collections import config_flags

from qaq_jax import pipeline

_CONFIG = config_flags.DEFINE_config_file(
    'config',
    None,
    'Recipe, as in configs/demo.py:arg. Fields: --config.select.rule=ifd',
    lock_config=True,
)
_WORKDIR = flags.DEFINE_string(
    'workdir', None, 'Folder of all output; gs:// and s3:// paths work.'
)


def main(argv: list[str]) -> None:
  """Runs one stage, or with `run` all that the config lists."""
  stages = ('run', *pipeline.STAGES)
  if len(argv) != 2 or argv[1] not in stages:
    raise app.UsageError(
        f'one stage, please: qaq {{{"|".join(stages)}}} '
        '--config=configs/demo.py --workdir=DIR'
    )
  try:
    pipeline.run(argv[1], _CONFIG.value, _WORKDIR.value)
  except (ValueError, OSError) as e:
    # What the user can mend is told in words; the stack trace is in the log.
    print(f'qaq {argv[1]}: error: {e}', file=sys.stderr)
    sys.exit(2)


def run() -> None:
  """Entry point of the `qaq` command."""
  flags.mark_flags_as_required(['config', 'workdir'])
  app.run(main)


if __name__ == '__main__':
  run()
