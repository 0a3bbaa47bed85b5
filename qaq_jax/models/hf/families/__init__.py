"""Families of models, one record each: reading, weights and writing use it.

A new family is a record in a file of this folder and its name below.
"""

from qaq_jax.models.config import ModelConfig
from qaq_jax.models.hf.families.experts import MIXTRAL, QWEN3_MOE
from qaq_jax.models.hf.families.family import Family
from qaq_jax.models.hf.families.gemma import GEMMA, GEMMA2, GEMMA3
from qaq_jax.models.hf.families.layer_norm import GPT2, STARCODER2
from qaq_jax.models.hf.families.llama import LLAMA, MISTRAL, QWEN2, QWEN3

FAMILIES: dict[str, Family] = {
  family.model_type: family
  for family in (
    GEMMA,
    GEMMA2,
    GEMMA3,
    GPT2,
    LLAMA,
    MISTRAL,
    MIXTRAL,
    QWEN2,
    QWEN3,
    QWEN3_MOE,
    STARCODER2,
  )
}


def family_of(config: ModelConfig) -> Family:
  """Returns the record of a model's family."""
  return FAMILIES[config.family]
