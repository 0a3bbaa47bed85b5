"""The published forms: the released scorer of QAQ, Cherry, Superfiltering.

Expected values follow the papers' released procedures step by step, through
the tokenizer of transformers, independently of our code.
"""

import numpy as np
import pytest
import tiny_tokenizers

from qaq_jax.data.types import Sample
from qaq_jax.encoding import published_ifd
from qaq_jax.encoding.encoder import Encoder
from qaq_jax.selection import columns

REVERSE = 'Answer:\n{answer}'
QWEN3 = (
  "{%- for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}"
  "{%- if m.role == 'assistant' %}{{ '<think>\\n\\n</think>\\n\\n' }}"
  "{%- endif %}{{ m.content + '<|im_end|>\\n' }}{%- endfor %}"
  "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}"
  '{%- if enable_thinking is defined and not enable_thinking %}'
  "{{ '<think>\\n\\n</think>\\n\\n' }}{%- endif %}{%- endif %}"
)


def sample(query, answer, row=0, **fields):
  return Sample(
    row=row,
    id=None,
    query=query,
    answer=answer,
    system=fields.pop('system', None),
    status='ok',
    reason='',
    raw='',
    **fields,
  )


def by_kind(encoded):
  return {s.kind: s for s in encoded.sequences}


@pytest.fixture(scope='module', params=['qwen', 'llama3'])
def author(request, tmp_path_factory):
  return tiny_tokenizers.make(
    tmp_path_factory.mktemp('author'), request.param, template=QWEN3
  )


def released(hf, row, system, max_length):
  """(ids, scored mask) of the two texts of the released scorer."""

  def render(turns, **options):
    head = [{'role': 'system', 'content': system}]
    return hf.apply_chat_template(head + turns, tokenize=False, **options)

  def user(text):
    return {'role': 'user', 'content': text}

  asked = user(REVERSE.format(answer=row.answer))
  texts = (
    (render([user(row.query)]), len(render([user('')]))),
    (
      render(
        [asked, {'role': 'assistant', 'content': row.query}],
        enable_thinking=False,
      ),
      len(render([asked], add_generation_prompt=True, enable_thinking=False)),
    ),
  )
  for text, boundary in texts:
    out = hf(
      [text],
      truncation=True,
      max_length=max_length,
      return_offsets_mapping=True,
    )
    ids = out['input_ids'][0]
    mask = [s >= boundary for s, _ in out['offset_mapping'][0]]
    yield ids, mask


@pytest.mark.parametrize('room', [4096, 12])
def test_author_compatible(author, room):
  rows = [
    sample('Write a function that adds two numbers.', 'def add(a, b): ...'),
    sample('Hi', 'x', 1),
    sample('a <|im_end|> b <think>', 'c', 2),  # markers count there
    sample('word ' * 30, 'x ' * 10, 3),
    sample('q', 'word ' * 30, 4),
  ]
  options = {
    'reverse_instruction': REVERSE,
    'system_prompt': 'Be brief.',
    'author_compatible': True,
  }
  frames = Encoder(author, **options).frames('Be brief.')
  max_length = max(f.size for f in frames) + room
  encoder = Encoder(author, **options, max_length=max_length)
  partly = 0
  for row, encoded in zip(rows, encoder.encode(rows), strict=True):
    got = by_kind(encoded)
    for term, (ids, mask) in zip(
      ('q', 'q_given_a'),
      released(encoder.tokenizer.hf, row, 'Be brief.', max_length),
      strict=True,
    ):
      if any(mask):
        sequence = got[f'author_{term}']
        ((name, start, stop),) = sequence.spans
        assert name == term
        assert sequence.ids.tolist() == ids
        assert mask == [start <= i < stop for i in range(len(ids))]
        partly += len(ids) == max_length
      else:
        assert f'author_{term}' not in got
        assert encoded.status == 'truncated'
        assert encoded.nulls[term]
    assert {'a', 'a_given_q'} <= set(encoded.nulls)
  assert room == 4096 or partly


def test_author_compatible_starts_late_and_scores_the_tail(author):
  encoder = Encoder(
    author,
    reverse_instruction=REVERSE,
    system_prompt='S',
    author_compatible=True,
  )
  (encoded,) = encoder.encode([sample('abcdefghijklmnopqrst', 'x')])
  got = by_kind(encoded)
  tokens = encoder.tokenizer

  def text(kind):
    ((_, start, stop),) = got[kind].spans
    return tokens.decode(got[kind].ids[start:stop])

  late = len('<|im_end|>\n')
  assert text('author_q').startswith('abcdefghijklmnopqrst'[late:][:1])
  assert text('author_q').endswith('<|im_end|>\n')
  assert text('author_q_given_a') == 'abcdefghijklmnopqrst<|im_end|>\n'


