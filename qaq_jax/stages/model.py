"""One model as the stages use it: files, sizes, tokenizer, weights.

Opening reads config.json alone; tokenizer and weights are read when they are
asked for. A tokenizer that writes ids which the model does not embed, and a
length beyond its positions, are refused before anything is computed.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping

import jax
import jax.numpy as jnp

from qaq_jax.encoding import reach, tokenization
from qaq_jax.encoding.encoder import Encoder
from qaq_jax.models.config import ModelConfig
from qaq_jax.models.decoder import Decoder
from qaq_jax.models.hf import checkpoint
from qaq_jax.models.hf import source as source_lib

_NAMED = 3  # ids that a message names


@dataclasses.dataclass(frozen=True)
class Model:
  """A model whose files are at hand; see `open_model`.

  Attributes:
    source: its files.
    config: its sizes.
    field: where the user named it, for messages.
  """

  source: source_lib.ModelSource
  config: ModelConfig
  field: str

  def encoder(self, *, ending: bool = False, **options) -> Encoder:
    """Returns the encoder of its tokenizer.

    Args:
      ending: the ids that end an answer are given to the model too, as in
        training.
      **options: see `Encoder`.

    Raises:
      TokenizerError, TemplateError: see `Encoder`.
      ValueError: an id can occur that the model does not embed, or a length
        has no positions.
    """
    if 'max_length' in options:
      self.check_lengths({'max_length': options['max_length']})
    encoder = Encoder(self.source.directory, **options)
    self._check_ids(encoder.tokenizer, encoder.own_ids(ending=ending))
    return encoder

  def tokenizer(self) -> tokenization.Tokenizer:
    """Returns its tokenizer, for texts that no template is put around.

    Raises:
      TokenizerError: there is none that can be used.
      ValueError: an id can occur that the model does not embed.
    """
    tokenizer = tokenization.load(self.source.directory)
    self._check_ids(tokenizer, tokenizer.added_prefix)
    return tokenizer

  def load(
    self, *, mesh: jax.sharding.Mesh | None, dtype, **options
  ) -> Decoder:
    """Returns its weights, see `checkpoint.load`."""
    return checkpoint.load(
      self.source, mesh=mesh, dtype=jnp.dtype(dtype), **options
    )

  def check_weights(self) -> None:
    """Looks into the weights' headers, see `checkpoint.check`."""
    checkpoint.check(self.source)

  @functools.cached_property
  def hashes(self) -> dict[str, str]:
    """SHA-256 of config.json and weights by file name, wherever they lie."""
    files = source_lib.fingerprint(self.source)['files']
    return {f['name']: f['sha256'] for f in files}

  def fingerprint(self) -> dict:
    """What of its files can change a number."""
    return {'model': self.hashes, 'commit': self.source.commit}

  def check_lengths(self, lengths: Mapping[str, int]) -> None:
    """Refuses sequences for which the model has no positions.

    Args:
      lengths: field of the config -> tokens.

    Raises:
      ValueError: one is too long; names its field.
    """
    positions = self.config.max_positions
    for field, length in lengths.items():
      if length > positions:
        raise ValueError(
          f'{field}: {length} tokens are more than the {positions} positions '
          f'of {self.source.path}; the most is {field}={positions}'
        )

  def _check_ids(
    self, tokenizer: tokenization.Tokenizer, own: Iterable[int]
  ) -> None:
    size = self.config.vocab_size
    found = reach.beyond(tokenizer, own, size)
    if not found:
      return
    named = [f'{i} ({token!r})' for i, token in found.items()]
    more = len(named) - _NAMED
    if more > 0:
      named[_NAMED:] = [f'{more:,} more']
    raise ValueError(
      f'{self.field}: the tokenizer of {self.source.path} writes ids up to '
      f'{max(found)}, the model embeds {size}. Not embedded: '
      f'{", ".join(named)}. Take the tokenizer that belongs to the weights, '
      'or a chat_template without these tokens, or add rows to the embedding '
      '(resize_token_embeddings in transformers)'
    )


def open_model(
  path: str, revision: str | None = None, *, field: str, weights: bool = True
) -> Model:
  """Finds a model's files, downloading them, and reads its sizes.

  Args:
    path: a folder, or a hub id.
    revision: branch, tag or commit of a hub id; empty: the default branch.
    field: where the user named it, for messages.
    weights: False takes config and tokenizer alone, for planning.

  Raises:
    OSError, ValueError: see `source.resolve` and `read_config`.
  """
  source = source_lib.resolve(path, revision or None, weights=weights)
  return Model(source, checkpoint.read_config(source), field)
