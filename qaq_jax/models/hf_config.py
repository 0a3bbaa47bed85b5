"""Reads config.json of every supported family into a ModelConfig.

Where a key is optional here, real files leave it out and the value is that of
the family's own configuration class; all else must be in the file.
"""

import dataclasses
import math
from collections.abc import Mapping

from qaq_jax.models.config import LayerKind, ModelConfig
from qaq_jax.models.rope import ROPE_KINDS, Rope

_ACTIVATIONS = {
    'silu': 'silu',
    'swish': 'silu',
    'gelu': 'gelu',
    'gelu_new': 'gelu_tanh',
    'gelu_pytorch_tanh': 'gelu_tanh',
}


class Reader:
  """A parsed config.json whose errors name the key and the file."""

  def __init__(self, values: Mapping, origin: str):
    self.values = values
    self.origin = origin

  def error(self, key: str, problem: str) -> ValueError:
    """Returns the error to raise about `key`."""
    return ValueError(f'{self.origin}: {key!r} {problem}')

  def need(self, key: str, kind: type = int):
    """Returns a value that must be there."""
    if self.values.get(key) is None:
      raise self.error(key, 'is missing: this family needs it')
    return self.get(key, kind)

  def get(self, key: str, kind: type, default=None):
    """Returns a value, or the default where it is missing or null."""
    value = self.values.get(key)
    if value is None:
      return default
    if kind is float and isinstance(value, int):
      value = float(value)
    if not isinstance(value, kind) or (
        kind is not bool and isinstance(value, bool)
    ):
      raise self.error(key, f'is {value!r}, expected {kind.__name__}')
    if kind in (int, float) and value < 0:
      raise self.error(key, f'is {value!r}, expected a number from 0 up')
    return value

  def refuse(self, key: str, *allowed) -> None:
    """Refuses any value of `key` but those allowed (or missing)."""
    value = self.values.get(key)
    if value is not None and value not in allowed:
      raise self.error(key, f'is {value!r}, which is not supported')

  def activation(self, *keys: str, default: str | None = None) -> str:
    """Returns our name of the activation under the first key that is set."""
    for key in keys:
      name = self.values.get(key)
      if name is not None:
        if name not in _ACTIVATIONS:
          raise self.error(
              key, f'is {name!r}; supported: {sorted(_ACTIVATIONS)}'
          )
        return _ACTIVATIONS[name]
    if default is None:
      raise self.error(keys[0], 'is missing: this family needs it')
    return default


def read_config(config: Mapping, origin: str) -> ModelConfig:
  """See `config.from_hf`."""
  family = config.get('model_type')
  if family == 'gemma3' and isinstance(config.get('text_config'), Mapping):
    # The picture half of Gemma 3 is left aside; its text model is complete.
    outer, config = config, dict(config['text_config'])
    config['model_type'] = family = 'gemma3_text'
    for key in ('eos_token_id', 'bos_token_id', 'pad_token_id',
                'quantization_config'):
      if key not in config and key in outer:
        config[key] = outer[key]
  if family not in FAMILIES:
    raise ValueError(
        f"{origin}: 'model_type' is {family!r}, which is not supported;"
        f' supported families: {", ".join(sorted(FAMILIES))}'
    )
  reader = Reader(config, origin)
  if config.get('quantization_config') is not None:
    method = dict(config['quantization_config']).get('quant_method', 'unknown')
    raise reader.error(
        'quantization_config',
        f'says the weights are quantised ({method}): use the original'
        ' checkpoint in bfloat16, float16 or float32 instead',
    )
  result = FAMILIES[family](reader)
  _check(result, reader)
  return result


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


def _tokens(reader: Reader) -> dict:
  eos = reader.values.get('eos_token_id')
  return {
      'bos_token_id': reader.values.get('bos_token_id'),
      'eos_token_id': tuple(eos) if isinstance(eos, list) else eos,
      'pad_token_id': reader.values.get('pad_token_id'),
  }


def read_rope(
    reader: Reader, scaling: Mapping | None, theta: float, max_positions: int
) -> Rope:
  """Returns the Rope of a `rope_scaling` or `rope_parameters` dictionary."""
  scaling = dict(scaling or {})
  kind = scaling.get('rope_type', scaling.get('type', 'default'))
  if kind not in ROPE_KINDS:
    raise reader.error(
        'rope_parameters' if 'rope_parameters' in reader.values
        else 'rope_scaling',
        f'asks for {kind!r}; supported: {", ".join(ROPE_KINDS)}',
    )
  inner = Reader(scaling, f'{reader.origin} (rope scaling)')
  inner.refuse('partial_rotary_factor', 1.0)
  theta = inner.get('rope_theta', float, theta)
  if kind == 'default':
    return Rope(theta)
  factor = inner.need('factor', float)
  if kind == 'linear':
    return Rope(theta, kind, factor)
  if kind == 'llama3':
    return Rope(
        theta,
        kind,
        factor,
        original_max_positions=inner.need('original_max_position_embeddings'),
        low_freq_factor=inner.need('low_freq_factor', float),
        high_freq_factor=inner.need('high_freq_factor', float),
    )
  return Rope(
      theta,
      kind,
      factor,
      original_max_positions=inner.get(
          'original_max_position_embeddings', int, max_positions
      ),
      beta_fast=inner.get('beta_fast', float, 32.0),
      beta_slow=inner.get('beta_slow', float, 1.0),
      truncate=inner.get('truncate', bool, True),
      attention_factor=_yarn_attention(inner, factor),
  )


