"""Score kinds: what is computed of a row under a model, a record for each.

A kind names the tokens that it is read off, how the device reduces what the
model says about them to one number, and the column that holds it. The columns
of the score store, what `score.terms` may ask for, the outputs of the scoring
program, the fingerprint and the table in docs/scoring.md are made from KINDS.

Letters: B rows of the batch, T tokens of a row, D hidden size.
"""

import dataclasses
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa

from qaq_jax.encoding import published_ifd
from qaq_jax.scoring import check_kinds
from qaq_jax.workdir import fingerprint as fingerprint_lib


def nll(logp_BT: jax.Array, inside_BT: jax.Array) -> jax.Array:
  """Sum of -log p, nats, float32 [B]."""
  return -jnp.sum(jnp.where(inside_BT, logp_BT, 0.0), axis=1)


def embedding(hidden_BTD: jax.Array, inside_BT: jax.Array) -> jax.Array:
  """Position-weighted mean of hidden states, L2-normalised, float16 [B, D].

  Weights are 1, 2, 3, ...: RDS+, arXiv 2503.01807 section 3.
  """
  position_T = jnp.arange(hidden_BTD.shape[1])
  # The division by the sum of weights keeps the mean in the range of float32;
  # its value is undone by the normalisation.
  weight_BT = jnp.where(inside_BT, position_T + 1.0, 0.0)
  weight_BT = weight_BT / jnp.maximum(
    jnp.sum(weight_BT, axis=1, keepdims=True), 1.0
  )
  # Padding may hold anything, so it is masked, not multiplied by zero.
  hidden_BTD = jnp.where(
    inside_BT[..., None], hidden_BTD.astype(jnp.float32), 0.0
  )
  mean_BD = jnp.sum(hidden_BTD * weight_BT[..., None], axis=1)
  norm_B1 = jnp.sqrt(jnp.sum(mean_BD * mean_BD, axis=1, keepdims=True))
  return (mean_BD / jnp.maximum(norm_B1, 1e-30)).astype(jnp.float16)


@dataclasses.dataclass(frozen=True)
class ScoreKind:
  """One number of a row under a model, or one vector.

  Attributes:
    name: what `score.terms` calls it.
    says: what it is, with its unit.
    reduce: (values, inside_BT, **parameters) -> [B], run on the device. The
      mask says which tokens are read; it has none in rows that are not there,
      whose result is not used. Not finite: the row becomes `non_finite`.
    column: where it is stored, with `_<model>` behind it.
    dtype: the dtype of what is stored; float or int.
    span: the tokens that it is read off, as `Sequence.spans` names them; ''
      is `name`. A row that has no such span gets a null.
    reads: the values: 'logp', the log-probability of each scored token given
      those before it, float32 [B, T]; or 'hidden', the last hidden states
      [B, T, D] of a whole sequence.
    sequence: which sequence, for 'hidden'. Then `reduce` gives [B, D] and the
      store keeps it beside the parts, not in a column.
    count: column of the number of tokens read; '' = none.
    option: the option of `EncoderOptions`, that offers it; '' = always offered.
    parameters: the parameters of `reduce`.
    always: whether a table in which it is not computed has its column too, of
      nulls: rules and reports count on it. Not of a kind that is younger than
      some folder of scores, whose parts have no such column.
  """

  name: str
  says: str
  reduce: Callable
  column: str = ''
  dtype: type = np.float32
  span: str = ''
  reads: str = 'logp'
  sequence: str = ''
  count: str = ''
  option: str = ''
  parameters: Mapping[str, float | str] = dataclasses.field(
    default_factory=dict, hash=False
  )
  always: bool = False

  @property
  def tokens(self) -> str:
    """Name of the span that it is read off."""
    return self.span or self.name

  @property
  def result(self) -> str:
    """Name of what the scoring program returns for it.

    One result holds all spans, so kinds that differ in theirs alone share it.
    """
    name = self.name
    if self.reads == 'logp' and not self.parameters:
      name = getattr(self.reduce, '__name__', name)
    return f'{name}_{"BD" if self.sequence else "BS"}'

  def definition(self) -> dict:
    """What its numbers depend on, for the fingerprint."""
    return {
      'span': self.tokens,
      'reads': self.reads,
      'sequence': self.sequence,
      'dtype': np.dtype(self.dtype).name,
      **({'parameters': dict(self.parameters)} if self.parameters else {}),
    }


def likelihood(name: str, what: str, **fields: Any) -> ScoreKind:
  """The kind of the likelihood of a span.

  Args:
    name: its name, and its span's.
    what: the span in words.
    **fields: more fields of the `ScoreKind`, or others than these.
  """
  fields = {'column': f'nll_{name}', 'count': f'n_{name}'} | fields
  return ScoreKind(name, f'sum of -log p of the {what}, nats', nll, **fields)


