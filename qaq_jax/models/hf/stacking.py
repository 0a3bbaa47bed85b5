"""Which tensors of a checkpoint each stacked parameter is made of."""

import itertools

from qaq_jax.models.config import ModelConfig
from qaq_jax.models.hf.families import family_of
from qaq_jax.models.params import is_expert, param_specs

Source = tuple[int, tuple, int | None, int | None]


def layers_of(config: ModelConfig, path: tuple) -> range | None:
  """Returns the model's layers that a stacked parameter holds."""
  return config.stacks[path[1]] if path[0] == 'stacks' else None


def experts_of(config: ModelConfig, path: tuple) -> range | None:
  """Returns the experts that a parameter is stacked over besides."""
  return range(config.num_experts) if is_expert(path[-1]) else None


def expected_tensors(config: ModelConfig) -> dict[str, tuple[int, ...]]:
  """Returns the shape of every tensor of the checkpoint by its name."""
  expected = {}
  for path, spec in param_specs(config).items():
    template, transform = family_of(config).tensor(path)
    layers, experts = layers_of(config, path), experts_of(config, path)
    shape = spec.shape if layers is None else spec.shape[1:]
    shape = shape if experts is None else shape[1:]
    for layer, expert in itertools.product(layers or (0,), experts or (0,)):
      name = template.format(layer, expert=expert)
      expected[name] = tuple(transform.shape(shape, config))
  return expected


def sources(config: ModelConfig) -> dict[str, list[Source]]:
  """Returns what each tensor is made of, by its name.

  Entries are (part, path, layer, expert), in the order of parts; layer and
  expert are indices into the stacked parameter, None where it isn't stacked.
  """
  found: dict[str, list[Source]] = {}
  for path in param_specs(config):
    template, transform = family_of(config).tensor(path)
    layers, experts = layers_of(config, path), experts_of(config, path)
    for (i, layer), expert in itertools.product(
      enumerate(layers or (0,)), experts or (None,)
    ):
      found.setdefault(template.format(layer, expert=expert), []).append(
        (transform.part or 0, path, None if layers is None else i, expert)
      )
  return {name: sorted(parts) for name, parts in found.items()}
