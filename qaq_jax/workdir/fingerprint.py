"""Fingerprints: what an artifact was made from, compared with what is asked.

A fingerprint is a JSON object of everything that can change a number. One that
lacks a key means the behaviour from before there was that key: who adds one
names that behaviour's value among the defaults of its `written`, which leaves
keys at their default out. So artifacts of before stay usable, and fingerprints
of the same inputs stay the same.
"""

import hashlib
import json
import re
from collections.abc import Mapping

from qaq_jax.workdir.files import StoreError

_SHOWN = 12  # lines of what differs
_LENGTH = 100  # characters of a value
_HASH = re.compile('[0-9a-f]{32,}')


def written(fingerprint: Mapping, defaults: Mapping | None = None) -> dict:
  """A fingerprint as it is kept: JSON-ready, without keys at their default.

  Args:
    fingerprint: JSON-serialisable; a tuple becomes the list that is written.
    defaults: values of keys that were added later, nested like it.
  """
  return _without(json.loads(json.dumps(fingerprint)), defaults or {})


def digest(fingerprint: Mapping, *, ascii_only: bool = False) -> str:
  """SHA-256 of the canonical JSON of a fingerprint as it is kept."""
  text = json.dumps(fingerprint, sort_keys=True, ensure_ascii=ascii_only)
  return hashlib.sha256(text.encode()).hexdigest()


def check(
  old: Mapping,
  new: Mapping,
  *,
  what: str,
  back: str,
  defaults: Mapping | None = None,
) -> None:
  """Refuses to go on with what was made from other inputs.

  Args:
    old: the fingerprint as it was found.
    new: the fingerprint of what is asked for now, JSON-serialisable.
    what: what was made and how, as in 'DIR holds scores that were made
      otherwise'.
    back: sentences that say what to do.
    defaults: the values of keys that `old` may lack, where `new` has all; see
      `written`.

  Raises:
    StoreError: they differ; names every key with its value then and now.
  """
  found = differences(old, new, defaults)
  if not found:
    return
  if len(found) == 1:
    raise StoreError(f'{what} (then -> now): {found[0]}. {back}')
  lines = [f'  {line}' for line in found[:_SHOWN]]
  if len(found) > _SHOWN:
    lines.append(f'  and {len(found) - _SHOWN} more')
  raise StoreError('\n'.join([f'{what} (then -> now):', *lines, back]))


def differences(
  old: Mapping, new: Mapping, defaults: Mapping | None = None
) -> list[str]:
  """What differs between two fingerprints, as 'key.key: then -> now'."""
  defaults = defaults or {}
  new = json.loads(json.dumps(new))
  return _differences(_filled(old, defaults), _filled(new, defaults), '')


def _without(value, defaults):
  kept = {}
  for key, one in value.items():
    default = defaults.get(key)
    if isinstance(one, dict) and isinstance(default, Mapping):
      left = _without(one, default)
      if one and not left:
        continue
      one = left
    elif key in defaults and one == default:
      continue
    kept[key] = one
  return kept


def _filled(value, defaults):
  value = dict(value)
  for key, default in defaults.items():
    if not isinstance(default, Mapping):
      value.setdefault(key, default)
    elif isinstance(value.setdefault(key, {}), Mapping):
      value[key] = _filled(value[key], default)
  return value


def _differences(old, new, name):
  if isinstance(old, Mapping) and isinstance(new, Mapping):
    found = []
    for key in sorted(set(old) | set(new), key=str):
      path = f'{name}.{key}' if name else str(key)
      if key not in old:
        found.append(f'{path}: (absent) -> {_short(new[key])}')
      elif key not in new:
        found.append(f'{path}: {_short(old[key])} -> (absent)')
      else:
        found += _differences(old[key], new[key], path)
    return found
  if old == new:
    return []
  same = 0  # characters that long texts begin with alike
  if isinstance(old, str) and isinstance(new, str):
    pairs = zip(old, new, strict=False)
    unlike = (i for i, (a, b) in enumerate(pairs) if a != b)
    same = next(unlike, min(len(old), len(new)))
  start = same - 20 if same > _LENGTH // 2 else 0
  return [f'{name}: {_short(old, start)} -> {_short(new, start)}']


def _short(value, start=0) -> str:
  """A value in one line: hashes by their first digits, long ones cut."""
  if start:
    value = '...' + value[start:]
  text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
  text = _HASH.sub(lambda found: f'{found.group()[:12]}...', text)
  return text if len(text) <= _LENGTH else f'{text[:_LENGTH]}...'
