"""Models from seeds and from Hugging Face checkpoints, and back."""

import jax
import jax.numpy as jnp
from flax import nnx

from qaq_jax.models.config import ModelConfig
from qaq_jax.models.decoder import Decoder


def random_init(
    config: ModelConfig,
    *,
    mesh: jax.sharding.Mesh | None,
    dtype=jnp.float32,
    seed: int = 0,
    attention: str = 'auto',
) -> Decoder:
  """Returns a Decoder with random weights, drawn where they will live."""
  model = Decoder(
      config,
      rngs=nnx.Rngs(seed),
      dtype=dtype,
      param_dtype=dtype,
      mesh=mesh,
      attention=attention,
  )
  model.eval()
  return model
