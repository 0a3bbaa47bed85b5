"""Metrics: values by hand, nulls and zero counts, identities."""

import math

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pyarrow as pa

from qaq_jax.encoding import published_ifd
from qaq_jax.scoring import metrics


def test_values_by_hand():
  rmi = metrics.rmi([10.0], [5], [4.0], [5])
  np.testing.assert_allclose(rmi, [1.2])
  np.testing.assert_allclose(
    metrics.r_ifd([10.0], [5], [4.0], [5]), [math.exp(-1.2)]
  )
  np.testing.assert_allclose(metrics.ifd([6.0], [12.0], [4]), [0.5])
  means = metrics.log_ppl([6.0], [3]), metrics.log_ppl([8.0], [2])
  np.testing.assert_allclose(published_ifd.ratio_of_losses(*means), [0.5])
  np.testing.assert_allclose(
    published_ifd.ratio_of_perplexities(*means), [math.exp(-2.0)]
  )
  np.testing.assert_allclose(metrics.ppl([2.0], [2]), [math.e])


def test_nulls_and_zero_counts_are_nan_never_numbers():
  nll = pa.array([1.0, None, 3.0, 4.0], pa.float32())
  n = pa.array([2, 2, None, 0], pa.int32())
  good = np.full(4, 2.0)
  for values in (
    metrics.log_ppl(nll, n),
    metrics.rmi(nll, n, good, good),
    metrics.rmi(good, good, nll, n),
    metrics.r_ifd(nll, n, good, good),
    published_ifd.ratio_of_perplexities(good, metrics.log_ppl(nll, n)),
    published_ifd.ratio_of_losses(metrics.log_ppl(nll, n), good),
    metrics.ifd(nll, good, n),
    metrics.ppl(
      pa.chunked_array([nll]), np.ma.masked_invalid([2, 2, np.nan, 0])
    ),
  ):
    assert np.isfinite(values[0])
    assert np.isnan(values[1:]).all()


def test_zero_denominator_and_infinite_sums_are_nan():
  assert np.isnan(metrics.ifd([1.0], [0.0], [3])).all()
  assert np.isnan(metrics.log_ppl([np.inf], [3])).all()
  assert np.isnan(metrics.rmi([1.0], [1], [np.inf], [1])).all()


@hypothesis.given(
  hnp.arrays(np.float64, (4, 7), elements=st.floats(0.01, 1e4)),
  hnp.arrays(np.int32, 7, elements=st.integers(1, 2048)),
)
def test_r_ifd_is_exp_of_minus_rmi_and_swapping_negates(nll, n):
  rmi = metrics.rmi(nll[0], n, nll[1], n)
  np.testing.assert_allclose(rmi, -metrics.rmi(nll[1], n, nll[0], n))
  with np.errstate(over='ignore'):
    np.testing.assert_allclose(
      metrics.r_ifd(nll[0], n, nll[1], n), np.exp(-rmi), rtol=1e-12
    )
