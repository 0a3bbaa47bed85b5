"""Python values as JSON and back, without pickle.

Arguments go to a program under test, and its return values come back, as JSON
that names every type which JSON lacks: decoding it can build plain data and
nothing else. A value of any other type comes back as `Opaque`, which is equal
to nothing.

The process under test encodes; the trusted process decodes. Whoever sends
forged bytes has sent a value like any other, and it still has to be the right
one. Whatever was sent, decoding it and comparing it take memory and time in
proportion to its bytes.
"""

import functools
import sys

# As a package of its own where it encodes, in ours where it decodes.
from . import arrays, hashing

_MAX_DEPTH = 100
_MAX_ITEMS = 10_000  # of an iterator that a program returns
_SMALL = 1 << 53  # larger integers travel in hexadecimal
_MAX_DIGITS = 4300  # of a decimal number, as Python has it for whole numbers
_MAX_EXPONENT = 400  # of a decimal number
# Digits of a numerator in hexadecimal; their common divisor takes a time that
# grows with the square.
_MAX_HEX = 1 << 14
# Items, over two levels, from which on only a hash of a list travels: one
# output of MBPP+ holds 128 million.
_HUGE = 5_000_000


class Opaque:
  """Stands for a value whose type is not known here; equal to nothing.

  As all classes that define `__eq__` alone, it has no hash.
  """

  def __init__(self, type_name: str):
    self.type_name = type_name

  def __eq__(self, other):
    return False

  def __repr__(self):
    return f'<{self.type_name}>'


class Iterated(Opaque):
  """The items of an iterator or a view: can be iterated, equals nothing."""

  def __init__(self, items: list):
    super().__init__('iterator')
    self._items = items

  def __iter__(self):
    return iter(self._items)


class Digest:
  """A list or tuple too long to travel: its type, length and hash."""

  def __init__(self, kind: str, length: int, sha256: str):
    self._key = kind, length, sha256

  def __eq__(self, other):
    return type(other) is Digest and self._key == other._key


class Int(int):
  """Value of a subclass of int."""


class Float(float):
  """Value of a subclass of float."""


class Str(str):
  """Value of a subclass of str."""


class List(list):
  """Value of a subclass of list."""


class Tuple(tuple):
  """Value of a subclass of tuple, such as a named tuple."""


class Dict(dict):
  """Value of a subclass of dict, such as a Counter."""


class Set(set):
  """Value of a subclass of set, or the keys or items of a dict."""


class FrozenSet(frozenset):
  """Value of a subclass of frozenset."""


_SUBCLASSES = {
  'int': Int,
  'float': Float,
  'str': Str,
  'list': List,
  'tuple': Tuple,
  'dict': Dict,
  'set': Set,
  'frozenset': FrozenSet,
}
_SEQUENCES = {
  'list': list,
  'tuple': tuple,
  'set': set,
  'frozenset': frozenset,
}
_BASES: tuple[type, ...] = (
  int,
  float,
  str,
  list,
  tuple,
  dict,
  set,
  frozenset,
)
_VIEWS = (type(_SEQUENCES.keys()), type(_SEQUENCES.items()))


def encode(value, depth: int = 0) -> object:
  """Returns `value` as JSON-ready data; see the module's docstring."""
  kind = type(value)
  if value is None or kind is bool or kind is str or kind is float:
    return value
  if kind is int:
    return value if -_SMALL < value < _SMALL else ['int', hex(value)]
  if depth >= _MAX_DEPTH:
    return ['opaque', kind.__name__]
  if depth == 0 and kind in (list, tuple) and _count(value) > _HUGE:
    return ['digest', [kind.__name__, len(value), _hash(value)]]
  if kind in (list, tuple, set, frozenset):
    return [kind.__name__, [encode(item, depth + 1) for item in value]]
  if kind is dict:
    return [
      'dict',
      [[encode(k, depth + 1), encode(v, depth + 1)] for k, v in value.items()],
    ]
  return _encode_rare(value, kind, depth)


def _count(value):
  inner = (len(v) for v in value if isinstance(v, (list, tuple)))
  return len(value) + sum(inner)


def _hash(value):
  import hashlib  # only for huge values

  digest = hashlib.sha256()
  for item in value:
    digest.update(repr(item).encode('utf-8', 'backslashreplace'))
    digest.update(b'\0')
  return digest.hexdigest()


