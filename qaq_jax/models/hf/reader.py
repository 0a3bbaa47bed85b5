"""Single values of a config.json, with errors that name key and file."""

from collections.abc import Mapping

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
    if isinstance(value, (int, float)) and value < 0:
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
