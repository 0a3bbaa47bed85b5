"""The score table as rules see it: numpy columns, read and derived on demand.

Only what a rule asks for is read (a Parquet path stays on disk), so a rule on
ten million rows holds a few hundred MB and needs no model.
"""

import os
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from qaq_jax.encoding.published_ifd import FORMS
from qaq_jax.scoring import metrics
from qaq_jax.scoring import table as table_lib
from qaq_jax.selection import strata
from qaq_jax.selection.options import SelectOptions, StrataOptions
from qaq_jax.selection.roles import MissingColumn, Roles


class ScoreColumns(Roles):
  """Columns of one score table, with a stratification.

  Args:
    table: pyarrow Table, mapping name -> array (None or NaN = null), or the
      path of a Parquet file.
    roles: role -> model name; by default a role is the model of that name,
      where the table has it.
    num_strata: K.
    by: 'own', 'strong' or 'weak': whose PPL(Q) makes the strata.
    include_truncated: whether `truncated` rows count as scored.

  Attributes:
    num_rows, row (int64 [N]), models (names found), roles.

  Raises:
    ValueError: a bad `by` or role, a null or doubled `row`.
    MissingColumn: no `row` column.
  """

  def __init__(
    self,
    table,
    *,
    roles=None,
    num_strata=StrataOptions.num_strata,
    by=StrataOptions.by,
    include_truncated=SelectOptions.include_truncated,
  ):
    StrataOptions(num_strata, by)
    self.num_strata = int(num_strata)
    self.by = by
    self.include_truncated = bool(include_truncated)
    self._file = None
    if isinstance(table, (str, os.PathLike)):
      self._file = table_lib.open_table(table)
      self.names = list(self._file.schema_arrow.names)
    elif isinstance(table, pa.Table):
      self.names = list(table.column_names)
    elif isinstance(table, Mapping):
      self.names = list(table)
    else:
      raise TypeError(
        'A score table is a pyarrow Table, a mapping of columns or the path '
        f'of a Parquet file, not {type(table).__name__}.'
      )
    self._table = table
    self._cache = {}
    super().__init__(self.names, roles)
    self.row = self._keys()
    self.num_rows = len(self.row)

  def _keys(self):
    row = self._column('row')
    row = pa.chunked_array([row]) if isinstance(row, pa.Array) else row
    if isinstance(row, pa.ChunkedArray):
      if row.null_count:
        raise ValueError("Column 'row' of the score table has nulls.")
      row = row.to_numpy()
    row = np.asarray(row, np.int64)
    if len(row) and not np.all(row[1:] > row[:-1]):
      ordered = np.sort(row)
      twice = ordered[1:][ordered[1:] == ordered[:-1]]
      if len(twice):
        raise ValueError(
          f'Row {twice[0]} stands {np.sum(ordered == twice[0])} times in the '
          "score table; 'row' is the key and must be unique."
        )
    return row

  def _column(self, name):
    if name not in self.names:
      raise MissingColumn(
        f'The score table has no column {name!r}; models scored there: '
        f'{self.scored()}.'
      )
    if self._file is not None:
      return table_lib.read_column(self._file, self._table, name)
    return self._table[name]

  def _cached(self, key, function):
    if key not in self._cache:
      self._cache[key] = function()
    return self._cache[key]

  def has(self, name) -> bool:
    """Whether the table stores the column."""
    return name in self.names

  def raw(self, name: str):
    """A stored numeric column as float64 [N], NaN for null."""
    return metrics.column(self._column(name))

  def ids(self):
    """The input's own `id` column as pyarrow strings, null where none."""
    if not self.has('id'):
      raise MissingColumn(
        "The score table has no column 'id' (the input had none): use 'row'."
      )
    ids = self._column('id')
    if not isinstance(ids, (pa.Array, pa.ChunkedArray)):
      ids = pa.array([None if i is None else str(i) for i in ids], pa.string())
    ids = pc.cast(ids, pa.string())
    return ids.combine_chunks() if isinstance(ids, pa.ChunkedArray) else ids

  # Who counts.

  def _status(self, model):
    if model not in self.models:
      raise MissingColumn(
        f"The score table has no column 'status_{model}': models scored "
        f'there: {self.scored()}.'
      )
    values = self._column(f'status_{model}')
    if not isinstance(values, (pa.Array, pa.ChunkedArray)):
      values = pa.array(values, pa.string())
    return values

  def status_counts(self, model: str) -> dict[str, int]:
    """Rows per status of a model, most frequent first."""
    counts = pc.value_counts(self._status(model)).to_pylist()
    counts.sort(key=lambda entry: (-entry['counts'], str(entry['values'])))
    return {str(entry['values']): entry['counts'] for entry in counts}

  def usable(self, model: str):
    """Mask [N]: `ok` under the model (or `truncated`, if included)."""

    def compute():
      good = ['ok', 'truncated'] if self.include_truncated else ['ok']
      mask = pc.is_in(self._status(model), value_set=pa.array(good))
      return np.asarray(mask, bool)

    return self._cached(('usable', model), compute)

  def usable_under(self, models):
    """Mask [N]: usable under every one of the models."""
    mask = np.ones(self.num_rows, bool)
    for model in models:
      mask &= self.usable(model)
    return mask

  # Scores of a model; NaN where the row is not usable or has no value.

  def _term(self, model, *names):
    terms = []
    for name in names:
      full = f'{name}_{model}'
      if not self.has(full):
        raise MissingColumn(
          f'The score table has no column {full!r}: score model {model!r} '
          f'(models scored there: {self.scored()}).'
        )
      terms.append(self.raw(full))
    return terms

  def _masked(self, model, values):
    return np.where(self.usable(model) & np.isfinite(values), values, np.nan)

  def tokens(self, model: str):
    """Tokens of query and answer, float64 [N], NaN where unknown."""
    n_q, n_a = self._term(model, 'n_q', 'n_a')
    return n_q + n_a

  def length(self, model: str, of: str = 'a'):
    """Tokens of the answer ('a') or the query ('q'), float64 [N]."""
    return self._term(model, f'n_{of}')[0]

  def log_ppl_q(self, model: str):
    """Log PPL(Q), nats per token."""
    return self._cached(
      ('log_ppl_q', model),
      lambda: self._masked(
        model, metrics.log_ppl(*self._term(model, 'nll_q', 'n_q'))
      ),
    )

  def log_ppl_a_given_q(self, model: str):
    """Log PPL(A given Q), nats per token."""
    terms = self._term(model, 'nll_a_given_q', 'n_a')
    return self._masked(model, metrics.log_ppl(*terms))

  def rmi(self, model: str):
    """RMI (arXiv 2603.12165), nats per token."""
    names = 'nll_q', 'n_q', 'nll_q_given_a', 'n_q_given_a'
    return self._cached(
      ('rmi', model),
      lambda: self._masked(model, metrics.rmi(*self._term(model, *names))),
    )

  def r_ifd(self, model: str):
    """exp(-RMI) (ACL Findings 2024.958)."""
    with np.errstate(over='ignore'):
      return np.exp(-self.rmi(model))

  def ifd(self, model: str, required: bool = True):
    """Log PPL(A given Q) / log PPL(A); all NaN if absent and not required."""
    names = 'nll_a_given_q', 'nll_a', 'n_a'
    if not required and not all(self.has(f'{n}_{model}') for n in names):
      return np.full(self.num_rows, np.nan)
    terms = self._term(model, *names)
    return self._masked(model, metrics.ifd(*terms))

  def published_ifd(self, form: str, model: str):
    """`ifd_cherry` or `ifd_superfilter` of a model, stored or from its sums."""
    name = f'{form}_{model}'
    if self.has(name):
      return self._masked(model, self.raw(name))
    alone, cond = FORMS[form].terms
    sums = [(f'nll_{t}_{model}', f'n_{t}_{model}') for t in (cond, alone)]
    if not all(self.has(column) for pair in sums for column in pair):
      raise MissingColumn(
        f'The score table has no column {name!r}: score with '
        f'`--config.score.{form}=True` (model {model!r}).'
      )
    means = [metrics.log_ppl(self.raw(nll), self.raw(n)) for nll, n in sums]
    return self._masked(model, FORMS[form].ratio(*means))

  def with_column(self, form: str) -> list[str]:
    """Models that have a published IFD form in this table."""
    _, cond = FORMS[form].terms
    return [
      model
      for model in self.models
      if self.has(f'{form}_{model}') or self.has(f'nll_{cond}_{model}')
    ]

  # Strata and ranks.

  def stratum(self, model: str):
    """int32 [N] stratum by PPL(Q) of the stratifying model; -1 = none."""

    def compute():
      by = model if self.by == 'own' else self.model(self.by)
      log_ppl = self.log_ppl_q(by)
      keep = np.isfinite(self.rmi(model))
      return strata.assign_strata(
        np.where(keep, log_ppl, np.nan), self.row, self.num_strata
      )

    return self._cached(('stratum', model), compute)

  def rank(self, model: str):
    """float64 [N] normalised rank of RMI inside the stratum; NaN = none."""
    return self._cached(
      ('rank', model),
      lambda: strata.rank_in_strata(self.rmi(model), self.stratum(model)),
    )

  def diff(self):
    """Cognitive gap r_strong - r_weak in [-1, 1], on the grid of 2**-40."""
    return strata.to_grid(
      self.rank(self.model('strong')) - self.rank(self.model('weak'))
    )

  def sum(self):
    """r_strong + r_weak in [0, 2], on the grid of 2**-40."""
    return strata.to_grid(
      self.rank(self.model('strong')) + self.rank(self.model('weak'))
    )
