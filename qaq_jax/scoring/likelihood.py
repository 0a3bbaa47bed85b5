"""Likelihoods of scored spans: one pure function of parameters and a batch.

Letters: B rows of the batch, T tokens of a row, S = 2 spans of a row, D hidden
size.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec

from qaq_jax.models import sharding
from qaq_jax.scoring.head import HeadChunks, scored_logp
from qaq_jax.scoring.kinds import LIKELIHOODS, ScoreKind


def batch_likelihood(
  graphdef,
  params,
  tokens_BT: jax.Array,
  spans_BS2: jax.Array,
  lengths_B: jax.Array,
  *,
  chunks: HeadChunks,
  kinds: Sequence[ScoreKind] = LIKELIHOODS,
  logp: bool = False,
) -> dict[str, jax.Array]:
  """Scores a batch; pure, to be jitted under the mesh of the model.

  Args:
    graphdef: static part of `nnx.split(model)`.
    params: the other part.
    tokens_BT: int32 ids, padded on the right; B divides by the mesh's batch.
    spans_BS2: int32 (start, stop) of the scored tokens, start >= 1, disjoint;
      (0, 0) is no span.
    lengths_B: int32, real tokens of each row (used by whole sequences alone).
    chunks: sizes of the head's work.
    kinds: what to compute.
    logp: also return the log-probabilities.

  Returns:
    `ScoreKind.result` of each of the kinds: [B, S], the reduction of each
    span, whatever the span's name is (`nll_BS`: float32 sums of -log p, nats,
    0 for no span; not finite where the model's numbers weren't); [B, D] of
    whole sequences. Optionally `logp_BT`, float32, the log-probability of each
    scored token given those before it, 0 elsewhere. All replicated over the
    mesh.
  """
  model = nnx.merge(graphdef, params)
  hidden_BTD = model(tokens_BT)
  logp_BT = scored_logp(model, hidden_BTD, tokens_BT, spans_BS2, chunks)
  values = {'logp': logp_BT, 'hidden': hidden_BTD}
  position_T = jnp.arange(tokens_BT.shape[1])
  result = {'logp_BT': logp_BT} if logp else {}
  for kind in {kind.result: kind for kind in kinds}.values():
    reduce = functools.partial(
      kind.reduce, values[kind.reads], **kind.parameters
    )
    if kind.sequence:
      result[kind.result] = reduce(position_T < lengths_B[:, None])
    else:
      result[kind.result] = jnp.stack(
        [
          reduce(_inside(spans_BS2[:, s : s + 1], position_T))
          for s in range(spans_BS2.shape[1])
        ],
        axis=1,
      )
  return {
    name: sharding.reshard(x, PartitionSpec(*[None] * x.ndim))
    for name, x in result.items()
  }


def _inside(span_B12, position_T):
  start, stop = span_B12[..., 0], span_B12[..., 1]
  return (position_T >= start) & (position_T < stop)