def _yarn_attention(inner: Reader, factor: float) -> float:
  def scale(mscale):
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0

  given = inner.get('attention_factor', float)
  if given is not None:
    return given
  mscale = inner.get('mscale', float)
  all_dim = inner.get('mscale_all_dim', float)
  if mscale and all_dim:
    return scale(mscale) / scale(all_dim)
  return scale(1.0)


def _one_rope(reader: Reader, max_positions: int) -> Rope:
  values = reader.values
  scaling = values.get('rope_parameters') or values.get('rope_scaling')
  return read_rope(
      reader, scaling, reader.get('rope_theta', float, 10000.0), max_positions
  )


def _layers(reader: Reader, number: int, rope: Rope | Mapping[str, Rope],
            window: int | None, default_types: list[str]):
  """Returns a LayerKind per layer from `layer_types` or the family's default."""
  types = reader.values.get('layer_types') or default_types
  if len(types) != number:
    raise reader.error(
        'layer_types', f'has {len(types)} entries for {number} layers'
    )
  kinds = {}
  for name in ('full_attention', 'sliding_attention'):
    kinds[name] = LayerKind(
        window=window if name == 'sliding_attention' else None,
        rope=rope[name] if isinstance(rope, Mapping) else rope,
    )
  unknown = sorted(set(types) - set(kinds))
  if unknown:
    raise reader.error('layer_types', f'has {unknown}, not supported')
  if 'sliding_attention' in types and not window:
    raise reader.error('sliding_window', 'is missing for sliding layers')
  return tuple(kinds[t] for t in types)


def _sizes(reader: Reader) -> dict:
  """Returns the fields that the llama-like families share."""
  heads = reader.need('num_attention_heads')
  hidden = reader.need('hidden_size')
  head_dim = reader.get('head_dim', int)
  if head_dim is None:
    if hidden % heads:
      raise reader.error(
          'hidden_size', f'is {hidden}, not a multiple of {heads} heads'
      )
    head_dim = hidden // heads
  return {
      'family': reader.values['model_type'],
      'vocab_size': reader.need('vocab_size'),
      'hidden_size': hidden,
      'intermediate_size': reader.need('intermediate_size'),
      'num_heads': heads,
      'num_kv_heads': reader.get('num_key_value_heads', int, heads),
      'head_dim': head_dim,
      'max_positions': reader.need('max_position_embeddings'),
      'query_scale': head_dim**-0.5,
      **_tokens(reader),
  }


def _llama(reader: Reader) -> ModelConfig:
  sizes = _sizes(reader)
  number = reader.need('num_hidden_layers')
  rope = _one_rope(reader, sizes['max_positions'])
  bias = reader.get('attention_bias', bool, False)
  return ModelConfig(
      **sizes,
      layers=(LayerKind(rope=rope),) * number,
      norm_eps=reader.need('rms_norm_eps', float),
      activation=reader.activation('hidden_act'),
      qkv_bias=bias,
      out_bias=bias,
      mlp_bias=reader.get('mlp_bias', bool, False),
      tie_embeddings=reader.get('tie_word_embeddings', bool, False),
  )


def _mistral(reader: Reader) -> ModelConfig:
  config = _llama(reader)
  window = reader.get('sliding_window', int)
  kinds = tuple(dataclasses.replace(k, window=window) for k in config.layers)
  reader.refuse('attention_bias', False)
  return dataclasses.replace(config, layers=kinds)


def _qwen(reader: Reader) -> ModelConfig:
  config = _llama(reader)
  number = config.num_layers
  # The file keeps sliding_window and max_window_layers when they are off.
  window = None
  if reader.get('use_sliding_window', bool, False):
    window = reader.get('sliding_window', int)
  first = number
  if window is not None and not reader.values.get('layer_types'):
    first = reader.need('max_window_layers')
  types = [
      'full_attention' if i < first else 'sliding_attention'
      for i in range(number)
  ]
  layers = _layers(reader, number, config.layers[0].rope, window, types)
  return dataclasses.replace(config, layers=layers)


def _qwen2(reader: Reader) -> ModelConfig:
  reader.refuse('attention_bias', True)
  return dataclasses.replace(_qwen(reader), qkv_bias=True, out_bias=False)


def _qwen3(reader: Reader) -> ModelConfig:
  reader.need('head_dim')  # 128 by default, whatever hidden_size / heads is
  return dataclasses.replace(_qwen(reader), qk_norm=True)


FAMILIES = {
    'llama': _llama,
    'mistral': _mistral,
    'qwen2': _qwen2,
    'qwen3': _qwen3,
}
