"""Samples -> training examples: ids as in scoring, weights, the end of turn."""

import numpy as np
import pytest
import tiny_tokenizers

from qaq_jax.data.types import Sample
from qaq_jax.encoding import chat, examples
from qaq_jax.encoding import encoder as encoder_lib
from qaq_jax.finetune.options import FitOptions

QUERY = 'Write a function that adds two numbers.'
ANSWER = 'def add(a, b):\n    return a + b'

# Shipped template -> a tokenizer that knows its markers, and the text that
# ends an answer.
TAILS = {
  'chatml': ('qwen', '<|im_end|>'),
  'qwen3': ('qwen', '<|im_end|>'),
  'deepseek-coder': ('deepseek', '\n<|EOT|>'),
  'llama3': ('llama3', '<|eot_id|>'),
  'llama3.1': ('llama3', '<|eot_id|>'),
  'mistral': ('mistral', '</s>'),
  'gemma': ('gemma', '<end_of_turn>'),
  'plain': ('gpt2', '<|endoftext|>'),
}


def _sample(row=0, query=QUERY, answer=ANSWER, system=None, status='ok'):
  return Sample(row, None, query, answer, system, status, '', '{}')


def _encoder(tmp_path, template, style=None, **options):
  folder = tiny_tokenizers.make(tmp_path, style or TAILS[template][0])
  return encoder_lib.Encoder(folder, template=template, **options)


def _render(encoder, samples, max_length=2048, **options):
  return examples.make_examples(
    samples, encoder, examples.TrainingOptions(**options), max_length
  )


def test_every_shipped_template_is_tested():
  assert set(TAILS) == {*chat.shipped(), chat.PLAIN}


@pytest.mark.parametrize('template', TAILS)
@pytest.mark.parametrize('system', [None, 'You add numbers.'])
def test_answer_and_end_of_turn_are_trained_and_nothing_else(
  tmp_path, template, system
):
  encoder = _encoder(tmp_path, template)
  sample = _sample(system=system)
  (example,) = _render(encoder, [sample]).examples
  forward = encoder.encode([sample])[0].sequences[0]
  scored = len(forward.ids)
  np.testing.assert_array_equal(example.ids[:scored], forward.ids)
  assert encoder.tokenizer.decode(example.ids[scored:]) == TAILS[template][1]
  answer = next(s for s in forward.spans if s[0] == 'a_given_q')
  trained = np.flatnonzero(example.weights)
  np.testing.assert_array_equal(trained, np.arange(answer[1], len(example.ids)))
  assert set(example.weights[trained]) == {1.0}
  # The whole ends as the template renders it, but for what follows the end.
  text = encoder.rendered(sample)[0] + TAILS[template][1]
  assert encoder.tokenizer.decode(example.ids) == text


def test_weights_are_as_configured(tmp_path):
  encoder = _encoder(tmp_path, 'chatml')
  (example,) = _render(
    encoder, [_sample()], prompt_weight=0.25, response_weight=2.0
  ).examples
  (default,) = _render(encoder, [_sample()]).examples
  np.testing.assert_array_equal(
    example.weights, np.where(default.weights > 0, 2.0, 0.25)
  )
  assert example.weights.dtype == np.float32


def test_system_prompt_of_the_row_goes_before_the_config(tmp_path):
  encoder = _encoder(tmp_path, 'chatml', system_prompt='From the config.')
  own, config = _render(
    encoder, [_sample(system='From the row.'), _sample()]
  ).examples
  decode = encoder.tokenizer.decode
  assert 'From the row.' in decode(own.ids)
  assert 'From the config.' in decode(config.ids)


def test_template_without_a_final_marker_ends_with_eos(tmp_path):
  # chatml's markers are plain text to this tokenizer.
  encoder = _encoder(tmp_path, 'chatml', style='gpt2')
  (example,) = _render(encoder, [_sample()]).examples
  assert example.ids[-1] == encoder.tokenizer.hf.eos_token_id
  answer = encoder.tokenizer.plain.encode(ANSWER)
  np.testing.assert_array_equal(example.ids[-1 - len(answer) : -1], answer)


def test_no_end_of_turn_at_all_is_an_error(tmp_path):
  folder = tiny_tokenizers.byte_level(tmp_path, special=['<s>'], bos='<s>')
  encoder = encoder_lib.Encoder(folder, template='plain')
  with pytest.raises(chat.TemplateError, match='eos_token'):
    _render(encoder, [_sample()])


def test_long_samples_are_skipped_and_told(tmp_path):
  encoder = _encoder(tmp_path, 'plain')
  samples = [_sample(0), _sample(1, answer=ANSWER * 9), _sample(2)]
  size = len(_render(encoder, samples[:1]).examples[0].ids)
  found = _render(encoder, samples, max_length=size)
  assert [e.row for e in found.examples] == [0, 2]
  assert found.skipped == {'too long': 1} and not found.truncated
  assert found.longest[1] == 1
  text = '\n'.join(found.describe())
  assert '2 examples' in text and '1 samples left out: too long' in text
  assert 'row 1' in text
  # One token less, and not even the short ones fit.
  assert not _render(encoder, samples, max_length=size - 1).examples


def test_truncated_answers_lose_their_tail_and_end_of_turn(tmp_path):
  encoder = _encoder(tmp_path, 'chatml')
  (whole,) = _render(encoder, [_sample()]).examples
  prompt = int(np.argmax(whole.weights > 0))
  for size in (prompt + 1, len(whole.ids) - 1):
    found = _render(encoder, [_sample()], max_length=size, on_long='truncate')
    (cut,) = found.examples
    np.testing.assert_array_equal(cut.ids, whole.ids[:size])
    np.testing.assert_array_equal(cut.weights, whole.weights[:size])
    assert found.truncated == 1
  # At the prompt's length there is nothing left to learn.
  found = _render(encoder, [_sample()], max_length=prompt, on_long='truncate')
  assert not found.examples and found.skipped == {'too long': 1}


def test_rows_that_are_not_ok_are_counted(tmp_path):
  encoder = _encoder(tmp_path, 'plain')
  found = _render(
    encoder,
    [
      _sample(0, status='invalid'),
      _sample(1),
      _sample(2, status='empty'),
      _sample(3, query=''),
    ],
  )
  assert [e.row for e in found.examples] == [1]
  assert found.skipped == {
    'invalid': 1,
    'empty': 1,
    'no tokens in the query or the answer': 1,
  }


@pytest.mark.parametrize(
  'options, message',
  [
    ({'on_long': 'cut'}, 'on_long'),
    ({'max_length': 1}, 'max_length'),
    ({'prompt_weight': -1.0}, 'prompt_weight'),
    ({'response_weight': 0.0}, 'response_weight'),
  ],
)
def test_impossible_options_are_refused(options, message):
  kind = FitOptions if 'max_length' in options else examples.TrainingOptions
  with pytest.raises(ValueError, match=message):
    kind(**options)
