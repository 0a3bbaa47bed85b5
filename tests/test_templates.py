"""Chat templates: the documented formats, and templates that are refused."""

import json

import pytest
import tiny_tokenizers

from qaq_jax.data.types import Sample
from qaq_jax.encoding import chat
from qaq_jax.encoding.encoder import Encoder
from qaq_jax.encoding.tokenization import TokenizerError

REVERSE = 'Which question has this answer?\n{answer}\nReply.'


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
  root = tmp_path_factory.mktemp('tokenizers')
  return {
    name: tiny_tokenizers.make(root, name) for name in tiny_tokenizers.STYLES
  }


def sample(query='QQ', answer='AA', row=0, system=None, **fields):
  return Sample(
    row=row,
    id=None,
    query=query,
    answer=answer,
    system=system,
    status='ok',
    reason='',
    raw='',
    **fields,
  )


def rendered(folder, template, system=None, own=None, **options):
  encoder = Encoder(
    folder,
    template=template,
    system_prompt=system,
    reverse_instruction=REVERSE,
    **options,
  )
  return encoder.rendered(sample(system=own))


def both(form):
  """Forward and reverse text of a format with slots {u} and {a}."""
  asked = REVERSE.replace('{answer}', 'AA')
  return form.format(u='QQ', a='AA'), form.format(u=asked, a='QQ')


QWEN = (
  '<|im_start|>system\n{s}<|im_end|>\n<|im_start|>user\n{{u}}<|im_end|>\n'
  '<|im_start|>assistant\n{{a}}'
)


def test_chatml(folders):
  default = (
    'You are Qwen, created by Alibaba Cloud. You are a helpful assistant.'
  )
  got = rendered(folders['qwen'], 'chatml')
  assert got == both(QWEN.format(s=default))
  got = rendered(folders['qwen'], 'chatml', system='Be brief.')
  assert got == both(QWEN.format(s='Be brief.'))


def test_qwen3_has_an_empty_thought(folders):
  form = (
    '<|im_start|>user\n{u}<|im_end|>\n<|im_start|>assistant\n'
    '<think>\n\n</think>\n\n{a}'
  )
  assert rendered(folders['qwen'], 'qwen3') == both(form)
  got = rendered(folders['qwen'], 'qwen3', system='S')
  assert got == both('<|im_start|>system\nS<|im_end|>\n' + form)


def test_deepseek_coder(folders):
  form = '### Instruction:\n{u}\n### Response:\n{a}'
  bos = '<｜begin▁of▁sentence｜>'
  # Word for word as in tokenizer_config.json of the instruct checkpoints.
  default = (
    'You are an AI programming assistant, utilizing the Deepseek Coder '
    'model, developed by Deepseek Company, and you only answer questions '
    'related to computer science. For politically sensitive questions, '
    'security and privacy issues, and other non-computer science questions, '
    'you will refuse to answer\n'
  )
  got = rendered(folders['deepseek'], 'deepseek-coder')
  assert got == both(bos + default + form)
  got = rendered(folders['deepseek'], 'deepseek-coder', system='S\n')
  assert got == both(f'{bos}S\n{form}')


def test_llama3(folders):
  def turn(role):
    return f'<|start_header_id|>{role}<|end_header_id|>\n\n'

  form = f'{turn("user")}{{u}}<|eot_id|>{turn("assistant")}{{a}}'
  bos = '<|begin_of_text|>'
  assert rendered(folders['llama3'], 'llama3') == both(bos + form)
  got = rendered(folders['llama3'], 'llama3', system='S')
  assert got == both(f'{bos}{turn("system")}S<|eot_id|>{form}')
  dates = 'Cutting Knowledge Date: December 2023\nToday Date: '
  got = rendered(folders['llama3'], 'llama3.1', date_string='01 Feb 2025')
  assert got == both(
    f'{bos}{turn("system")}{dates}01 Feb 2025\n\n<|eot_id|>{form}'
  )
  got = rendered(folders['llama3'], 'llama3.1', system='S')
  assert got == both(
    f'{bos}{turn("system")}{dates}26 Jul 2024\n\nS<|eot_id|>{form}'
  )


def test_gemma_folds_the_system_prompt(folders):
  form = (
    '<bos><start_of_turn>user\n{s}{{u}}<end_of_turn>\n'
    '<start_of_turn>model\n{{a}}'
  )
  assert rendered(folders['gemma'], 'gemma') == both(form.format(s=''))
  got = rendered(folders['gemma'], 'gemma', system='Be brief.')
  assert got == both(form.format(s='Be brief.\n\n'))
  encoder = Encoder(folders['gemma'], template='gemma', system_prompt='S')
  assert 'before the user text' in encoder.info()['system_prompt']


