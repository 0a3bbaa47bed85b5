"""Score kinds: what is computed of a row under a model, a record for each.

A kind names the tokens that it is read off, how the device reduces what the
model says about them to one number, and the column that holds it. The columns
of the score store, what `score.terms` may ask for, the outputs of the scoring
program, the fingerprint and the table in docs/scoring.md are made from KINDS.

Letters: B rows of the batch, T tokens of a row, D hidden size.
"""

import dataclasses
from collections.abc import Callable, Collection, Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa

from qaq_jax.encoding import published_ifd


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
    dtype: the dtype of the column; float or int.
    span: the tokens that it is read off, as `Sequence.spans` names them; ''
      is `name`. A row that has no such span gets a null.
    reads: the values: 'logp', the log-probability of each scored token given
      those before it, float32 [B, T]; or 'hidden', the last hidden states
      [B, T, D] of a whole sequence.
    sequence: which sequence, for 'hidden'. Then `reduce` gives [B, D] and the
      store keeps it beside the parts, not in a column.
    count: column of the number of tokens read; '' = none.
    option: the option of `EncoderOptions`, that offers it; '' = always offered.
    parameters: the parameters of `reduce`; part of the fingerprint.
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

  @property
  def tokens(self) -> str:
    """Name of the span that it is read off."""
    return self.span or self.name

  @property
  def result(self) -> str:
    """Name of what the scoring program returns for it."""
    name = self.name if self.parameters else self.reduce.__name__
    return f'{name}_{"BD" if self.sequence else "BS"}'


def likelihood(
  name: str, what: str, *, count: str = '', option: str = ''
) -> ScoreKind:
  """The kind of the likelihood of a span, `what` in words."""
  return ScoreKind(
    name,
    f'sum of -log p of the {what}, nats',
    nll,
    column=f'nll_{name}',
    count=count or f'n_{name}',
    option=option,
  )


# QAQ's four terms, arXiv 2603.12165. A and A given Q are over the same tokens,
# so they share a count.
LIKELIHOODS = (
  likelihood('q', 'query'),
  likelihood('q_given_a', 'query after the answer'),
  likelihood('a', 'answer'),
  likelihood('a_given_q', 'answer after the query', count='n_a'),
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
    likelihood(term, what, option=form.option)
    for form in published_ifd.FORMS.values()
    for term, what in form.terms.items()
  ),
  EMBEDDING,
)


def offered(options) -> tuple[ScoreKind, ...]:
  """The kinds that an encoder's options offer, in the order of the columns.

  Raises:
    ValueError: two kinds have the same name, column or result.
  """
  _check(KINDS)
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
    begun: names that a folder of scores was begun with. Where `terms` is
      empty it goes on without the kinds that are younger than it.

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
    terms = [
      k.name
      for k in kinds
      if begun is None or k.name in begun or k.reduce is nll
    ]
  return tuple(k for k in kinds if k.name in terms or not k.column)


def stored(options, computed: Collection[ScoreKind]) -> tuple[ScoreKind, ...]:
  """The kinds that a score table of `computed` has columns for.

  Of likelihoods those not computed too, as nulls: rules and reports count on
  their columns.
  """
  return tuple(k for k in offered(options) if k in computed or k.reduce is nll)


def fingerprint(kinds: Iterable[ScoreKind]) -> dict:
  """What the numbers depend on: names of the kinds, and their parameters."""
  kinds = [k for k in kinds if k.column]
  own = {k.name: dict(k.parameters) for k in kinds if k.parameters}
  return {
    'scored_terms': [k.name for k in kinds],
    **({'kinds': own} if own else {}),
  }


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


def _check(kinds):
  """Refuses kinds that would overwrite each other."""
  for what, found in (
    ('name', [k.name for k in kinds]),
    ('column', [k.column or 'a file beside the parts' for k in kinds]),
  ):
    twice = sorted({x for x in found if found.count(x) > 1})
    if twice:
      raise ValueError(f'two score kinds have the {what} {twice[0]}')
  reduces: dict[str, Callable] = {}
  for k in kinds:
    if reduces.setdefault(k.result, k.reduce) is not k.reduce:
      raise ValueError(
        f'score kind {k.name}: another has a `reduce` that is called '
        f'{k.reduce.__name__} too; give it a name of its own'
      )
