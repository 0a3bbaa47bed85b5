"""Checks a checkpoint of yours against transformers on torch, token by token.

  python benchmarks/parity.py --model=FOLDER --data=pairs.jsonl [--rows=50]

Both see the same ids: the forward and the reverse sequence of each row, cut to
--length tokens, in float32. Printed is the largest and the mean difference of
the log-probabilities of all scored tokens. Needs torch (the `bench` extra).
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers
from flax import nnx

from qaq_jax.data import samples
from qaq_jax.encoding import encoder as encoder_lib
from qaq_jax.models.hf import checkpoint
from qaq_jax.scoring import head as head_lib
from qaq_jax.scoring import likelihood


def torch_logp(model, ids):
  """Log-probability of each token but the first, float64."""
  with torch.no_grad():
    logits = model(torch.tensor(ids[None].astype(np.int64))).logits[0, :-1]
  logp = torch.log_softmax(logits.double(), -1).numpy()
  return logp[np.arange(len(ids) - 1), ids[1:]]


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--model', required=True)
  parser.add_argument('--data', required=True)
  parser.add_argument('--rows', type=int, default=50)
  parser.add_argument('--length', type=int, default=512)
  parser.add_argument('--template', default='plain')
  args = parser.parse_args()
  encoder = encoder_lib.Encoder(
    args.model, template=args.template, max_length=1 << 20
  )
  source = samples.DataSource(args.data, limit=args.rows)
  encoded = encoder.encode(list(samples.read_samples(source)))
  rows = [s.ids[: args.length] for e in encoded for s in e.sequences]
  ours = checkpoint.load(args.model, mesh=None, dtype=jnp.float32)
  graphdef, params = nnx.split(ours)
  score = jax.jit(
    lambda params, *batch: likelihood.batch_likelihood(
      graphdef,
      params,
      *batch,
      chunks=head_lib.HeadChunks.for_platform(jax.default_backend()),
      logp=True,
    )['logp_BT']
  )
  theirs = transformers.AutoModelForCausalLM.from_pretrained(
    args.model, dtype=torch.float32
  ).eval()
  differences = []
  for ids in rows:
    tokens = np.zeros((1, args.length), np.int32)
    tokens[0, : len(ids)] = ids
    spans = np.array([[[1, len(ids)], [0, 0]]], np.int32)
    logp = score(params, tokens, spans, np.array([len(ids)], np.int32))
    logp = np.asarray(logp)[0, 1 : len(ids)]
    differences.append(np.abs(logp - torch_logp(theirs, ids)))
  differences = np.concatenate(differences)
  print(
    f'{len(rows)} sequences, {len(differences):,} tokens: largest difference '
    f'{differences.max():.1e} nats, mean {differences.mean():.1e}'
  )


if __name__ == '__main__':
  main()