@pytest.mark.parametrize('style', ['llama2', 'mistral'])
def test_mistral_folds_the_system_prompt(folders, style):
  form = '<s>[INST] {s}{{u}} [/INST] {{a}}'
  assert rendered(folders[style], 'mistral') == both(form.format(s=''))
  got = rendered(folders[style], 'mistral', system='Be brief.')
  assert got == both(form.format(s='Be brief.\n\n'))


@pytest.mark.parametrize(
  'style, prefix',
  [
    ('gpt2', '<|endoftext|>'),
    ('llama2', '<s>'),
    ('qwen', '<|endoftext|>'),
    ('gemma', '<bos>'),
  ],
)
def test_plain(folders, style, prefix):
  forward, reverse = rendered(folders[style], 'plain', system='ignored')
  assert forward == prefix + 'QQ\nAA'
  assert reverse == f'{prefix}Which question has this answer?\nAA\nReply.\nQQ'
  info = Encoder(folders[style], template='plain').info()
  assert info['template'] == 'plain' and 'ignores' in info['system_prompt']


def test_a_rows_own_system_prompt_comes_first(folders):
  got = rendered(folders['qwen'], 'chatml', system='config', own='row')
  assert got == both(QWEN.format(s='row'))


def own_template(tmp_path, template, style='qwen', **options):
  folder = tiny_tokenizers.make(tmp_path, style, template=template)
  return rendered(folder, 'auto', **options)


CHATML = (
  "{%- for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + BODY + "
  "'<|im_end|>\\n' }}{%- endfor %}"
  "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}"
  '{%- endif %}'
)


def test_sample_text_never_goes_through_the_template(tmp_path):
  """A template that trims, inspects and cuts contents cannot change ids."""
  template = CHATML.replace(
    'BODY', "(m['content'].split('</think>')[-1] | trim)"
  )
  folder = tiny_tokenizers.make(tmp_path, 'qwen', template=template)
  encoder = Encoder(folder, reverse_instruction=REVERSE)
  odd = sample('  a</think>b ', ' {{ messages }} c</think>d\n')
  forward, reverse = encoder.rendered(odd)
  assert '  a</think>b <|im_end|>' in forward
  assert forward.endswith(' {{ messages }} c</think>d\n')
  assert ' {{ messages }} c</think>d\n\nReply.<|im_end|>' in reverse
  (encoded,) = encoder.encode([odd])
  for sequence, text in zip(encoded.sequences, (forward, reverse), strict=True):
    assert encoder.tokenizer.decode(sequence.ids) == text


def test_qwen3_style_thinking_is_off(tmp_path):
  template = (
    CHATML.replace('BODY', "m['content']")[: -len('{%- endif %}')]
    + '{%- if enable_thinking is defined and enable_thinking is false %}'
    "{{ '<think>\\n\\n</think>\\n\\n' }}{%- endif %}{%- endif %}"
  )
  folder = tiny_tokenizers.make(tmp_path, 'qwen', template=template)
  encoder = Encoder(folder, reverse_instruction=REVERSE)
  # The turn that is scored has no thought, the prompt for generation has:
  # that is said.
  assert '<think>' in encoder.info()['notes'][0]
  assert '<think>' not in encoder.rendered(sample())[0]


def test_dates_are_fixed(tmp_path):
  template = (
    "{%- if not date_string is defined %}{%- set date_string = 'none' %}"
    "{%- endif %}{{ date_string + strftime_now(' %Y-%m-%d ') }}"
    + CHATML.replace('BODY', "m['content']")
  )
  forward, _ = own_template(tmp_path, template, date_string='05 Mar 2024')
  assert forward.startswith('05 Mar 2024 2024-03-05 <|im_start|>user')


@pytest.mark.parametrize(
  'template, message',
  [
    # [system, user] is not a prefix: the last turn is special.
    (
      "{% for m in messages %}{{ ('LAST ' if loop.last else '') + m.role + "
      'm.content }}{% endfor %}',
      'otherwise when an assistant turn follows',
    ),
    (
      "{{ messages[0].content + messages[0].content + 'x' + "
      'messages[-1].content }}',
      'exactly once',
    ),
    ("{{ 'constant' }}", 'exactly once'),
    ("{{ raise_exception('never') }}", 'never'),
    ('{{ messages[-1].content ~ messages[0].content }}', 'otherwise when'),
    ('{% broken', 'refuses'),
  ],
)
def test_templates_that_cannot_be_used_are_refused(tmp_path, template, message):
  with pytest.raises(chat.TemplateError, match=message):
    own_template(tmp_path, template)


