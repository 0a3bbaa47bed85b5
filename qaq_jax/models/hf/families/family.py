"""The record of a family of models, which all that is done with it reads."""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

from qaq_jax.models.config import ModelConfig
from qaq_jax.models.hf.reader import Reader
from qaq_jax.models.hf.transforms import Transform

Keys = Mapping[str, str | Callable[[ModelConfig], Any]]
Weights = Mapping[str, tuple[str, Transform]]


@dataclasses.dataclass(frozen=True)
class Family:
  """A family of models: its config.json and how its checkpoints are laid out.

  Attributes:
    model_type: the name as in config.json.
    architecture: class name that transformers wants in config.json.
    read: a config.json -> its ModelConfig.
    keys: the keys of a config.json that is written, besides those that all
      families share -> the field of ModelConfig, or a function of one.
    weights: our parameter name -> (tensor name, transform), see
      `transforms.py`; within its layer for a layer's parameter, and with
      `{expert}` where each expert has a tensor of its own.
    layer: what stands before the tensors of a layer, whose number is `{}`.
    absent: what a key means that is not in the file at all; null in the file
      stays null (no window; as many key-value heads as query heads).
    wrapper: model_type of files that have this config as their `text_config`.
    section_absent: what else is left out of such a section.
    renames: (pattern, replacement) from other published layouts to this one.
    merged: (pattern, replacements) of tensors [E, parts x rows, columns] that
      hold all experts of a layer: a replacement for each part, with the expert
      as `{expert}`. transformers 5 saves such where it is told to.
    skipped: patterns of tensors that are no parameters of the language model.
  """

  model_type: str
  architecture: str
  read: Callable[[Reader], ModelConfig]
  keys: Keys
  weights: Weights
  layer: str = 'model.layers.{}.'
  absent: Mapping[str, int] = dataclasses.field(default_factory=dict)
  wrapper: str = ''
  section_absent: Mapping[str, float] = dataclasses.field(default_factory=dict)
  renames: tuple[tuple[str, str], ...] = (
    (r'^(?=layers\.|embed_tokens\.|norm\.)', 'model.'),
  )
  skipped: tuple[str, ...] = (r'(^|\.)rotary_emb\.inv_freq$',)
  merged: tuple[tuple[str, tuple[str, ...]], ...] = ()

  @property
  def has_fused_heads(self) -> bool:
    """Whether query, key and value are one matrix in the files."""
    return self.weights['q_kernel'][0] == self.weights['k_kernel'][0]

  def write(self, config: ModelConfig) -> dict:
    """Returns its keys of config.json."""
    return {
      key: of(config) if callable(of) else getattr(config, of)
      for key, of in self.keys.items()
    }

  def tensor(self, path: tuple) -> tuple[str, Transform]:
    """Returns (tensor name template, transform) of a parameter path."""
    name, transform = self.weights[path[-1]]
    return self.layer + name if path[0] == 'stacks' else name, transform

  def canonical(self, name: str) -> str:
    """Returns the name that the table uses for a tensor of a file."""
    for pattern, replacement in self.renames:
      name = re.sub(pattern, replacement, name)
    return name

  def parts(self, canonical: str) -> tuple[str, ...]:
    """Returns the templates of the tensors that one of all experts stands for.

    Each has an `{expert}`; () if the tensor is a single one.
    """
    for pattern, replacements in self.merged:
      match = re.search(pattern, canonical)
      if match:
        return tuple(match.expand(r) for r in replacements)
    return ()

  def is_skipped(self, name: str) -> bool:
    """Whether the tensor is a known buffer."""
    return any(re.search(pattern, name) for pattern in self.skipped)
