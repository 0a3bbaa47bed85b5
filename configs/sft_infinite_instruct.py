r"""Fine-tuning as in Infinite-Instruct (arXiv 2505.23177): any start, any data.

  qaq run --config=configs/sft_infinite_instruct.py:data=pairs.jsonl,\
model=Qwen/Qwen2.5-Coder-7B --workdir=runs/infinite

The paper's figures: learning rate 2e-5, 3 epochs, batches of 512, cosine, loss
on the response alone. Ours, since it gives none: warm-up over 3% of the updates
and samples of up to 2,048 tokens. `data` is yours.
Expected: the exported model in WORKDIR/finetune/model.
"""

from qaq_jax import config as config_lib


def get_config(arg=None):
  """Options: `data=PATH`, `model=PATH`, `template=NAME`, `runlocal`."""
  arg = config_lib.parse_arg(
    arg,
    data='',
    model='Qwen/Qwen2.5-Coder-7B',
    template='auto',
    runlocal=False,
  )
  c = config_lib.get_default()
  c.stages = ('prepare', 'finetune')
  c.data.path = arg.data
  config_lib.add_model(c, 'strong', arg.model, chat_template=arg.template)
  c.roles.weak = ''  # nothing is scored
  c.finetune.data = 'all'
  c.finetune.batch_size = 512
  c.finetune.epochs = 3
  c.finetune.optimizer.learning_rate = 2e-5
  c.finetune.optimizer.schedule = 'cosine'
  c.plan.topology = 'v5p:2x2x2'
  if arg.runlocal:
    config_lib.shrink(c)
  return c
