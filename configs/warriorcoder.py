r"""QAQ on WarriorCoder, the paper's main experiment (arXiv 2603.12165).

Command, on any mesh that holds 6.7B parameters in bfloat16 (13.4 GB):

  qaq run --config=configs/warriorcoder.py:data=warriorcoder.jsonl \
      --workdir=runs/warriorcoder

What a pod would need, before there is one (docs/planning.md):

  qaq plan --config=configs/warriorcoder.py:data=warriorcoder.jsonl

The pairs of WarriorCoder (arXiv 2412.17395) were never released: `data` is
your own reproduction, in any format that the tool reads. The paper's has
329K pairs, about 310K of them under 2,048 tokens.

Paper row: diff_high, 25%, fine-tuned DeepSeek-Coder-6.7B-Base, greedy pass@1:
HumanEval 77.44, HumanEval+ 71.95, MBPP 71.43, MBPP+ 58.73 (all data: 78.05,
72.56, 71.69, 59.52).
Expected here: about 310K rows with status ok and 77K chosen; Spearman of RMI
and IFD near 0.25, overlap of diff_high and sum_high near 14%.
"""

from qaq_jax import config as config_lib


def get_config(arg=None):
  """Options: `data=PATH`; `runlocal`: 64 rows with the embedded models."""
  arg = config_lib.parse_arg(arg, runlocal=False, data='')
  c = config_lib.get_default()
  c.data.path = arg.data
  config_lib.add_model(
    c,
    'strong',
    'deepseek-ai/deepseek-coder-6.7b-base',
    # A base model: it borrows its instruct sibling's turns.
    chat_template='deepseek-coder',
  )
  config_lib.add_model(c, 'weak', 'Qwen/Qwen3-0.6B')
  c.plan.topology = 'v5e:4x4'
  if arg.runlocal:
    config_lib.shrink(c)
  return c