def test_a_template_needs_a_token_before_the_query(tmp_path):
  with pytest.raises(chat.TemplateError, match='no token before'):
    own_template(
      tmp_path, "{% for m in messages %}{{ m.content + '\\n' }}{% endfor %}"
    )


def test_a_template_that_drops_the_system_prompt_folds_it(tmp_path):
  template = (
    "{% for m in messages if m.role != 'system' %}"
    "{{ '<|im_start|>' + m.content }}{% endfor %}"
  )
  forward, _ = own_template(tmp_path, template, system='S')
  assert forward == '<|im_start|>S\n\nQQ<|im_start|>AA'


def test_a_template_that_puts_the_system_prompt_last_folds_it(tmp_path):
  """Behind the query it would stand between the two scored texts."""
  template = ''.join(
    f"{{% for m in messages if m.role == '{role}' %}}"
    "{{ '<|im_start|>' + m.content }}{% endfor %}"
    for role in ('user', 'system', 'assistant')
  )
  forward, _ = own_template(tmp_path, template, system='S')
  assert forward == '<|im_start|>S\n\nQQ<|im_start|>AA'


def test_borrowed_templates(tmp_path, folders):
  template = CHATML.replace('BODY', "m['content'] + '!'")
  lender = tiny_tokenizers.make(tmp_path / 'a', 'qwen', template=template)
  jinja = tmp_path / 'own.jinja'
  jinja.write_text(template)
  (tmp_path / 'b').mkdir()
  (tmp_path / 'b' / 'chat_template.jinja').write_text(template)
  named = tmp_path / 'tokenizer_config.json'
  named.write_text(
    json.dumps(
      {
        'chat_template': [
          {'name': 'tool_use', 'template': 'x'},
          {'name': 'default', 'template': template},
        ]
      }
    )
  )
  for name in (
    lender,
    f'{lender}/tokenizer_config.json',
    jinja,
    tmp_path / 'b',
    named,
  ):
    forward, _ = rendered(folders['qwen'], str(name))
    assert forward == (
      '<|im_start|>user\nQQ!<|im_end|>\n<|im_start|>assistant\nAA'
    )


def test_missing_templates_list_the_choices(tmp_path, folders):
  for name in ('auto', 'chatmll', str(tmp_path)):
    with pytest.raises(chat.TemplateError, match='plain, chatml, deepseek'):
      Encoder(folders['qwen'], template=name)
  with pytest.raises(chat.TemplateError, match='exactly once'):
    Encoder(folders['qwen'], template='plain', reverse_instruction='no slot')
  with pytest.raises(ValueError, match='on_long'):
    Encoder(folders['qwen'], template='plain', on_long='cut')
  with pytest.raises(ValueError, match='has no room'):
    Encoder(folders['qwen'], template='chatml', max_length=20)


def test_missing_tokenizers_say_what_to_do(tmp_path):
  with pytest.raises(TokenizerError, match='no such folder'):
    Encoder(tmp_path / 'none')
  (tmp_path / 'vocab.json').write_text('{"a": 0}')
  (tmp_path / 'merges.txt').write_text('')
  with pytest.raises(TokenizerError, match='tokenizer_class'):
    Encoder(tmp_path)
  folder = tiny_tokenizers.byte_level(tmp_path / 'bare', special=['<x>'])
  with pytest.raises(chat.TemplateError, match='BOS, or else EOS'):
    Encoder(folder, template='plain')


def test_wrong_tokenizer_class_does_not_change_ids(tmp_path):
  """A Llama class name beside a byte-level file, as DeepSeek-Coder has it."""
  folder = tiny_tokenizers.make(tmp_path, 'deepseek')
  good = Encoder(folder, template='deepseek-coder').encode([sample()])
  path = tmp_path / 'deepseek' / 'tokenizer_config.json'
  config = json.loads(path.read_text())
  config['tokenizer_class'] = 'LlamaTokenizerFast'
  path.write_text(json.dumps(config))
  (tmp_path / 'deepseek' / 'config.json').write_text(
    '{"model_type": "llama", "bos_token_id": 99}'
  )
  again = Encoder(folder, template='deepseek-coder').encode([sample()])
  for one, two in zip(good[0].sequences, again[0].sequences, strict=True):
    assert one.ids.tolist() == two.ids.tolist()
