"""Writes a ModelConfig as config.json of the current generation."""

import numpy as np

from qaq_jax.models.config import ModelConfig
from qaq_jax.models.hf.families import family_of


def write_config(config: ModelConfig, dtype) -> dict:
  """Returns config.json as transformers 5 writes it, weights in `dtype`."""
  family, eos = family_of(config), config.eos_token_id
  return {
    'architectures': [family.architecture],
    'model_type': family.model_type,
    'dtype': np.dtype(dtype).name,
    'vocab_size': config.vocab_size,
    'tie_word_embeddings': config.tie_embeddings,
    'bos_token_id': config.bos_token_id,
    'eos_token_id': list(eos) if isinstance(eos, tuple) else eos,
    'pad_token_id': config.pad_token_id,
    **family.write(config),
  }
