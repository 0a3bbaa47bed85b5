r"""The embedded default: real pairs with planted defects, two tiny models.

  qaq run --config=configs/demo.py --workdir=workdir/demo      (or: make demo)

Needs no download. The pairs are mined at run time from the Python standard
library, numpy and jax; the models are trained by this project
(configs/train_demo.py). They are a thousandth of the size of the models of the
paper (arXiv 2603.12165), so this shows the machinery and the direction of its
effects, not the paper's figures; docs/demo_models.md says what holds.

Expected: diff_high and rmi_top let through almost none of the swapped and the
boilerplate answers, of which a random quarter lets through a quarter; rmi_top
keeps nearly all echoes, rmi_window almost none. After that, on the same work
directory,

  qaq finetune --config=configs/demo.py --workdir=workdir/demo
  qaq evaluate --config=configs/demo.py --workdir=workdir/demo \
      --allow-code-execution
  qaq score --config=configs/demo.py:finetuned --workdir=workdir/demo
  qaq analyse --config=configs/demo.py:finetuned --workdir=workdir/demo

train the strong model on the chosen quarter (a minute or two), run what it
writes for ten toy tasks, and correlate its RMI with that from before.
"""

from qaq_jax import config as config_lib


def get_config(arg=None):
  """Options: `runlocal`: 200 rows; `rows=N`; `finetuned`: score it too."""
  arg = config_lib.parse_arg(arg, runlocal=False, rows=2000, finetuned=False)
  c = config_lib.get_default()
  c.stages = ('mine', 'prepare', 'score', 'select', 'report', 'audit')
  config_lib.use_demo(c, rows=200 if arg.runlocal else arg.rows)
  if arg.finetuned:
    config_lib.add_model(
      c,
      'finetuned',
      '{workdir}/finetune/model',
      dtype='float32',
      chat_template='plain',
    )
  c.audit.label = 'defect'
  c.finetune.tokens_per_device = 512  # one row at a time: fastest on a CPU
  c.finetune.validation_rows = 50
  c.evaluate.benchmarks = ('demo_tasks',)
  c.evaluate.files.demo_tasks = config_lib.embedded_tasks()
  c.evaluate.chat_template = 'plain'
  c.evaluate.prompt = 'base'
  c.evaluate.dtype = 'float32'
  c.evaluate.max_new_tokens = 128
  return c
