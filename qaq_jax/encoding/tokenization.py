"""A checkpoint's tokenizer, and copies of it that encode pieces of a text.

A sequence is put together from template pieces and sample text, each encoded
on its own (spec 1, rules 1 and 2). That needs four views of one tokenizer:

                     text that begins a sequence   text in its middle
  markers recognised  `start`                       `middle`
  markers plain text  `plain_start`                 `plain`

"Markers" are added tokens such as `<|im_end|>` or `<think>`, flagged special or
not. Ordinary added tokens of white space only (Gemma's indentation) or of one
character (DeepSeek-Coder's `ü`) are kept in all views: they are how these
tokenizers write such text, and they cannot forge a turn.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import pathlib
from collections.abc import Iterable

import numpy as np
import tokenizers
import transformers

from qaq_jax.encoding import tokenizer_files

# Begins the piece that a Unigram vocabulary has in place of a marker.
NO_TEXT = '\U0010ffff'
# Characters given to the Rust tokenizer at once: its results take some hundred
# bytes per token before they become int32.
_CHUNK = 1 << 20
# Plain text of which every tokenizer makes several tokens.
_PROBE = 'def add(a, b): return a + b  # The sum of 2 numbers'


class TokenizerError(ValueError):
  """The tokenizer cannot be used; the message says what to do."""


class View:
  """One way of encoding text with a tokenizer's vocabulary."""

  def __init__(self, spec: dict, real_ids: dict[str, int]):
    """Builds the view.

    Args:
      spec: a tokenizer.json as a dict.
      real_ids: content of an added token -> its id in the whole tokenizer,
        where a copy with fewer added tokens would number them anew.
    """
    self.tokenizer = tokenizers.Tokenizer.from_str(json.dumps(spec))
    self.tokenizer.no_truncation()
    self.tokenizer.no_padding()
    moved = {
      trained: real
      for text, real in real_ids.items()
      if (trained := self.tokenizer.token_to_id(text)) is not None
      and trained != real
    }
    self._remap = None
    if moved:
      size = max(*moved, self.tokenizer.get_vocab_size()) + 1
      self._remap = np.arange(size, dtype=np.int32)
      self._remap[list(moved)] = list(moved.values())

  def encode(self, text: str) -> np.ndarray:
    """Ids (int32) of one text; no special tokens are added."""
    return self._ids(self.tokenizer.encode(text, add_special_tokens=False))

  def encode_batch(self, texts: list[str]) -> list[np.ndarray]:
    """Ids (int32) of each text; no special tokens are added."""
    ids: list[np.ndarray] = []
    at = 0
    while at < len(texts):
      stop, size = at, 0
      while stop < len(texts) and (stop == at or size < _CHUNK):
        size += len(texts[stop])
        stop += 1
      encoded = self.tokenizer.encode_batch_fast(
        texts[at:stop], add_special_tokens=False
      )
      ids.extend(self._ids(e) for e in encoded)
      at = stop
    return ids

  def encode_offsets(self, text: str) -> tuple[np.ndarray, np.ndarray]:
    """Ids and the [n, 2] character offsets of their tokens."""
    encoded = self.tokenizer.encode(text, add_special_tokens=False)
    return self._ids(encoded), np.asarray(encoded.offsets).reshape(-1, 2)

  def _ids(self, encoded) -> np.ndarray:
    ids = np.array(encoded.ids, np.int32)
    return ids if self._remap is None else self._remap[ids]


@dataclasses.dataclass(frozen=True)
class Tokenizer:
  """A loaded tokenizer with its four views; see the module's docstring."""

  hf: transformers.PreTrainedTokenizerBase
  start: View
  middle: View
  plain_start: View
  plain: View
  marker_ids: frozenset[int]
  added_prefix: tuple[int, ...]  # ids that encoding adds before a text
  decoder: tokenizers.Tokenizer
  files: dict[str, str]  # file name -> SHA-256

  def decode(self, ids: Iterable[int]) -> str:
    """Text of ids, markers included, no space stripped."""
    return self.decoder.decode([int(i) for i in ids], skip_special_tokens=False)

  def plain_runs(self, text: str) -> list[str]:
    """`text` split at its markers; the runs between them, maybe empty."""
    ids, offsets = self.middle.encode_offsets(text)
    runs, at = [], 0
    for token, (start, stop) in zip(ids.tolist(), offsets, strict=True):
      if token in self.marker_ids:
        runs.append(text[at:start])
        at = stop
    return [*runs, text[at:]]


