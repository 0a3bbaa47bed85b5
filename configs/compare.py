r"""What each rule is worth: fine-tune on its choice, compare held-out losses.

  qaq run --config=configs/compare.py --workdir=workdir/compare

The demo's 2,000 mined pairs with planted defects; from one start, the demo's
strong model, one fine-tuning run per rule, budget and seed, with equal
settings; judged by the loss on the answers of 400 clean pairs that are in no
training set. Tiny models solve no HumanEval task, so pass@1 is left out.

Killed, it goes on where it was; a cell that stands is not computed again. With
your own data and models, set `data.path`, `compare.held_out` and the models,
and add lines to the table.

The paper (arXiv 2603.12165) compares pass@1 of a 6.7B model: 25% by diff_high
as good as all data, ifd below random. Expected here, in less than an hour on
one core, otherwise: ifd and rmi_window at or below the loss of random,
diff_high and rmi_top, which keep the planted echoes, above it; the README has
the table.
"""

from qaq_jax import config as config_lib

_SEEDS = 3


def get_config(arg=None):
  """Options: `runlocal`: 200 rows, three lines, two updates; `rows=N`."""
  arg = config_lib.parse_arg(arg, runlocal=False, rows=2000)
  c = config_lib.get_default()
  c.stages = ('mine', 'prepare', 'score', 'select', 'compare')
  config_lib.use_demo(c, rows=200 if arg.runlocal else arg.rows)
  c.mine.held_out = 40 if arg.runlocal else 400
  c.finetune.tokens_per_device = 2048
  c.compare.held_out = '{workdir}/held_out.jsonl'
  c.compare.table = (
    ('all', 'share', 1.0, _SEEDS),
    *(
      (rule, 'share', 0.25, _SEEDS)
      for rule in (
        'random',
        'length_matched',
        'ifd',
        'rmi_top',
        'rmi_window',
        'diff_high',
        'diff_low',
      )
    ),
    *(
      (rule, 'token_share', 0.25, _SEEDS)
      for rule in ('random', 'ifd', 'diff_high')
    ),
    *(
      (rule, 'share', 0.25, 1)
      for rule in ('sum_high', 'sum_low', 'length_long', 'ppl_window', 'r_ifd')
    ),
    ('drop_low', 'share', 0.75, 1),
  )
  if arg.runlocal:
    c.compare.table = (
      ('random', 'share', 0.25, 2),
      ('diff_high', 'share', 0.25, 1),
      ('random', 'token_share', 0.25, 1),
    )
    c.finetune.max_steps = 2
  return c
