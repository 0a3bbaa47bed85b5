"""Likelihoods of scored spans: one pure function of parameters and a batch.

Letters: B rows of the batch, T tokens of a row, S = 2 spans of a row, D hidden
size.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec

from qaq_jax.models import sharding
from qaq_jax.scoring.head import HeadChunks, scored_logp


@dataclasses.dataclass(frozen=True)
class Outputs:
  """What `batch_likelihood` computes besides the sums.

  Attributes:
    logp: per-token log-probabilities [B, T].
    embeddings: pooled hidden states [B, D].
  """

  logp: bool = False
  embeddings: bool = False


def batch_likelihood(
  graphdef,
  params,
  tokens_BT: jax.Array,
  spans_BS2: jax.Array,
  lengths_B: jax.Array,
  *,
  chunks: HeadChunks,
  outputs: Outputs = Outputs(),
) -> dict[str, jax.Array]:
  """Scores a batch; pure, to be jitted under the mesh of the model.

  Args:
    graphdef: static part of `nnx.split(model)`.
    params: the other part.
    tokens_BT: int32 ids, padded on the right; B divides by the mesh's batch.
    spans_BS2: int32 (start, stop) of the scored tokens, start >= 1, disjoint;
      (0, 0) is no span.
    lengths_B: int32, real tokens of each row (used by the embeddings alone).
    chunks: sizes of the head's work.
    outputs: what else to return.

  Returns:
    `nll_BS`: float32 sums of -log p over each span, nats, 0 for no span; not
    finite where the model's numbers weren't. Optionally `logp_BT` (float32,
    log-probability of each scored token given those before it, 0 elsewhere)
    and `embedding_BD` (float16, position-weighted mean of the last hidden
    layer with weights 1, 2, 3, ..., L2-normalised: RDS+, arXiv 2503.01807
    section 3). All replicated over the mesh.
  """
  model = nnx.merge(graphdef, params)
  hidden_BTD = model(tokens_BT)
  logp_BT = scored_logp(model, hidden_BTD, tokens_BT, spans_BS2, chunks)
  position_T = jnp.arange(tokens_BT.shape[1])
  nll_BS = jnp.stack(
    [
      -jnp.sum(_where_in(span_BS2, position_T, logp_BT), axis=1)
      for span_BS2 in (spans_BS2[:, 0:1], spans_BS2[:, 1:2])
    ],
    axis=1,
  )
  result = {'nll_BS': nll_BS}
  if outputs.logp:
    result['logp_BT'] = logp_BT
  if outputs.embeddings:
    result['embedding_BD'] = pooled(hidden_BTD, lengths_B)
  return {
    name: sharding.reshard(x, PartitionSpec(*[None] * x.ndim))
    for name, x in result.items()
  }


def pooled(hidden_BTD: jax.Array, lengths_B: jax.Array) -> jax.Array:
  """Position-weighted mean of hidden states, L2-normalised, float16 [B, D]."""
  position_T = jnp.arange(hidden_BTD.shape[1])
  real_BT = position_T < lengths_B[:, None]
  # The division by the sum of weights keeps the mean in the range of float32;
  # its value is undone by the normalisation.
  weight_BT = jnp.where(real_BT, position_T + 1.0, 0.0)
  weight_BT = weight_BT / jnp.maximum(
    jnp.sum(weight_BT, axis=1, keepdims=True), 1.0
  )
  # Padding may hold anything, so it is masked, not multiplied by zero.
  hidden_BTD = jnp.where(
    real_BT[..., None], hidden_BTD.astype(jnp.float32), 0.0
  )
  mean_BD = jnp.sum(hidden_BTD * weight_BT[..., None], axis=1)
  norm_B1 = jnp.sqrt(jnp.sum(mean_BD * mean_BD, axis=1, keepdims=True))
  return (mean_BD / jnp.maximum(norm_B1, 1e-30)).astype(jnp.float16)


def _where_in(span_B12, position_T, values_BT):
  start, stop = span_B12[..., 0], span_B12[..., 1]
  return jnp.where((position_T >= start) & (position_T < stop), values_BT, 0.0)
