"""Metrics of one row: pure functions of the score table's columns.

Every function takes columns (numpy arrays, masked arrays, pyarrow arrays or
sequences of one length) and returns a float64 array. A null, NaN or
impossible input (a count of zero, a non-finite sum) gives NaN: there are no
sentinel numbers. Writers turn NaN into null.

Letters: NLL in nats (sums), n in tokens, `log PPL = NLL / n`.
"""

import numpy as np

from qaq_jax.encoding import published_ifd


def column(values) -> np.ndarray:
  """Any column as float64 with NaN for null."""
  if isinstance(values, np.ma.MaskedArray):
    return np.ma.filled(values.astype(np.float64), np.nan)
  if hasattr(values, 'to_numpy') and not isinstance(values, np.ndarray):
    try:  # pyarrow.Array wants the copy allowed; ChunkedArray always copies.
      values = values.to_numpy(zero_copy_only=False)
    except TypeError:
      values = values.to_numpy()
  return np.asarray(values, np.float64)


def log_ppl(nll, n) -> np.ndarray:
  """Mean negative log-likelihood per token, nats; NaN where n is 0 or null."""
  nll, n = column(nll), column(n)
  good = np.isfinite(nll) & (n > 0)
  return np.divide(nll, n, out=np.full(nll.shape, np.nan), where=good)


def ppl(nll, n) -> np.ndarray:
  """Perplexity per token; inf where the mean passes the range of float64."""
  with np.errstate(over='ignore'):
    return np.exp(log_ppl(nll, n))


def rmi(nll_q, n_q, nll_q_given_a, n_q_given_a) -> np.ndarray:
  """Reverse mutual information, `log PPL(Q) - log PPL(Q|A)`.

  Nats per token; higher = the answer explains the query better.
  Source: QAQ, arXiv 2603.12165, equation for RMI.
  """
  return log_ppl(nll_q, n_q) - log_ppl(nll_q_given_a, n_q_given_a)


def r_ifd(nll_q, n_q, nll_q_given_a, n_q_given_a) -> np.ndarray:
  """`PPL(Q|A) / PPL(Q)` = exp(-RMI); lower is better.

  Source: reversed IFD, ACL Findings 2024.958.
  """
  with np.errstate(over='ignore'):
    return np.exp(-rmi(nll_q, n_q, nll_q_given_a, n_q_given_a))


def ifd(nll_a_given_q, nll_a, n_a) -> np.ndarray:
  """`log PPL(A|Q) / log PPL(A)`, a ratio of mean losses.

  With the two shared sequences both are over the same `n_a` tokens. Source:
  the idea of IFD, arXiv 2308.12032 (the published form with its own prompts is
  `published_ifd.FORMS`). NaN where the denominator is 0.

  Args:
    nll_a_given_q: nats, the answer after the query.
    nll_a: nats, the answer without the query.
    n_a: tokens of the answer.
  """
  return published_ifd.ratio_of_losses(
    log_ppl(nll_a_given_q, n_a), log_ppl(nll_a, n_a)
  )