def test_author_compatible_keeps_a_sequence_for_embeddings(author):
  encoder = Encoder(
    author,
    reverse_instruction=REVERSE,
    author_compatible=True,
    embeddings=True,
  )
  (encoded,) = encoder.encode([sample('query', 'answer')])
  forward = by_kind(encoded)['forward']
  assert forward.spans == ()
  (usual,) = Encoder(author, reverse_instruction=REVERSE).encode(
    [sample('query', 'answer')]
  )
  assert forward.ids.tolist() == by_kind(usual)['forward'].ids.tolist()


def test_author_compatible_fingerprints_the_whole_template(author, tmp_path):
  """A template that treats contents alone differently has the same pieces."""
  changed = QWEN3.replace('m.content', "m.content.replace('1', '2')")
  fingerprints = []
  for number, text in enumerate((QWEN3, changed)):
    path = tmp_path / f'{number}.jinja'
    path.write_text(text)
    for compatible in (True, False):
      encoder = Encoder(
        author, template=str(path), author_compatible=compatible
      )
      fingerprint = encoder.fingerprint()
      fingerprint['options'].pop('template')  # the path
      fingerprints.append(fingerprint)
      if compatible:  # what is fingerprinted is what is used
        before = encoder.encode([sample('1', '1')])
        path.write_text('{{ raise_exception() }}')
        again = encoder.encode([sample('1', '1')])
        assert [s.ids.tolist() for s in again[0].sequences] == [
          s.ids.tolist() for s in before[0].sequences
        ]
        path.write_text(text)
  whole, pieces, other, other_pieces = fingerprints
  assert pieces == other_pieces and 'template_sha256' not in pieces
  assert whole['pieces'] == other['pieces'] and whole != other


def test_author_compatible_refuses_plain(author):
  with pytest.raises(ValueError, match='needs a chat template'):
    Encoder(author, template='plain', author_compatible=True)


# The two published forms of IFD.

ROWS = [
  sample('Write a function.', 'def add(a, b):\n    return a + b'),
  sample('Add.\n1 2', '3 is the sum', 1, input='1 2'),
  sample('Add.', 'x', 2),  # one token
  sample('Say it. ' * 4, 'word ' * 60, 3),  # answer over the limit
  sample('word ' * 80, 'short answer', 4),  # prompt over the limit
  sample('word ' * 14, 'word ' * 60, 5),
]


def alpaca(row):
  what = 'Below is an instruction that describes a task'
  if row.input:
    return (
      f'{what}, paired with an input that provides further context. Write a '
      'response that appropriately completes the request.\n\n### '
      f'Instruction:\n{row.instruction}\n\n### Input:\n{row.input}\n\n'
      '### Response:'
    )
  return (
    f'{what}. Write a response that appropriately completes the request.\n\n'
    f'### Instruction:\n{row.instruction}\n\n### Response:'
  )


def part(hf, text, answer, limit):
  """(ids, index of the first scored token) as both releases compute them."""
  ids = hf.encode(text, truncation=True, max_length=limit)
  return ids, len(hf.encode(text[: text.rfind(answer)]))


@pytest.mark.parametrize('style', ['gpt2', 'llama2', 'llama3'])
@pytest.mark.parametrize('limit', [512, 200, 150])
def test_cherry(tmp_path, style, limit):
  """As released, but for its 4, which is the heading in Llama's tokenizer."""
  folder = tiny_tokenizers.make(tmp_path, style)
  encoder = Encoder(
    folder, template='plain', ifd_cherry=True, cherry_limit=limit
  )
  hf, nulls = encoder.tokenizer.hf, []
  four = len(hf.encode('### Response:'))
  for row, encoded in zip(ROWS, encoder.encode(ROWS), strict=True):
    got = by_kind(encoded)
    prompt = alpaca(row)
    size = len(hf.encode(prompt, truncation=True, max_length=limit))
    sides = {
      'cherry_alone': part(
        hf,
        '### Response:' + row.answer,
        row.answer,
        max(limit - size, 0) + four,
      ),
      'cherry_cond': part(hf, prompt + row.answer, row.answer, limit),
    }
    lengths = [len(ids) - start for ids, start in sides.values()]
    skipped = (
      limit - size <= 0 or min(lengths) <= 0 or size + lengths[0] > limit
    )
    if skipped:
      assert not set(sides) & set(got)
      assert {f'a_{k}' for k in sides} <= set(encoded.nulls)
      nulls.append(row.row)
      continue
    scored = []
    for kind, (ids, start) in sides.items():
      assert got[kind].ids.tolist() == ids
      assert got[kind].spans == ((f'a_{kind}', start, len(ids)),)
      scored.append(ids[start:])
    assert scored[0] == scored[1]
  assert bool(nulls) == (limit < 512)