def load(directory) -> Tokenizer:
  """Loads the tokenizer files of a checkpoint folder.

  A `tokenizer.json` is used exactly as it stands, whatever class
  `tokenizer_config.json` names: classes rebuild parts of it, and a wrong class
  name (there are such checkpoints) would change ids.

  Raises:
    TokenizerError: there is none, one without a vocabulary, or only in a form
      that needs a package.
  """
  directory = pathlib.Path(directory)
  if not directory.is_dir():
    raise TokenizerError(f'{directory}: no such folder')
  loader = (
    transformers.PreTrainedTokenizerFast
    if (directory / 'tokenizer.json').is_file()
    else transformers.AutoTokenizer
  )
  try:
    hf = loader.from_pretrained(
      str(directory), local_files_only=True, trust_remote_code=False
    )
  except Exception as e:  # noqa: BLE001 many kinds, all with one cure
    raise TokenizerError(tokenizer_files.refusal(directory, str(e))) from e
  if not hasattr(hf, 'backend_tokenizer'):
    raise TokenizerError(
      f'{directory}: {type(hf).__name__} is not a fast tokenizer; convert it '
      'to tokenizer.json'
    )
  if not _is_usable(hf.backend_tokenizer):
    # transformers makes one out of nothing where files are missing.
    why = f'of {_PROBE!r} it makes no two different tokens'
    raise TokenizerError(tokenizer_files.refusal(directory, why))
  spec = json.loads(hf.backend_tokenizer.to_str())
  spec['truncation'] = spec['padding'] = None
  ids = {t['content']: t['id'] for t in spec['added_tokens']}
  plain = _without_markers(spec)
  backend = hf.backend_tokenizer
  with_added = backend.encode('a', add_special_tokens=True).ids
  without = backend.encode('a', add_special_tokens=False).ids
  prefix = with_added[: len(with_added) - len(without)]
  if with_added[len(prefix) :] != without:  # something is added behind too
    prefix = prefix[:1] if with_added[1 : 1 + len(without)] == without else []
  # Building a view takes a second or so; most tokenizers add no dummy prefix.
  start, plain_start = View(spec, ids), View(plain, ids)
  middle_spec = _without_dummy_prefix(spec)
  no_prefix = _same(spec, middle_spec)
  return Tokenizer(
    hf=hf,
    start=start,
    middle=start if no_prefix else View(middle_spec, ids),
    plain_start=plain_start,
    plain=plain_start if no_prefix else View(_without_dummy_prefix(plain), ids),
    marker_ids=frozenset(
      t['id'] for t in spec['added_tokens'] if not _is_text(t)
    ),
    added_prefix=tuple(prefix),
    decoder=start.tokenizer
    if _same(spec, _without_strip(spec))
    else (tokenizers.Tokenizer.from_str(json.dumps(_without_strip(spec)))),
    files=tokenizer_files.hashes(directory),
  )


def _is_usable(backend: tokenizers.Tokenizer) -> bool:
  """Whether text becomes more than nothing, or one token over and over."""
  backend.no_truncation()
  backend.no_padding()
  try:
    ids = backend.encode(_PROBE, add_special_tokens=False).ids
  except Exception:  # noqa: BLE001 a vocabulary without what it needs
    return False
  own = backend.get_vocab_size(with_added_tokens=False)
  return own > 0 and len(set(ids)) > 1


def _is_text(token: dict) -> bool:
  """Whether an added token is a way of writing text, not a marker."""
  text = token['content'].replace('▁', ' ')
  return not token['special'] and (text.isspace() or len(text) == 1)


def _without_markers(spec: dict) -> dict:
  """A copy in which text that spells a marker is plain text."""
  markers = {t['content'] for t in spec['added_tokens'] if not _is_text(t)}
  spec = dict(spec)
  spec['added_tokens'] = [t for t in spec['added_tokens'] if _is_text(t)]
  spec['post_processor'] = None
  model = spec['model'] = dict(spec['model'])
  if model['type'] == 'BPE':
    # A vocabulary may hold a marker as an ordinary entry that merges build.
    model['merges'] = [
      m
      for m in model['merges']
      if (m.replace(' ', '', 1) if isinstance(m, str) else ''.join(m))
      not in markers
    ]
    if model.get('ignore_merges'):
      keep = model.get('unk_token')
      model['vocab'] = {
        t: i for t, i in model['vocab'].items() if t not in markers or t == keep
      }
  elif model['type'] == 'Unigram':
    model['vocab'] = [
      [f'{NO_TEXT}{i}' if piece in markers else piece, score]
      for i, (piece, score) in enumerate(model['vocab'])
    ]
  return spec


def _without_dummy_prefix(spec: dict) -> dict:
  """A copy that puts no space before a text."""
  spec = copy.copy(spec)
  spec['normalizer'] = _edit(spec['normalizer'], 'normalizers')
  spec['pre_tokenizer'] = _edit(spec['pre_tokenizer'], 'pretokenizers')
  spec['post_processor'] = None
  return spec


def _without_strip(spec: dict) -> dict:
  """A copy whose decoder keeps a space at the beginning of the text."""
  spec = copy.copy(spec)
  spec['decoder'] = _edit(spec['decoder'], 'decoders')
  return spec


def _same(a: dict, b: dict) -> bool:
  parts = ('normalizer', 'pre_tokenizer', 'decoder')
  return all(a[p] == b[p] for p in parts)


def _edit(part: dict | None, children: str) -> dict | None:
  if part is None:
    return None
  kind = part['type']
  if kind == 'Sequence':
    kept = [_edit(p, children) for p in part[children]]
    return {**part, children: [p for p in kept if p is not None]}
  if kind == 'Prepend' or (kind == 'Strip' and children == 'decoders'):
    return None
  if kind == 'Metaspace':
    return {**part, 'prepend_scheme': 'never'}
  if kind == 'ByteLevel' and children == 'pretokenizers':
    return {**part, 'add_prefix_space': False}
  return part
