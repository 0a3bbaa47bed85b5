r"""QAQ on Magpie-Qwen2.5-Coder-Pro-300K, the paper's second code data set.

Differs from `warriorcoder.py` in the data alone:

  qaq run --config=configs/magpie_coder.py --workdir=runs/magpie

Paper row (arXiv 2603.12165): diff_high, 25%, DeepSeek-Coder-6.7B-Base, greedy
pass@1: HumanEval 71.95, HumanEval+ 65.24, MBPP 68.25, MBPP+ 56.35.
Expected here: 300K rows read from `instruction` and `response`, a quarter of
the eligible ones chosen.
"""

from qaq_jax import config as config_lib


def get_config(arg=None):
  """Options: `runlocal`: 64 rows with the embedded models."""
  arg = config_lib.parse_arg(arg, runlocal=False)
  c = config_lib.get_default()
  c.data.path = 'Magpie-Align/Magpie-Qwen2.5-Coder-Pro-300K-v0.1'
  # The records hold the same pair once more as `conversations`.
  c.data.columns.query = 'instruction'
  c.data.columns.answer = 'response'
  c.data.columns.id = 'uuid'
  config_lib.add_model(
    c,
    'strong',
    'deepseek-ai/deepseek-coder-6.7b-base',
    chat_template='deepseek-coder',
  )
  config_lib.add_model(c, 'weak', 'Qwen/Qwen3-0.6B')
  c.plan.topology = 'v5e:4x4'
  if arg.runlocal:
    config_lib.shrink(c)
  return c
