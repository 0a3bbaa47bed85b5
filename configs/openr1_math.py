r"""QAQ on OpenR1-Math-220k: the method outside code (arXiv 2603.12165).

  qaq run --config=configs/openr1_math.py --workdir=runs/openr1

Differs from `warriorcoder.py` in data, models, the reverse instruction and the
window: the answers are reasoning traces of thousands of tokens.

Paper row: strong Qwen2.5-Math-7B-Instruct, weak Qwen2.5-Math-1.5B-Instruct,
diff_high at 25% of the data set's `default` part. The models' context is 4,096
tokens, so this is the window here (ours: the paper does not state one).
Expected here: traces over the window get status too_long and are never chosen;
`--config.score.on_long=truncate_context` scores their beginnings instead.
"""

from qaq_jax import config as config_lib

# Ours; the paper publishes another wording for mathematics.
REVERSE_INSTRUCTION = (
  'Below is the solution of a mathematical problem. Write the problem that '
  'it solves. Reply with the problem only.\n\n{answer}'
)


def get_config(arg=None):
  """Options: `runlocal`: 64 rows with the embedded models."""
  arg = config_lib.parse_arg(arg, runlocal=False)
  c = config_lib.get_default()
  c.data.path = 'open-r1/OpenR1-Math-220k'
  c.data.name = 'default'
  c.data.columns.messages = 'messages'
  c.data.columns.id = 'uuid'
  config_lib.add_model(c, 'strong', 'Qwen/Qwen2.5-Math-7B-Instruct')
  config_lib.add_model(c, 'weak', 'Qwen/Qwen2.5-Math-1.5B-Instruct')
  c.score.max_length = 4096
  c.score.reverse_instruction = REVERSE_INSTRUCTION
  c.score.mesh.fsdp = 2  # 7.6B and rows of 4,096 tokens are too much for 16 GB
  c.plan.topology = 'v5e:4x4'
  if arg.runlocal:
    c.score.mesh.fsdp = 1
    config_lib.shrink(c)
  return c
