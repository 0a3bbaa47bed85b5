"""What a selection kept, measured for its report; here on columns in memory."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from qaq_jax.selection import columns as columns_lib


@dataclasses.dataclass(frozen=True)
class Facts:
  """What an engine measured of a selection, here or in `sql/facts.py`.

  Attributes:
    roles: role -> model.
    num_strata, by, include_truncated: the settings of the strata.
    models: the models under which rows had to be usable.
    status: model -> status -> rows, most frequent first.
    rows, eligible: their numbers.
    candidates: eligible rows that the rule itself did not leave out.
    dropped: reason -> rows that it left out.
    score: kept_low, kept_high, kept_mean and eligible_mean.
    candidate_scores: the candidates' lowest and highest score, None where
      there is none.
    cut: score at the line (higher is better), rows there, rows kept there;
      None where the line is not one of scores.
    picked: whether the rule picked the rows itself.
    tokens: the number of tokens of all eligible and of the kept rows under a
      model, or None.
    strata_of: the model whose strata are shown, or None.
    per_stratum: a record for each of them.
    notes: the rule's own.
    engine: the engine that made the selection, '' in memory.
  """

  roles: Mapping[str, str]
  num_strata: int
  by: str
  include_truncated: bool
  models: tuple[str, ...]
  status: Mapping[str, Mapping[str, int]]
  rows: int
  eligible: int
  candidates: int
  candidate_scores: tuple[float | None, float | None]
  dropped: Mapping[str, int]
  score: Mapping[str, float | None]
  cut: tuple | None
  tokens: Mapping | None
  strata_of: str | None
  per_stratum: Sequence[Mapping]
  picked: bool = False
  notes: Sequence[str] = ()
  engine: str = ''


def measure(
  table, asked, models, eligible, dropped, candidate, found, cut
) -> Facts:
  """Measures what `select.select` has chosen.

  Args:
    table: ScoreColumns.
    asked: the Request.
    models: whose status decided who is eligible.
    eligible: bool [N].
    dropped: reason -> rows that the rule itself left out.
    candidate: bool [N], the eligible rows that it did not.
    found: the rule's Candidates.
    cut: the Cut.
  """
  chosen = np.zeros(table.num_rows, bool)
  chosen[cut.index] = True
  scored = found.picks is None and found.order_N is None
  low, high = _span(found.score_N[chosen])
  strata_of, per_stratum = _per_stratum(
    table, models, eligible, chosen, found.score_N
  )
  return Facts(
    roles=table.roles,
    num_strata=table.num_strata,
    by=table.by,
    include_truncated=table.include_truncated,
    models=tuple(models),
    status={model: table.status_counts(model) for model in models},
    rows=table.num_rows,
    eligible=int(eligible.sum()),
    candidates=int(candidate.sum()),
    dropped=dropped,
    score={
      'kept_low': low,
      'kept_high': high,
      'kept_mean': _mean(found.score_N[chosen]),
      'eligible_mean': _mean(found.score_N[eligible]),
    },
    candidate_scores=_span(found.score_N[candidate]),
    cut=(cut.last, cut.tied, cut.tied_kept) if scored else None,
    picked=found.picks is not None,
    tokens=_tokens(table, models, eligible, chosen),
    strata_of=strata_of,
    per_stratum=per_stratum,
    notes=found.notes,
  )


def _number(value):
  """A float for JSON: None instead of NaN or infinity."""
  return float(value) if value is not None and np.isfinite(value) else None


def _mean(values):
  values = values[np.isfinite(values)]
  return _number(values.mean()) if len(values) else None


def _span(values):
  values = values[np.isfinite(values)]
  if not len(values):
    return None, None
  return _number(values.min()), _number(values.max())


def _tokens(table, models, eligible, chosen):
  """Tokens of query and answer, in all eligible and in the kept rows."""
  for model in models:
    if table.has(f'n_q_{model}') and table.has(f'n_a_{model}'):
      tokens = np.nan_to_num(table.tokens(model))
      return {
        'model': model,
        'eligible': int(tokens[eligible].sum()),
        'kept': int(tokens[chosen].sum()),
      }
  return None


def _per_stratum(table, models, eligible, chosen, score):
  """One dict per stratum of the first model that has strata."""
  for model in models:
    try:
      stratum = table.stratum(model)
      log_ppl = table.log_ppl_q(
        model if table.by == 'own' else table.model(table.by)
      )
    except columns_lib.MissingColumn:
      continue
    lengths = {
      'query': table.length(model, 'q') if table.has(f'n_q_{model}') else None,
      'answer': table.length(model, 'a') if table.has(f'n_a_{model}') else None,
    }
    # Sorted once, so that a stratum is a slice: no pass per stratum.
    index = np.flatnonzero(eligible & (stratum >= 0))
    order = index[
      np.argsort(
        stratum[index].astype(np.int16, copy=False)
        if table.num_strata < 2**15
        else stratum[index],
        kind='stable',
      )
    ]
    edges = np.searchsorted(stratum[order], np.arange(table.num_strata + 1))
    out = []
    for k in range(table.num_strata):
      rows = order[edges[k] : edges[k + 1]]
      if not len(rows):
        continue
      kept = rows[chosen[rows]]
      ppl_low, ppl_high = _span(log_ppl[rows])
      low, high = _span(score[kept])
      entry = {
        'stratum': k,
        'log_ppl_q_low': ppl_low,
        'log_ppl_q_high': ppl_high,
        'eligible': len(rows),
        'kept': len(kept),
        'score_low': low,
        'score_high': high,
      }
      for name, length in lengths.items():
        if length is not None:
          entry[f'mean_{name}_tokens'] = _mean(length[rows])
          entry[f'mean_{name}_tokens_kept'] = _mean(length[kept])
      out.append(entry)
    return model, out
  return None, []
