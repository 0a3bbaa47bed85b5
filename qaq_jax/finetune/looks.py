"""An early look at what a model in training writes."""

from collections.abc import Callable, Sequence

import jax

from qaq_jax.data.types import Sample
from qaq_jax.encoding import prompts as prompts_lib
from qaq_jax.encoding.encoder import Encoder
from qaq_jax.generation import generate

_TOKENS = 128  # written per query


def writer(
  trainer, encoder: Encoder, samples: Sequence[Sample], mesh: jax.sharding.Mesh
) -> Callable[[object], list[dict]]:
  """Function from a state to what its model answers to some queries.

  Args:
    trainer: a `step.Trainer`.
    encoder: the encoder of the training examples.
    samples: whose queries are answered, greedily.
    mesh: the mesh that the model lives on.
  """
  prompts = [
    prompts_lib.chat_prompt(encoder, s.query, system=s.system) for s in samples
  ]

  def write(state):
    generator = generate.Generator(
      trainer.model(state),
      encoder.tokenizer,
      max_new_tokens=_TOKENS,
      batch_size=len(prompts),
      mesh=mesh,
    )
    found = generator.generate(prompts, stop_ids=(encoder.stop_id,))
    return [
      {
        'row': sample.row,
        'query': sample.query,
        'answer': g.text,
        'finish_reason': g.finish_reason,
      }
      for sample, g in zip(samples, found, strict=True)
    ]

  return write
