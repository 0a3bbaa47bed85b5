"""Where texts end, and the prompts that they follow."""

import json

import numpy as np
import pytest
import tiny_models
import tiny_tokenizers

from qaq_jax.data.types import Sample
from qaq_jax.encoding import encoder as encoder_lib
from qaq_jax.encoding import examples, prompts, tokenization
from qaq_jax.generation import stopping
from qaq_jax.models.hf.read_config import read_config
from qaq_jax.models.hf.source import ModelSource

TEXT = 'def add(a, b):\n    return a + b\n\n\nprint(add(1, 2))\nHello, world!'


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
  root = tmp_path_factory.mktemp('tokenizers')
  return {
    name: tiny_tokenizers.make(root, name) for name in tiny_tokenizers.STYLES
  }


@pytest.mark.parametrize('style', tiny_tokenizers.STYLES)
def test_texts_are_cut_before_every_possible_string(folders, style):
  """Any stretch of the text, so also those inside of and across tokens."""
  tokenizer = tokenization.load(folders[style])
  ids = tokenizer.plain.encode(TEXT).tolist()
  assert stopping.text_of(tokenizer, ids) == TEXT
  for start in range(0, len(TEXT), 7):
    for length in (1, 4, 11):
      string = TEXT[start : start + length]
      number, text = stopping.cut(tokenizer, ids, [string])
      assert text == TEXT[: TEXT.index(string)]
      assert string in stopping.text_of(tokenizer, ids[:number])
      assert string not in stopping.text_of(tokenizer, ids[: number - 1])


def test_the_first_complete_string_counts(folders):
  tokenizer = tokenization.load(folders['qwen'])
  ids = tokenizer.plain.encode(TEXT).tolist()
  _, text = stopping.cut(tokenizer, ids, ['\nHello', '\nprint', 'zzz'])
  assert text == TEXT[: TEXT.index('\nprint')]
  assert stopping.cut(tokenizer, ids, ['zzz']) is None
  # Known to be in the later part.
  at = len(tokenizer.plain.encode(TEXT[: TEXT.index('print')])) - 2
  assert stopping.cut(tokenizer, ids, ['print'], at) == stopping.cut(
    tokenizer, ids, ['print']
  )


def test_of_strings_that_end_together_the_longest_is_cut(folders):
  tokenizer = tokenization.load(folders['qwen'])
  ids = tokenizer.plain.encode(TEXT).tolist()
  for strings in (['rint', 'print'], ['print', 'rint']):
    _, text = stopping.cut(tokenizer, ids, strings)
    assert text == TEXT[: TEXT.index('print')]


def test_a_string_of_bytes_that_several_tokens_spell(folders):
  tokenizer = tokenization.load(folders['qwen'])
  ids = tokenizer.plain.encode('aé漢b').tolist()
  number, text = stopping.cut(tokenizer, ids, ['漢'])
  assert (number, text) == (len(ids) - 1, 'aé')


def test_special_tokens_are_not_text_and_stop_by_id(folders):
  tokenizer = tokenization.load(folders['qwen'])
  end = tokenizer.hf.convert_tokens_to_ids('<|im_end|>')
  assert stopping.split_markers(tokenizer, ['\n\n', '<|im_end|>']) == (
    (end,),
    ('\n\n',),
  )
  ids = [*tokenizer.plain.encode('a b'), end]
  assert stopping.text_of(tokenizer, ids) == 'a b'
  with pytest.raises(ValueError, match='is empty'):
    stopping.split_markers(tokenizer, ['x', ''])


def test_stop_ids_of_every_file(folders, tmp_path):
  tokenizer = tokenization.load(folders['qwen'])
  end_of_text, end_of_turn = tokenizer.hf.convert_tokens_to_ids(
    ['<|endoftext|>', '<|im_end|>']
  )
  encoder = encoder_lib.Encoder(folders['qwen'], template='chatml')
  assert stopping.stop_ids(tokenizer) == (end_of_text,)
  both = tuple(sorted((end_of_text, end_of_turn)))
  assert stopping.stop_ids(tokenizer, encoder=encoder) == both
  config = read_config(
    tiny_models.hf_config('qwen2') | {'eos_token_id': [5, 3]}
  )
  assert stopping.stop_ids(tokenizer, config) == (3, 5, end_of_text)
  source = ModelSource(str(tmp_path), None, None, tmp_path)
  assert stopping.stop_ids(tokenizer, source=source) == (end_of_text,)
  path = tmp_path / 'generation_config.json'
  path.write_text(json.dumps({'eos_token_id': [end_of_turn, 3]}))
  assert stopping.stop_ids(tokenizer, source=source) == (3, *both)
  path.write_text('[')
  with pytest.raises(ValueError, match='generation_config.json'):
    stopping.stop_ids(tokenizer, source=source)


@pytest.mark.parametrize('style', tiny_tokenizers.STYLES)
def test_text_prompts_are_as_the_tokenizer_encodes_them(folders, style):
  tokenizer = tokenization.load(folders[style])
  ids = prompts.text_prompt(tokenizer, TEXT)
  assert ids.tolist() == tokenizer.hf(TEXT).input_ids
  assert ids.dtype == np.int32


@pytest.mark.parametrize('style', ['qwen', 'deepseek', 'llama3', 'gemma'])
@pytest.mark.parametrize('system', [None, 'Be brief.'])
def test_chat_prompts_are_those_of_training(folders, style, system):
  encoder = encoder_lib.Encoder(
    folders[style],
    template=tiny_tokenizers.TEMPLATE_OF[style],
    system_prompt=system,
    max_length=512,
  )
  sample = Sample(
    row=0,
    id=None,
    query='Write a function.',
    answer='def f(): pass',
    system=None,
    status='ok',
    reason='',
    raw='',
  )
  [example] = examples.make_examples(
    [sample], encoder, examples.TrainingOptions(), 2048
  ).examples
  trained = example.ids[: int(np.argmax(example.weights))].tolist()
  prompt = prompts.chat_prompt(encoder, sample.query)
  assert prompt.tolist() == trained
  begun = prompts.chat_prompt(encoder, sample.query, answer='def')
  first = encoder.tokenizer.plain.encode('def').tolist()
  assert begun.tolist() == trained + first


def test_chat_prompts_are_those_of_transformers(tmp_path):
  template = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + "
    "'<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\n' }}{% endif %}"
  )
  folder = tiny_tokenizers.make(tmp_path, 'qwen', template=template)
  encoder = encoder_lib.Encoder(folder, max_length=512)
  expected = encoder.tokenizer.hf.apply_chat_template(
    [
      {'role': 'system', 'content': 'Be brief.'},
      {'role': 'user', 'content': TEXT},
    ],
    add_generation_prompt=True,
    return_dict=False,
  )
  ids = prompts.chat_prompt(encoder, TEXT, system='Be brief.')
  assert ids.tolist() == expected
