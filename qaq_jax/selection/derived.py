"""The derived columns of the score table."""

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from qaq_jax.scoring.table import DERIVED
from qaq_jax.selection.columns import ScoreColumns
from qaq_jax.selection.options import SelectOptions, StrataOptions


def derive(
  table,
  models: Sequence[str],
  roles: Mapping[str, str] | None = None,
  num_strata: int = StrataOptions.num_strata,
  by: str = StrataOptions.by,
  include_truncated: bool = SelectOptions.include_truncated,
) -> dict[str, pa.Array]:
  """Computes every derived score column from the stored sums and counts.

  A model's rows are ranked among the rows it could score (and that the
  stratifying model could, where `by` names one), so that a column does not
  depend on models it does not name.

  Args:
    table: pyarrow Table, mapping of arrays, or path of a Parquet file, with
      the score columns of `models`.
    models: names to derive columns for, e.g. ('strong', 'weak').
    roles: role -> model name; without both roles there is no diff and sum.
    num_strata: K; 1 is the global ranking.
    by: whose PPL(Q) makes the strata: each model's own, or one role's.
    include_truncated: whether `truncated` rows are ranked with the `ok` ones.

  Returns:
    Name -> float64 (strata int32) array with nulls where there is no value:
    `rmi_<m>`, `ifd_<m>`, `r_ifd_<m>`, `stratum_<m>`, `rank_<m>`, and `diff`
    and `sum` of the strong and the weak model's ranks, in that order.
  """
  scores = ScoreColumns(
    table,
    roles=roles,
    num_strata=num_strata,
    by=by,
    include_truncated=include_truncated,
  )
  out = {}
  for model in models:
    stratum = scores.stratum(model)
    found = (
      _nullable(scores.rmi(model)),
      _nullable(scores.ifd(model, required=False)),
      _nullable(scores.r_ifd(model)),
      pa.array(stratum, pa.int32(), mask=stratum < 0),
      _nullable(scores.rank(model)),
    )
    for name, values in zip(DERIVED, found, strict=True):
      out[f'{name}_{model}'] = values
  if all(scores.roles.get(role) in models for role in ('strong', 'weak')):
    out |= {'diff': _nullable(scores.diff()), 'sum': _nullable(scores.sum())}
  return out


def _nullable(values):
  return pa.array(values, pa.float64(), mask=np.isnan(values))