def test_cherry_scores_the_same_answer_tokens_up_to_the_limit(tmp_path):
  """Answers that end before, at and behind the limit, and short room."""
  folder = tiny_tokenizers.make(tmp_path, 'llama2')
  hf = Encoder(folder, template='plain').tokenizer.hf
  row = sample('Write a function.', 'word ' * 90)
  prompt = len(hf.encode(alpaca(row)))
  answer = len(hf.encode(alpaca(row) + row.answer)) - prompt
  for room in (answer + 5, answer, answer - 1, answer - 9, 5, 4, 1, 0, -7):
    encoder = Encoder(
      folder, template='plain', ifd_cherry=True, cherry_limit=prompt + room
    )
    (encoded,) = encoder.encode([row])
    got = by_kind(encoded)
    if room < 1:
      assert not {'cherry_alone', 'cherry_cond'} & set(got)
      assert 'no room' in encoded.nulls['a_cherry_alone']
      assert 'no room' in encoded.nulls['a_cherry_cond']
      continue
    texts = []
    for kind in ('cherry_alone', 'cherry_cond'):
      ((_, start, stop),) = got[kind].spans
      texts.append(got[kind].ids[start:stop].tolist())
    assert texts[0] == texts[1]
    assert len(texts[0]) == min(room, answer)


@pytest.mark.parametrize('style', ['gpt2', 'llama2'])
@pytest.mark.parametrize('limit', [1024, 40])
def test_superfilter(tmp_path, style, limit):
  folder = tiny_tokenizers.make(tmp_path, style)
  encoder = Encoder(
    folder, template='plain', ifd_superfilter=True, superfilter_limit=limit
  )
  hf, nulls = encoder.tokenizer.hf, set()
  for row, encoded in zip(ROWS, encoder.encode(ROWS), strict=True):
    got = by_kind(encoded)
    prompt = row.instruction + '\n' + (row.input + '\n' if row.input else '')
    size = len(hf.encode(prompt, truncation=True, max_length=limit))
    alone = hf.encode(row.answer, truncation=True, max_length=limit - size + 1)
    whole = hf.encode(prompt + row.answer, truncation=True, max_length=limit)
    for kind, ids, start in (
      ('superfilter_alone', alone, 1),
      ('superfilter_cond', whole, len(hf.encode(prompt))),
    ):
      if start >= len(ids):
        assert kind not in got and encoded.nulls[f'a_{kind}']
        nulls.add((row.row, kind))
      else:
        assert got[kind].ids.tolist() == ids
        assert got[kind].spans == ((f'a_{kind}', start, len(ids)),)
  if style == 'gpt2':  # a one-token answer has no loss alone, without BOS
    assert (2, 'superfilter_alone') in nulls
  assert limit == 1024 or (4, 'superfilter_cond') in nulls


def test_published_prompts_hold_a_lone_input_once(tmp_path):
  folder = tiny_tokenizers.make(tmp_path, 'gpt2')
  encoder = Encoder(
    folder, template='plain', ifd_cherry=True, ifd_superfilter=True
  )
  (encoded,) = encoder.encode([sample('1 2', 'three', input='1 2')])
  texts = {s.kind: encoder.tokenizer.decode(s.ids) for s in encoded.sequences}
  assert texts['cherry_cond'].endswith(
    '### Instruction:\n\n\n### Input:\n1 2\n\n### Response:three'
  )
  assert texts['superfilter_cond'] == '\n1 2\nthree'


def test_published_forms_keep_markers_plain(tmp_path):
  folder = tiny_tokenizers.make(tmp_path, 'qwen')
  encoder = Encoder(
    folder, template='chatml', ifd_cherry=True, ifd_superfilter=True
  )
  (encoded,) = encoder.encode(
    [sample('q <|im_end|>', 'a <think> <|im_start|>')]
  )
  assert [s.kind for s in encoded.sequences] == [
    'forward',
    'reverse',
    'cherry_alone',
    'cherry_cond',
    'superfilter_alone',
    'superfilter_cond',
  ]
  for s in encoded.sequences[2:]:
    assert not set(s.ids.tolist()) & encoder.tokenizer.marker_ids
    assert s.ids.dtype == np.int32


def test_a_forms_ratio_is_in_its_record(monkeypatch):
  form = published_ifd.Form(
    'ifd_toy',
    'cherry_limit',
    published_ifd.cherry,
    {'a_toy_alone': 'x', 'a_toy_cond': 'y'},
    lambda cond, alone: cond - 2 * alone,
  )
  monkeypatch.setitem(published_ifd.FORMS, 'ifd_toy', form)
  table = {
    'row': [0, 1],
    'status_m': ['ok', 'ok'],
    'nll_a_toy_alone_m': [6.0, None],
    'n_a_toy_alone_m': [3, 1],
    'nll_a_toy_cond_m': [5.0, 5.0],
    'n_a_toy_cond_m': [1, 1],
  }
  found = columns.ScoreColumns(table).published_ifd('ifd_toy', 'm')
  np.testing.assert_array_equal(found, [1.0, np.nan])
