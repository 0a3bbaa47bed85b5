"""The command line: `qaq STAGE --config=FILE.py[:arg] --workdir=DIR`.

Kept short, so that everything else can be imported, called from a notebook
and tested. `python -m qaq_jax.main` is the same command.
"""

import os
import sys
import traceback

import jax
from absl import app, flags, logging
from ml_collections import config_flags

# transformers is here for tokenizers; that torch is missing is no news.
os.environ.setdefault('TRANSFORMERS_NO_ADVISORY_WARNINGS', '1')

from qaq_jax import pipeline  # noqa: E402
from qaq_jax.runtime import processes  # noqa: E402

_CONFIG = config_flags.DEFINE_config_file(
  'config',
  None,
  'Recipe, as in configs/demo.py:arg. Fields: --config.select.rule=ifd',
  lock_config=True,
)
_WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of all output.')
_ALLOW_CODE = flags.DEFINE_bool(
  'allow-code-execution',
  False,
  'Run programs that a model wrote (evaluate); see docs/evaluation.md.',
)
_TOPOLOGY = flags.DEFINE_string(
  'topology',
  None,
  'Chips to plan for, as in v5e:4x4; short for --config.plan.topology.',
)

_USAGE = """\
usage: qaq STAGE --config=FILE.py[:arg] --workdir=DIR [--config.field=value ...]

stages:
  run      all that the config lists
  prepare  input data -> prepared samples
  score    samples and models -> scores.parquet
  select   scores.parquet -> chosen samples
  finetune chosen samples -> finetune/model, trained and exported
  evaluate a model -> programs for HumanEval(+) and MBPP(+), and with
           --allow-code-execution what they are worth
  compare  what each rule is worth: fine-tunes on the choice of each
  report   report/index.html
  audit    what each rule lets through, by a label in the input
  analyse  rank correlations of scores, overlaps of rules
  mine     the demo's input
  plan     --topology=v5e:4x4: memory, batch, hours of a pod, without the pod

example:
  qaq run --config=configs/demo.py --workdir=workdir/demo

--config comes before its fields; qaq_jax/config.py lists them all."""


def main(argv: list[str]) -> None:
  """Runs one stage, or with `run` all that the config lists."""
  workdir = _WORKDIR.value
  if argv[1:] == ['plan']:  # leaves a page of numbers, wherever
    workdir = workdir or os.path.join('workdir', 'plan')
  if len(argv) != 2 or not (_CONFIG.value and workdir):
    sys.exit(f'qaq: error: a stage, --config and --workdir, please\n{_USAGE}')
  if argv[1] not in ('run', *pipeline.STAGES):
    sys.exit(f'qaq: error: there is no stage {argv[1]!r}\n{_USAGE}')
  # Also where it is False: a recipe of somebody else does not decide this.
  _CONFIG.value.evaluate.allow_code_execution = _ALLOW_CODE.value
  if argv[1] == 'plan':
    jax.config.update('jax_platforms', 'cpu')  # it uses no chip that is here
    if _TOPOLOGY.value:
      _CONFIG.value.plan.topology = _TOPOLOGY.value
  else:  # programs for chips that are elsewhere can't be read back
    pipeline.keep_programs()
  if not flags.FLAGS['verbosity'].present:
    logging.set_verbosity(logging.ERROR)  # jax says much at INFO
  watch = None
  try:
    watch = processes.start() if argv[1] != 'plan' else None
    pipeline.run(argv[1], _CONFIG.value, workdir, watch)
  except (
    ValueError,
    OSError,
    ImportError,
    RuntimeError,
    FloatingPointError,
  ) as e:
    if watch is not None:
      watch.fail(e)
    # What the user can mend is told in words; the stack trace is in run.log.
    sys.exit(f'qaq {argv[1]}: error: {e}')
  except KeyboardInterrupt as e:
    print(
      f'qaq {argv[1]}: interrupted; the same command goes on with what is on '
      'disk',
      file=sys.stderr,
    )
    if watch is not None:
      watch.fail(e, code=130)
    sys.exit(130)
  except BaseException as e:
    if watch is not None:  # the others would wait for this process
      traceback.print_exc()
      watch.fail(e)
    raise
  if watch is not None:
    watch.close()


def _parse(argv: list[str]) -> list[str]:
  """Parses flags; a misspelt field of the config is told without a trace."""
  try:
    return app.parse_flags_with_usage(argv)
  except AttributeError as e:
    cause = e.args[0]
    cause = cause.args[0] if isinstance(cause, Exception) else cause
    sys.exit(f'qaq: error: no such field of the config: {cause}')


def run() -> None:
  """Entry point of the `qaq` command."""
  if {'-h', '--help', 'help'} & set(sys.argv[1:]):
    print(_USAGE)
    return
  app.run(main, flags_parser=_parse)


if __name__ == '__main__':
  run()
