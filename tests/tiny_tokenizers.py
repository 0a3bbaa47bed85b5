"""Tiny tokenizers of every kind that the supported families use.

Trained at run time on a few lines; each is a folder as a checkpoint has it.
"""

import json
import pathlib

import tokenizers
from tokenizers import (
  AddedToken,
  Regex,
  decoders,
  models,
  normalizers,
  pre_tokenizers,
  processors,
  trainers,
)

CORPUS = [
  'Write a function that adds two numbers.\nHello, world! What is this?',
  'def add(a, b):\n    return a + b\n\n\nprint(add(1, 2))',
  'Below is a piece of code. Write the instruction for it.\n\n',
  'user system assistant model You are a helpful assistant.',
  'for (int i = 0; i < 10; i++) {\n  sum += i;\n}',
  '### Instruction:\n### Response:\n[INST] [/INST]',
] * 3

# Added tokens that are not flagged special, as Qwen and others have them.
ORDINARY = ['<think>', '</think>', '<tool_call>', '<|fim_middle|>']


def byte_level(
  folder,
  *,
  special,
  bos=None,
  eos=None,
  ordinary=ORDINARY,
  add_bos=False,
  ignore_merges=False,
  template=None,
  pattern=None,
):
  """Byte-level BPE: GPT-2, Qwen, StarCoder2, Llama 3, DeepSeek-Coder."""
  model = models.BPE(ignore_merges=ignore_merges)
  tokenizer = tokenizers.Tokenizer(model)
  if pattern:
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
      [
        pre_tokenizers.Split(Regex(pattern), 'isolated'),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
      ]
    )
  else:
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = decoders.ByteLevel()
  tokenizer.train_from_iterator(
    CORPUS,
    trainers.BpeTrainer(
      vocab_size=420,
      initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
      show_progress=False,
    ),
  )
  tokenizer.add_special_tokens(
    [AddedToken(t, normalized=False) for t in special]
  )
  tokenizer.add_tokens([AddedToken(t, normalized=False) for t in ordinary])
  if add_bos:
    tokenizer.post_processor = processors.TemplateProcessing(
      single=f'{bos} $A', special_tokens=[(bos, tokenizer.token_to_id(bos))]
    )
  return _save(tokenizer.to_str(), folder, bos, eos, template)


def sentencepiece(
  folder,
  *,
  prefix,
  special=('<unk>', '<s>', '</s>'),
  bos='<s>',
  eos='</s>',
  ordinary=(),
  add_bos=False,
  template=None,
):
  """BPE over ▁ with byte fallback: Llama 2, Mistral (prefix), Gemma.

  Args:
    folder: where to save.
    prefix: how a text gets its dummy space: 'prepend' (a normalizer),
      'metaspace' (a pre-tokenizer, only at the start) or None.
    special, bos, eos: special tokens.
    ordinary: added tokens that are not special.
    add_bos: whether the post-processor adds BOS.
    template: chat template of the tokenizer's own.
  """
  tokenizer = tokenizers.Tokenizer(
    models.BPE(unk_token=special[0], fuse_unk=True, byte_fallback=True)
  )
  tokenizer.normalizer = normalizers.Replace(' ', '▁')
  size = [f'<0x{i:02X}>' for i in range(256)]
  tokenizer.train_from_iterator(
    CORPUS,
    trainers.BpeTrainer(
      vocab_size=700,
      special_tokens=[*special, *size],
      show_progress=False,
      limit_alphabet=60,
    ),
  )
  spec = json.loads(tokenizer.to_str())
  spec['added_tokens'] = [
    t for t in spec['added_tokens'] if t['content'] in special
  ]
  replace = {'type': 'Replace', 'pattern': {'String': ' '}, 'content': '▁'}
  decode = [
    {'type': 'Replace', 'pattern': {'String': '▁'}, 'content': ' '},
    {'type': 'ByteFallback'},
    {'type': 'Fuse'},
  ]
  spec['normalizer'] = replace
  if prefix == 'prepend':
    spec['normalizer'] = {
      'type': 'Sequence',
      'normalizers': [{'type': 'Prepend', 'prepend': '▁'}, replace],
    }
  elif prefix == 'metaspace':
    spec['normalizer'] = None
    spec['pre_tokenizer'] = {
      'type': 'Metaspace',
      'replacement': '▁',
      'prepend_scheme': 'first',
      'split': False,
    }
  if prefix:
    decode.append({'type': 'Strip', 'content': ' ', 'start': 1, 'stop': 0})
  spec['decoder'] = {'type': 'Sequence', 'decoders': decode}
  tokenizer = tokenizers.Tokenizer.from_str(json.dumps(spec))
  tokenizer.add_tokens([AddedToken(t, normalized=False) for t in ordinary])
  if add_bos:
    tokenizer.post_processor = processors.TemplateProcessing(
      single=f'{bos} $A', special_tokens=[(bos, tokenizer.token_to_id(bos))]
    )
  return _save(tokenizer.to_str(), folder, bos, eos, template)


