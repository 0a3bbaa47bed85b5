"""Words and numbers as HTML."""

import html
import re

import numpy as np

_CONTROL = {i: chr(0x2400 + i) for i in range(32) if chr(i) not in '\t\n'}
_CONTROL[127] = '\u2421'


def escape(text) -> str:
  """Text for HTML; control characters become visible symbols."""
  return html.escape(str(text).replace('\r\n', '\n').translate(_CONTROL))


def prose(words) -> str:
  """`escape`, with names in backticks as code."""
  return re.sub(r'`([^`\n]+)`', r'<code>\1</code>', escape(words))


def number(value, digits=3) -> str:
  """A number for people; a dash for none."""
  if value is None or (isinstance(value, float) and not np.isfinite(value)):
    return '\u2013'
  if isinstance(value, float):
    return f'{round(value, digits) + 0.0:.{digits}f}'.replace('-', '\u2212')
  return f'{value:,}'


def percent(part, whole) -> str:
  """A share with one decimal; a dash of nothing."""
  return f'{part / whole:.1%}' if whole else '\u2013'


def table(header, rows, header_class='') -> str:
  """A table; cells are HTML already, or (class and style, HTML)."""

  def cell(value):
    if isinstance(value, tuple):
      return f'<td {value[0]}>{value[1]}</td>'
    return f'<td>{value}</td>'

  first, *others = header
  top = f'<th>{first}</th>' + ''.join(
    f'<th{header_class}>{name}</th>' for name in others
  )
  body = ''.join(
    '<tr>' + ''.join(cell(value) for value in row) + '</tr>' for row in rows
  )
  return (
    f'<div class="scroll"><table><thead><tr>{top}</tr></thead>'
    f'<tbody>{body}</tbody></table></div>'
  )


def figure(title, picture, caption) -> str:
  """A titled picture; nothing without a picture."""
  if picture is None:
    return ''
  return (
    f'<figure><b>{title}</b>{picture}<figcaption>{caption}</figcaption>'
    '</figure>'
  )


def models_of(columns):
  """The models of the roles first, then the others."""
  first = [columns.roles[r] for r in ('strong', 'weak') if r in columns.roles]
  others = [model for model in columns.models if model not in first]
  return list(dict.fromkeys(first + others))


def role_name(columns, model) -> str:
  """A model's name, with its role where that is another word."""
  roles = [r for r, name in columns.roles.items() if name == model]
  label = escape(model)
  return label if model in roles or not roles else f'{label} ({roles[0]})'
