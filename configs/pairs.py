r"""Your own pairs, your own two checkpoints.

  qaq run --workdir=runs/mine --config=configs/pairs.py:data=pairs.jsonl,\
strong=Qwen/Qwen2.5-Coder-7B-Instruct,weak=Qwen/Qwen2.5-Coder-0.5B-Instruct

`data` is whatever `config.data.path` takes, `strong` and `weak` are checkpoint
folders or hub ids. Everything else is the default: the paper's method and
share (arXiv 2603.12165: diff_high, 25%) in bfloat16. A base model borrows a
chat template: `--config.models.strong.chat_template=chatml`, or `plain`.
Expected: `selected.jsonl` with a quarter of the eligible rows, in your schema.
"""

from qaq_jax import config as config_lib


def get_config(arg=None):
  """Options: `data`, `strong`, `weak`, `dtype`; `runlocal`: 64 rows, tiny."""
  arg = config_lib.parse_arg(
    arg, runlocal=False, data='', strong='', weak='', dtype='bfloat16'
  )
  c = config_lib.get_default()
  c.data.path = arg.data
  for name in ('strong', 'weak'):
    config_lib.add_model(c, name, arg[name], dtype=arg.dtype)
  if arg.runlocal:
    config_lib.shrink(c)
  return c
