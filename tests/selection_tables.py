"""Made-up score tables for the selection tests."""

import numpy as np


def make_table(num_rows, seed=0, models=('strong', 'weak'), not_ok=0.1):
  """A score table as a dict of columns; RMI of the models is correlated."""
  rng = np.random.default_rng(seed)
  n_q = rng.integers(1, 200, num_rows).astype(np.int32)
  n_a = rng.integers(1, 800, num_rows).astype(np.int32)
  shared = rng.normal(size=num_rows)
  table = {'row': np.arange(num_rows)}
  statuses = np.array(['too_long', 'empty', 'invalid', 'non_finite'])
  for model in models:
    status = np.where(
      rng.random(num_rows) < not_ok, rng.choice(statuses, num_rows), 'ok'
    )
    log_ppl_q = np.exp(rng.normal(1, 0.4, num_rows))
    rmi = 0.5 * (shared + rng.normal(size=num_rows))
    terms = {
      'nll_q': log_ppl_q * n_q,
      'nll_q_given_a': (log_ppl_q - rmi) * n_q,
      'nll_a': n_a * np.exp(rng.normal(0, 0.3, num_rows)),
      'nll_a_given_q': n_a * np.exp(rng.normal(-0.2, 0.3, num_rows)),
    }
    for name, values in terms.items():
      values = values.astype(np.float32)
      table[f'{name}_{model}'] = np.where(status == 'ok', values, np.nan)
    for name, values in (('n_q', n_q), ('n_q_given_a', n_q), ('n_a', n_a)):
      table[f'{name}_{model}'] = values
    table[f'status_{model}'] = status
  return table


def from_ranks(values, models=('strong', 'weak')):
  """A table whose RMI is given: model -> values; every PPL(Q) the same."""
  num_rows = len(next(iter(values.values())))
  table = {'row': np.arange(num_rows)}
  for model in models:
    rmi = np.asarray(values[model], np.float64)
    table[f'status_{model}'] = np.full(num_rows, 'ok')
    for count in ('n_q', 'n_q_given_a', 'n_a'):
      table[f'{count}_{model}'] = np.ones(num_rows, np.int32)
    table[f'nll_q_{model}'] = np.full(num_rows, 1024.0)
    table[f'nll_q_given_a_{model}'] = 1024.0 - rmi
    table[f'nll_a_{model}'] = np.full(num_rows, 2.0)
    table[f'nll_a_given_q_{model}'] = np.full(num_rows, 1.0)
  return table


def reorder(table, order):
  """The same rows in another order."""
  return {name: np.asarray(values)[order] for name, values in table.items()}
