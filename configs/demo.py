r"""The embedded default: real pairs with planted defects, two tiny models.

  qaq run --config=configs/demo.py --workdir=workdir/demo      (or: make demo)

Needs no download. The pairs are mined at run time from the Python standard
library, numpy and jax; the models are trained by this project
(configs/train_demo.py). They are a thousandth of the size of the models of the
paper (arXiv 2603.12165), so this shows the machinery and the direction of its
effects, not the paper's figures; docs/demo_models.md says what holds.

Expected: diff_high and rmi_top let through almost none of the swapped and the
boilerplate answers, of which a random quarter lets through a quarter; rmi_top
keeps nearly all echoes, rmi_window almost none.
"""

from qaq_jax import config as config_lib


def get_config(arg=None):
  """Options: `runlocal`: 200 rows; `rows=N`."""
  arg = config_lib.parse_arg(arg, runlocal=False, rows=2000)
  c = config_lib.get_default()
  c.stages = ('mine', 'prepare', 'score', 'select', 'report', 'audit')
  c.mine.rows = 200 if arg.runlocal else arg.rows
  for defect in ('swapped', 'nonsense', 'echo', 'cut_off', 'boilerplate'):
    c.mine.defects[defect] = 0.06
  c.data.path = '{workdir}/demo.jsonl'
  for name in ('strong', 'weak'):
    config_lib.add_model(
        c, name, config_lib.embedded_model(name), dtype='float32',
        chat_template='plain',
    )
  c.score.max_length = 1024
  c.score.max_shapes = 8  # compiling takes longer than the padding saves
  # The words with which the models were trained (qaq_jax/demo/corpus.py).
  c.score.reverse_instruction = '{answer}\n# doc'
  c.audit.label = 'defect'
  return c
