r"""A mixture of experts as the strong model: Qwen3-Coder-30B-A3B-Instruct.

  qaq plan --config=configs/qwen3_coder_30b.py:data=pairs.jsonl
  qaq run --config=configs/qwen3_coder_30b.py:data=pairs.jsonl --workdir=RUN

Differs from `warriorcoder.py` in the models, Qwen3-0.6B beside it, and in the
mesh: 61 GB of bfloat16 weights are split over 4 chips. A token meets 3.3 of its
30.5 billion parameters, so a chip scores more tokens than with a dense 6.7B.

The paper (arXiv 2603.12165) has no such row; its strong model is 6.7B.
Expected: `selected.jsonl` with a quarter of the eligible rows, in your schema.
"""

from qaq_jax import config as config_lib


def get_config(arg=None):
  """Options: `data=PATH`; `runlocal`: 64 rows with the embedded models."""
  arg = config_lib.parse_arg(arg, runlocal=False, data='')
  c = config_lib.get_default()
  c.data.path = arg.data
  config_lib.add_model(c, 'strong', 'Qwen/Qwen3-Coder-30B-A3B-Instruct')
  config_lib.add_model(c, 'weak', 'Qwen/Qwen3-0.6B')
  c.score.mesh.fsdp = 4
  c.plan.topology = 'v5p:2x2x2'
  if arg.runlocal:
    c.score.mesh.fsdp = 1
    config_lib.shrink(c)
  return c