def _save(text, folder, bos, eos, template):
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  (folder / 'tokenizer.json').write_text(text)
  config = {'tokenizer_class': 'PreTrainedTokenizerFast'}
  for name, value in (
    ('bos_token', bos),
    ('eos_token', eos),
    ('chat_template', template),
  ):
    if value:
      config[name] = value
  (folder / 'tokenizer_config.json').write_text(json.dumps(config))
  return str(folder)


def make(folder, name, **options):
  """Builds the tokenizer of a style; `STYLES` lists the names."""
  return STYLES[name](pathlib.Path(folder) / name, **options)


_GPT2 = r"'s|'t| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_QWEN = (
  r'[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+'
  r'|\s+(?!\S)|\s+'
)
_DEEPSEEK_BOS = '<｜begin▁of▁sentence｜>'
_DEEPSEEK_EOS = '<｜end▁of▁sentence｜>'

STYLES = {
  'gpt2': lambda f, **o: byte_level(
    f,
    special=['<|endoftext|>'],
    bos='<|endoftext|>',
    eos='<|endoftext|>',
    pattern=_GPT2,
    **o,
  ),
  'qwen': lambda f, **o: byte_level(
    f,
    special=['<|endoftext|>', '<|im_start|>', '<|im_end|>'],
    eos='<|endoftext|>',
    pattern=_QWEN,
    **o,
  ),
  'deepseek': lambda f, **o: byte_level(
    f,
    special=[_DEEPSEEK_BOS, _DEEPSEEK_EOS, '<|EOT|>'],
    bos=_DEEPSEEK_BOS,
    eos=_DEEPSEEK_EOS,
    add_bos=True,
    ordinary=['õ', '<｜fim▁hole｜>', '<think>'],
    **o,
  ),
  'llama3': lambda f, **o: byte_level(
    f,
    special=[
      '<|begin_of_text|>',
      '<|start_header_id|>',
      '<|end_header_id|>',
      '<|eot_id|>',
    ],
    bos='<|begin_of_text|>',
    eos='<|eot_id|>',
    add_bos=True,
    ignore_merges=True,
    pattern=_QWEN,
    **o,
  ),
  'llama2': lambda f, **o: sentencepiece(
    f, prefix='prepend', add_bos=True, ordinary=['<think>'], **o
  ),
  'mistral': lambda f, **o: sentencepiece(
    f, prefix='metaspace', add_bos=True, ordinary=['<think>'], **o
  ),
  'gemma': lambda f, **o: sentencepiece(
    f,
    prefix=None,
    bos='<bos>',
    eos='<eos>',
    add_bos=True,
    special=('<unk>', '<bos>', '<eos>', '<start_of_turn>', '<end_of_turn>'),
    ordinary=['\n\n', '▁▁▁', '<think>', '<table>'],
    **o,
  ),
}

# The shipped template in each style, and how its tokenizer is made.
TEMPLATE_OF = {
  'gpt2': 'plain',
  'qwen': 'chatml',
  'deepseek': 'deepseek-coder',
  'llama3': 'llama3',
  'llama2': 'mistral',
  'mistral': 'mistral',
  'gemma': 'gemma',
}