# QAQ's four terms, arXiv 2603.12165. A and A given Q are over the same tokens,
# so they share a count.
LIKELIHOODS = (
  likelihood('q', 'query', always=True),
  likelihood('q_given_a', 'query after the answer', always=True),
  likelihood('a', 'answer', always=True),
  likelihood('a_given_q', 'answer after the query', count='n_a', always=True),
)
EMBEDDING = ScoreKind(
  'embedding',
  'position-weighted mean of the last hidden layer, L2-normalised '
  '(RDS+, arXiv 2503.01807)',
  embedding,
  dtype=np.float16,
  reads='hidden',
  sequence='forward',
  option='embeddings',
)
KINDS = (
  *LIKELIHOODS,
  *(
    likelihood(term, what, option=form.option, always=True)
    for form in published_ifd.FORMS.values()
    for term, what in form.terms.items()
  ),
  EMBEDDING,
)


def offered(options) -> tuple[ScoreKind, ...]:
  """The kinds that an encoder's options offer, in the order of the columns.

  Raises:
    ValueError: two kinds would overwrite each other, or one of them could
      hold nothing; says which and why.
  """
  check_kinds.check(KINDS)
  return tuple(k for k in KINDS if not k.option or getattr(options, k.option))


def wanted(
  options,
  terms: Collection[str],
  begun: Collection[str] | None = None,
) -> tuple[ScoreKind, ...]:
  """The kinds that will be computed: `terms`, or all that are offered.

  Args:
    options: the options of the encoder.
    terms: names, as `score.terms` has them; () is all.
    begun: names that a folder of scores was begun with: where `terms` is
      empty it goes on with those.

  Raises:
    ValueError: one of `terms` is not offered.
  """
  kinds = offered(options)
  names = [k.name for k in kinds if k.column]
  unknown = set(terms) - set(names)
  if unknown:
    raise ValueError(
      f'score.terms: {sorted(unknown)} is not offered; there are: '
      + ', '.join(names)
    )
  if not terms:
    terms = names if begun is None else begun
  return tuple(k for k in kinds if k.name in terms or not k.column)


def stored(options, computed: Collection[ScoreKind]) -> tuple[ScoreKind, ...]:
  """The kinds that a score table of `computed` has columns for."""
  return tuple(k for k in offered(options) if k in computed or k.always)


# Definitions that a fingerprint does not spell out: the most usual one, and
# that of a kind from before there were definitions in it.
_PLAIN = {'reads': 'logp', 'sequence': '', 'dtype': 'float32'}
_BEFORE = {
  'embedding': {
    'span': 'embedding',
    'reads': 'hidden',
    'sequence': 'forward',
    'dtype': 'float16',
  }
}


def fingerprint(kinds: Iterable[ScoreKind]) -> dict:
  """What the numbers depend on: names of the kinds, and their definitions."""
  kinds = list(kinds)
  return fingerprint_lib.written(
    {
      'scored_terms': [k.name for k in kinds if k.column],
      'kinds': {k.name: k.definition() for k in kinds},
    },
    {'kinds': {k.name: _PLAIN | {'span': k.name} for k in kinds} | _BEFORE},
  )


def columns(kinds: Iterable[ScoreKind]) -> dict[str, type]:
  """Columns of the kinds, in order: name without model -> dtype."""
  kinds = [k for k in kinds if k.column]
  return {k.column: k.dtype for k in kinds} | {
    k.count: np.int32 for k in kinds if k.count
  }


def score_schema(model: str, kinds: Iterable[ScoreKind]) -> pa.Schema:
  """Columns of a part: `row`, those of the kinds, status and reason."""
  return pa.schema(
    [
      pa.field('row', pa.int64(), nullable=False),
      *(
        pa.field(f'{name}_{model}', pa.from_numpy_dtype(dtype))
        for name, dtype in columns(kinds).items()
      ),
      pa.field(f'status_{model}', pa.string(), nullable=False),
      pa.field(f'reason_{model}', pa.string(), nullable=False),
    ]
  )


def describe() -> list[str]:
  """The table of the kinds in docs/scoring.md, line by line."""

  def code(name, suffix=''):
    return f'`{name}{suffix}`' if name else ''

  rows = [
    (
      code(k.name),
      code(k.column, '_<m>') or 'a file beside the parts',
      np.dtype(k.dtype).name,
      code(k.count, '_<m>'),
      k.says,
      code(k.option),
    )
    for k in KINDS
  ]
  head = ('kind', 'column', 'dtype', 'tokens', 'what', 'with `score.`')
  return [
    f'| {" | ".join(row)} |' for row in (head, ['---'] * len(head), *rows)
  ]


if __name__ == '__main__':
  print('\n'.join(describe()))
