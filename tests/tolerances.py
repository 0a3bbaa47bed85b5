"""How far two right computations of the same numbers may lie apart.

Every operation rounds to a relative u, 2**-24 in float32. Which are fused, in
what order a sum is taken and what is done in vectors is decided by the CPU (a
fused multiply-add rounds once, a machine without rounds twice), the mesh, the
batch and the compiler. So no tolerance here is what one machine gave: it is
what the arithmetic allows to any of them.

One sum. Of n products in any order |error| <= n u sum |a_i b_i| (Higham,
Accuracy and Stability of Numerical Algorithms, 3.1), and both sides have one:
`product`. The sum of magnitudes, not the result, is what it is relative to:
where terms cancel, the result says nothing about the error.

A network. Behind one another stand N such terms, and their worst cases do not
meet: errors like independent draws of mean zero add up to

  |error| <= LAMBDA sqrt(N) u magnitude

but for a share of 2 exp(-LAMBDA**2 / 2) (Higham and Mary, A New Approach to
Probabilistic Rounding Error Analysis, 2019), where `magnitude` is that of the
summands at the end; the largest of the numbers that are compared stands for it.
That every rounding is counted at the full magnitude of the end leaves the
bound an order above what occurs. Two sides differ by sqrt(2) of it: `chain`.
N of a decoder: `decoder`. A gradient passes it forwards and, with two products
for each, backwards: three times N.

What the tests are there to find lies far above: the smallest fault of a whole
computation, bfloat16 in one place, is 2**16 u, a lost term or a wrong position
as large as the numbers themselves (`test_tolerances`).
"""

import math

import jax
import numpy as np

FLOAT32 = 2.0**-24  # unit roundoff
FLOAT16 = 2.0**-11
BFLOAT16 = 2.0**-8
LAMBDA = 4.0


def product(terms: int) -> float:
  """Of two float32 sums of so many products, relative to the magnitudes'."""
  return 2 * terms * FLOAT32


def chain(terms: float) -> float:
  """Of two float32 results behind so many terms, relative to the largest."""
  return LAMBDA * math.sqrt(2 * terms) * FLOAT32


def terms(config, length: int) -> int:
  """Terms that stand behind one another in a decoder's log-probabilities.

  In a layer: a norm and the query's product over the width, scores over the
  head's size, softmax and values over the keys, the output's product over the
  heads; a norm, a product over the width and one over the MLP's. Then the last
  norm, the head's product and the logsumexp over the vocabulary.

  Args:
    config: a DecoderConfig.
    length: tokens of the longest row.
  """
  width = config.hidden_size
  total = 2 * width + config.vocab_size
  for kind in config.layers:
    keys = min(length, kind.window or length)
    attention = 2 * width + config.head_dim + 2 * keys
    attention += config.num_heads * config.head_dim
    total += attention + 2 * width + config.intermediate_size
  return total


def decoder(config, length: int, *, gradient: bool = False) -> float:
  """`chain` of a decoder's log-probabilities, or of their gradients."""
  return chain(terms(config, length) * (3 if gradient else 1))


def near(config, length: int, want, *, gradient: bool = False) -> dict:
  """For assert_allclose: a decoder's numbers, relative to their largest."""
  atol = decoder(config, length, gradient=gradient) * largest(want)
  return {'rtol': 0, 'atol': atol}


def assert_gradients_close(config, length: int, got, want) -> None:
  """Trees of a decoder's gradients, each array relative to its largest.

  One that is nearly zero (a router's, GPT-2's key biases) is a sum of terms
  like the others' that cancel: its error is relative to those.
  """
  limit = decoder(config, length, gradient=True)
  most = max(largest(x) for x in jax.tree.leaves(want))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(
      a, b, rtol=0, atol=limit * largest(b) + chain(1) * most
    ),
    got,
    want,
  )


def largest(x) -> float:
  """The magnitude of an array."""
  return float(np.max(np.abs(np.asarray(x, np.float64))))