def _encode_rare(value, kind, depth):
  if kind is complex:
    return ['complex', [value.real, value.imag]]
  if kind is bytes:
    return ['bytes', value.hex()]
  # A value of these types exists only where its module was imported.
  if kind is getattr(sys.modules.get('fractions'), 'Fraction', None):
    return ['fraction', [hex(value.numerator), hex(value.denominator)]]
  if isinstance(value, getattr(sys.modules.get('decimal'), 'Decimal', ())):
    return ['decimal', str(value)]
  numpy = sys.modules.get('numpy')
  if numpy and isinstance(value, (numpy.generic, numpy.ndarray)):
    if value.dtype.kind not in arrays.KINDS:
      return ['opaque', kind.__name__]
    flat = numpy.asarray(value).reshape(-1).tolist()
    flat = [encode(item, depth + 1) for item in flat]
    array = isinstance(value, numpy.ndarray)
    shape = list(value.shape) if array else None
    return ['numpy', [value.dtype.str, shape, flat]]
  if isinstance(value, _VIEWS):
    return ['sub', encode(set(value), depth + 1)]
  for base in _BASES:
    if isinstance(value, base):
      inner = encode(base(value), depth)
      huge = isinstance(inner, list) and inner[0] == 'digest'
      return inner if huge else ['sub', inner]
  if depth == 0 and hasattr(kind, '__iter__'):
    return _encode_iterable(value, kind)
  return ['opaque', kind.__name__]


def _encode_iterable(value, kind):
  items: list = []
  for item in value:
    if len(items) == _MAX_ITEMS:
      return ['opaque', kind.__name__]
    items.append(encode(item, 1))
  return ['iter', items]


def decode(data: object) -> object:
  """Returns the value that `encode` was given.

  Numbers too long to be compared in little time come back as `Opaque`.

  Args:
    data: parsed JSON, from a process that is not trusted.

  Raises:
    ValueError: on anything that `encode` does not write.
  """
  try:
    return _decode(data, 0)
  except Exception as e:  # whatever the sender may have thought of
    raise ValueError(f'not an encoded value: {e!r:.200}') from e


def _decode(data, depth):
  if data is None or isinstance(data, (bool, str, float, int)):
    return data
  if type(data) is not list or depth > _MAX_DEPTH:
    raise ValueError('no pair of a type and a value, or too deep')
  tag, payload = data
  if tag in ('list', 'tuple'):
    return _SEQUENCES[tag](_decode_all(payload, depth))
  if tag in ('set', 'frozenset'):
    return _SEQUENCES[tag](hashing.distinct(_decode_all(payload, depth)))
  if tag == 'dict':
    keys = [_decode(key, depth + 1) for key, _ in payload]
    hashing.distinct(keys)
    return {
      key: _decode(value, depth + 1)
      for key, (_, value) in zip(keys, payload, strict=True)
    }
  if tag == 'sub':
    base = _decode(payload, depth)
    return _SUBCLASSES[type(base).__name__](base)
  return _RARE[tag](payload, depth)


def _decode_all(payload, depth):
  if type(payload) is not list:
    raise ValueError('no list of items')
  return [_decode(item, depth + 1) for item in payload]


def _decode_fraction(payload, _):
  import fractions  # only where a program returned one

  numerator, denominator = payload
  if max(len(numerator), len(denominator)) > _MAX_HEX:
    return Opaque('Fraction')
  return fractions.Fraction(int(numerator, 16), int(denominator, 16))


def _decode_decimal(text, _):
  number = _decimal_type()(text)
  if number.is_infinite():
    return number
  _, digits, _ = number.as_tuple()
  if (
    number.is_nan()
    or abs(number.adjusted()) > _MAX_EXPONENT
    or len(digits) > _MAX_DIGITS
  ):
    return Opaque('Decimal')  # comparing it could take for ever
  return number


@functools.cache
def _decimal_type():
  import decimal  # only where a program returned one
  import fractions

  class Decimal(decimal.Decimal):
    """A decimal number that is compared as the fraction that it is.

    Comparing one with a whole number would else turn that into decimal
    digits, which takes a time that grows with the square of its length.
    """

    def __eq__(self, other):
      if isinstance(other, decimal.Decimal) or self.is_infinite():
        return super().__eq__(other)
      return fractions.Fraction(self) == other

    __hash__ = decimal.Decimal.__hash__

  return Decimal


def _decode_numpy(payload, depth):
  dtype, shape, flat = payload
  return arrays.build(dtype, shape, _decode_all(flat, depth))


def _decode_digest(payload, _):
  kind, length, sha256 = payload
  if [type(kind), type(length), type(sha256)] != [str, int, str]:
    raise ValueError('no digest')
  return Digest(kind, length, sha256)


def _decode_opaque(name, _):
  if type(name) is not str:
    raise ValueError('no name of a type')
  return Opaque(name[:100])


_RARE = {
  'int': lambda p, _: int(p, 16),
  'complex': lambda p, _: complex(*p),
  'bytes': lambda p, _: bytes.fromhex(p),
  'fraction': _decode_fraction,
  'decimal': _decode_decimal,
  'numpy': _decode_numpy,
  'iter': lambda p, depth: Iterated(_decode_all(p, depth)),
  'digest': _decode_digest,
  'opaque': _decode_opaque,
}
