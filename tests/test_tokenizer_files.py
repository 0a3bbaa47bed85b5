"""Model folders whose tokenizer is not there, or not one."""

import json
import pathlib
import shutil

import pytest
import tokenizers
from tokenizers import models, normalizers

from qaq_jax.encoding import tokenization
from qaq_jax.models.hf import tensors
from qaq_jax.stages import model as model_lib

_WEAK = pathlib.Path(tokenization.__file__).parents[1] / 'demo/models/weak'
_POINTER = (
  'version https://git-lfs.github.com/spec/v1\n'
  f'oid sha256:{"0" * 64}\nsize 7031645\n'
)
_SENTENCEPIECE = b'\x0a\x0e\x0a\x05<unk>\x15\0\0\0\0\x18\x02'


def _saved(model, *, special=(), added=(), normalizer=None):
  tokenizer = tokenizers.Tokenizer(model)
  tokenizer.add_special_tokens(list(special))
  tokenizer.add_tokens(list(added))
  if normalizer:
    tokenizer.normalizer = normalizer
  return tokenizer.to_str()


def _class(name):
  return json.dumps({'tokenizer_class': name})


_CONFIG = 'tokenizer_config.json'
_BYTES = {chr(i): i for i in range(32, 127)}
# Name -> files beside config.json and weights, and what is said of them.
_FOLDERS = {
  'no file': ({}, 'it has no vocabulary'),
  'special tokens': (
    {'special_tokens_map.json': '{"bos_token": "<s>"}'},
    'it has no vocabulary',
  ),
  'added tokens': ({'added_tokens.json': '{"<s>": 0}'}, 'it has no vocabulary'),
  **{
    f'a class, {name}': ({_CONFIG: _class(name)}, 'it has no vocabulary')
    for name in (
      'GPT2Tokenizer',
      'LlamaTokenizerFast',
      'Qwen2Tokenizer',
      'GemmaTokenizer',  # makes the unknown token of every text
      'PreTrainedTokenizerFast',
    )
  },
  'an empty vocabulary': (
    {'tokenizer.json': _saved(models.BPE())},
    'no two different tokens',
  ),
  'an empty vocabulary of words': (
    {'tokenizer.json': _saved(models.WordLevel({}, unk_token='x'))},
    'no two different tokens',
  ),
  'an empty vocabulary of pieces': (
    {'tokenizer.json': _saved(models.Unigram())},
    'no two different tokens',
  ),
  'special tokens alone': (
    {'tokenizer.json': _saved(models.BPE(), special=['<s>', '</s>'])},
    'no two different tokens',
  ),
  'added tokens alone': (
    {'tokenizer.json': _saved(models.BPE(), added=['a', 'b'])},
    'no two different tokens',
  ),
  'the unknown token alone': (
    {
      'tokenizer.json': _saved(
        models.WordLevel({'<unk>': 0}, unk_token='<unk>')
      )
    },
    'no two different tokens',
  ),
  'a normalizer that leaves nothing': (
    {
      'tokenizer.json': _saved(
        models.BPE(_BYTES, []),
        normalizer=normalizers.Replace(tokenizers.Regex('.'), ''),
      )
    },
    'no two different tokens',
  ),
  'empty files': (
    {
      'vocab.json': '{}',
      'merges.txt': '#version: 0.2\n',
      _CONFIG: _class('Qwen2Tokenizer'),
    },
    'no two different tokens',
  ),
  'no merges': (
    {'vocab.json': '{"a": 0}', _CONFIG: _class('Qwen2Tokenizer')},
    'vocab.json is there without merges.txt',
  ),
  'no vocabulary to merge': (
    {'merges.txt': '#version: 0.2\na b\n', _CONFIG: _class('GPT2Tokenizer')},
    'merges.txt is there without vocab.json',
  ),
  'a pointer': ({'tokenizer.json': _POINTER}, 'tokenizer.json is a pointer'),
  'a pointer to pieces': (
    {'tokenizer.model': _POINTER, _CONFIG: _class('LlamaTokenizer')},
    'tokenizer.model is a pointer of Git LFS',
  ),
  'a pointer to the vocabulary': (
    {
      'vocab.json': _POINTER,
      'merges.txt': '#version: 0.2\na b\n',
      _CONFIG: _class('Qwen2Tokenizer'),
    },
    'vocab.json is a pointer of Git LFS',
  ),
  'pieces without their package': (
    {'tokenizer.model': _SENTENCEPIECE, _CONFIG: _class('LlamaTokenizer')},
    'read by the package sentencepiece',
  ),
  'nothing in it': ({'tokenizer.json': ''}, 'Expecting value'),
  'another object': ({'tokenizer.json': '{}'}, 'that can be used'),
  'a list': ({'tokenizer.json': '[]'}, 'that can be used'),
}


@pytest.mark.parametrize('name', _FOLDERS)
def test_a_model_without_a_tokenizer_is_refused(tmp_path, monkeypatch, name):
  files, said = _FOLDERS[name]
  # As where it is not installed, which transformers tells on its own.
  find_spec = tokenization.tokenizer_files.importlib.util.find_spec
  monkeypatch.setattr(
    'importlib.util.find_spec',
    lambda n, *a: None if n == 'sentencepiece' else find_spec(n, *a),
  )
  shutil.copy(_WEAK / 'config.json', tmp_path)
  for file, content in files.items():
    data = content if isinstance(content, bytes) else content.encode()
    (tmp_path / file).write_bytes(data)
  model = model_lib.open_model(str(tmp_path), field='model', weights=False)
  for use in (model.tokenizer, lambda: model.encoder(template='plain')):
    with pytest.raises(tokenization.TokenizerError, match=said) as e:
      use()
    assert str(tmp_path) in str(e.value)
    if 'pointer' not in said:
      assert str(e.value).startswith(f'no tokenizer in {tmp_path}')
      for needed in ('tokenizer.json', 'merges.txt', 'tokenizer.model'):
        assert needed in str(e.value)


def test_the_demo_model_without_its_tokenizer_is_refused(tmp_path):
  """A folder that was copied without two of its files."""
  shutil.copytree(_WEAK, tmp_path / 'm')
  model_lib.open_model(str(tmp_path / 'm'), field='model').tokenizer()
  for name in ('tokenizer.json', 'tokenizer_config.json'):
    (tmp_path / 'm' / name).unlink()
  model = model_lib.open_model(str(tmp_path / 'm'), field='model')
  with pytest.raises(tokenization.TokenizerError, match='no tokenizer in'):
    model.tokenizer()


def test_an_adapter_is_told_from_a_model(tmp_path):
  (tmp_path / 'adapter_config.json').write_text('{"peft_type": "LORA"}')
  (tmp_path / 'adapter_model.safetensors').write_bytes(b'')
  with pytest.raises(tensors.CheckpointError, match='is an adapter.*Merge it'):
    model_lib.open_model(str(tmp_path), field='model')
