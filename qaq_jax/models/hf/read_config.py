"""Reads config.json of every supported family into a ModelConfig.

Files of either generation are read: `rope_parameters` (transformers 5) or
`rope_theta` with `rope_scaling` (4), whose kind is called `rope_type` or
`type`. Where a key is optional, real files leave it out and the value is that
of the family's own configuration class; all else must be in the file. Keys that
would change a number and that we can't honour are errors, never ignored.
"""

from collections.abc import Mapping

from qaq_jax.models.config import ModelConfig
from qaq_jax.models.hf.families import FAMILIES
from qaq_jax.models.hf.reader import Reader

# Of a file as a whole, where the rest is in a section.
_OUTER = ('eos_token_id', 'bos_token_id', 'pad_token_id', 'quantization_config')


def read_config(config: Mapping, origin: str = 'config.json') -> ModelConfig:
  """Returns the ModelConfig of a parsed config.json.

  Args:
    config: the parsed file.
    origin: file name for error messages.

  Raises:
    ValueError: an unsupported family (the supported ones are listed), a
      missing key, or a value that we can't honour; names the key and the file.
  """
  config = _without_wrapper(config)
  name = config.get('model_type')
  if name not in FAMILIES:
    raise ValueError(
      f"{origin}: 'model_type' is {name!r}, which is not supported;"
      f' supported families: {", ".join(sorted(FAMILIES))}'
    )
  family = FAMILIES[name]
  reader = Reader({**family.absent, **config}, origin)
  if config.get('quantization_config') is not None:
    method = dict(config['quantization_config']).get('quant_method', 'unknown')
    raise reader.error(
      'quantization_config',
      f'says the weights are quantised ({method}): use the original'
      ' checkpoint in bfloat16, float16 or float32 instead',
    )
  result = family.read(reader)
  _check(result, reader)
  return result


def _without_wrapper(config: Mapping) -> Mapping:
  """The language model's section of a multimodal file; others as they are."""
  section = config.get('text_config')
  for family in FAMILIES.values():
    wrapped = family.wrapper and family.wrapper == config.get('model_type')
    if wrapped and isinstance(section, Mapping):
      return {
        **{key: config[key] for key in _OUTER if key in config},
        **family.section_absent,
        **section,
        'model_type': family.model_type,
      }
  return config


def _check(config: ModelConfig, reader: Reader) -> None:
  if config.num_kv_heads < 1 or config.num_heads % config.num_kv_heads:
    raise reader.error(
      'num_key_value_heads',
      f'is {config.num_kv_heads}, which does not divide the'
      f' {config.num_heads} query heads',
    )
  if config.head_dim % 2 and any(k.rope for k in config.layers):
    raise reader.error('head_dim', f'is {config.head_dim}: rotary needs pairs')
  for name, size in (
    ('vocab_size', config.vocab_size),
    ('hidden_size', config.hidden_size),
    ('num_hidden_layers', config.num_layers),
  ):
    if size < 1:
      raise reader.error(name, f'is {size}, expected at least 1')
