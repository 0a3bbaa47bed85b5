"""Score kinds that cannot be, told before anything is scored."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from qaq_jax.encoding import published_ifd
from qaq_jax.encoding.options import EncoderOptions
from qaq_jax.encoding.sequences import TERMS
from qaq_jax.scoring import table

_READS = ('logp', 'hidden')
# Columns of a model that are no kind's.
_TAKEN = {*table.DERIVED, *published_ifd.FORMS, 'status', 'reason', 'row', 'id'}


def check(kinds: Sequence[Any]) -> None:
  """Refuses kinds that would overwrite each other, or that nothing fills.

  Args:
    kinds: `kinds.ScoreKind`s, all that there are.

  Raises:
    ValueError: names the kind, or what two of them share.
  """
  beside = 'a file beside the parts'
  counts = {k.count for k in kinds if k.count}
  for what, found in (
    ('name', [k.name for k in kinds]),
    ('column', [*(k.column or beside for k in kinds), *sorted(counts)]),
  ):
    twice = sorted({x for x in found if found.count(x) > 1})
    if twice:
      raise ValueError(f'two score kinds have the {what} {twice[0]}')
  computed: dict[str, tuple] = {}
  for k in kinds:
    _check_fields(k)
    own = k.reduce, k.reads, k.sequence, k.parameters
    if computed.setdefault(k.result, own) != own:
      raise ValueError(
        f'score kind {k.name}: another has a `reduce` that is called '
        f'{k.result[:-3]} too; give it a name of its own'
      )


def _check_fields(kind):
  """Refuses a kind that asks for what there is not."""
  spans = {span for spans in TERMS.values() for span in spans}
  for form in published_ifd.FORMS.values():
    if form.option == kind.option:
      spans |= form.terms.keys()
  options = {
    field.name
    for field in dataclasses.fields(EncoderOptions)
    if isinstance(field.default, bool)
  }
  for name, value, known in (
    ('reads', kind.reads, _READS),
    ('span', kind.span or kind.name, {kind.name} if kind.sequence else spans),
    ('sequence', kind.sequence, ('', *TERMS)),
    ('option', kind.option, ('', *options)),
    ("dtype's kind", np.dtype(kind.dtype).kind, 'fi'),
  ):
    if value not in known:
      raise ValueError(
        f'score kind {kind.name}: {name} is {value!r}; it is one of '
        f'{sorted(known)}'
      )
  taken = sorted({kind.column, kind.count} & _TAKEN)
  if taken:
    raise ValueError(
      f'score kind {kind.name}: the score table has a column {taken[0]} of its '
      'own; name it otherwise'
    )
  if (kind.sequence != '') == (kind.column != ''):
    raise ValueError(
      f'score kind {kind.name}: a number of a span has a `column`, a vector of '
      'a `sequence` a file: set one of the two'
    )
  if kind.sequence and kind.reads != 'hidden':
    raise ValueError(
      f'score kind {kind.name}: a whole `sequence` is read as hidden states'
    )
