r"""A larger strong model: Qwen2.5-Coder-32B beside the 0.5B one.

  qaq plan --config=configs/qwen_coder_32b.py:data=pairs.jsonl
  qaq run --config=configs/qwen_coder_32b.py:data=pairs.jsonl --workdir=runs/32b

Differs from `warriorcoder.py` in the models, which share a tokenizer, and in
the mesh: 65 GB of bfloat16 weights are split over 4 chips.

The paper (arXiv 2603.12165) has no such row; its strong model is 6.7B.
Expected: `selected.jsonl` with a quarter of the eligible rows, in your schema.
"""

from qaq_jax import config as config_lib


def get_config(arg=None):
  """Options: `data=PATH`; `runlocal`: 64 rows with the embedded models."""
  arg = config_lib.parse_arg(arg, runlocal=False, data='')
  c = config_lib.get_default()
  c.data.path = arg.data
  config_lib.add_model(c, 'strong', 'Qwen/Qwen2.5-Coder-32B')
  config_lib.add_model(c, 'weak', 'Qwen/Qwen2.5-Coder-0.5B')
  c.score.mesh.fsdp = 4
  c.plan.topology = 'v5p:2x2x4'
  if arg.runlocal:
    c.score.mesh.fsdp = 1
    config_lib.shrink(c)
  return c
