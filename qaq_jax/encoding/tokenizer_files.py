"""The files of a tokenizer: which there are, and what is wrong with them."""

import hashlib
import importlib.util
import pathlib

NAMES = (
  'tokenizer.json',
  'tokenizer_config.json',
  'special_tokens_map.json',
  'added_tokens.json',
  'vocab.json',
  'merges.txt',
  'tokenizer.model',
  'chat_template.jinja',
  'chat_template.json',
)
_VOCABULARIES = (
  'tokenizer.json',
  'vocab.json',
  'merges.txt',
  'tokenizer.model',
)
_POINTER = b'version https://git-lfs.github.com/'
_NEEDED = (
  'A folder needs tokenizer.json (best), or vocab.json and merges.txt, or '
  'tokenizer.model, each with a tokenizer_config.json that names '
  'tokenizer_class. Take them from where the weights come from'
)


def hashes(directory: pathlib.Path) -> dict[str, str]:
  """Returns the SHA-256 of each file that is there, by its name."""
  return {
    name: hashlib.sha256((directory / name).read_bytes()).hexdigest()
    for name in _present(directory)
  }


def refusal(directory: pathlib.Path, why: str) -> str:
  """Returns what to tell where no tokenizer could be made.

  Args:
    directory: a checkpoint's folder.
    why: what failed.
  """
  found = set(_present(directory))
  for name in sorted(found):
    with (directory / name).open('rb') as f:
      if f.read(len(_POINTER)) == _POINTER:
        return (
          f'{directory / name} is a pointer of Git LFS, not the file: run '
          '`git lfs pull` in its folder, or download the file itself'
        )
  if not found.intersection(_VOCABULARIES):
    return f'no tokenizer in {directory}: it has no vocabulary. {_NEEDED}'
  if 'tokenizer.json' not in found:
    pair = {'vocab.json', 'merges.txt'}
    if len(pair - found) == 1:
      why = f'{(pair & found).pop()} is there without {(pair - found).pop()}'
    elif pair.isdisjoint(found) and not importlib.util.find_spec(
      'sentencepiece'
    ):
      why = (
        'tokenizer.model is read by the package sentencepiece, which is not '
        'installed'
      )
  return f'no tokenizer in {directory} that can be used: {why}. {_NEEDED}'


def _present(directory):
  return [name for name in NAMES if (directory / name).is_file()]
