"""What a plan reads of the user's data: lengths, and how much is trained on."""

import dataclasses
import functools
import os
import tempfile

from qaq_jax.data import samples as samples_lib
from qaq_jax.encoding import examples as examples_lib
from qaq_jax.encoding import tokenization
from qaq_jax.planner import lengths
from qaq_jax.runtime import console
from qaq_jax.scoring import kinds
from qaq_jax.scoring import rows as rows_lib
from qaq_jax.selection import budget as budget_lib
from qaq_jax.selection.rules import rule
from qaq_jax.stages import artifacts, finetune, score


class Surveys:
  """Lengths of the config's data under each model's tokenizer, read once."""

  def __init__(self, config, workdir):
    self._config, self._workdir = config, workdir
    self._found = {}
    self._folders = []  # of samples that are prepared for the moment

  def of(self, name, model) -> dict | None:
    """The survey under a model, see `planning.survey`; or None, with why.

    Args:
      name: the name of the model.
      model: the model itself.
    """
    if name not in self._found:
      self._found[name] = self._survey(name, model)
    return self._found[name]

  def _survey(self, name, model):
    config, workdir = self._config, self._workdir
    known = lengths.stored(workdir, name)
    if known:
      return known
    if not config.data.path:
      console.say(f'{name}: no lengths and no hours: config.data.path is empty')
      return None
    try:
      encoder = score.make_encoder(config, self._workdir, name, model)
    except tokenization.TokenizerError as e:
      console.say(f'{name}: no lengths and no hours: {e}')
      return None
    rows = rows_lib.Source(
      self._samples,
      encoder,
      kinds.wanted(encoder.options, config.score.terms),
    )
    return lengths.sampled(
      self._samples.num_rows, rows.encode, config.plan.survey_rows
    )

  def training(self, model) -> tuple[int | None, int | None]:
    """Samples that fine-tuning takes and their tokens; or None, with why.

    Args:
      model: the model that it starts from.
    """
    config = self._config
    if not self._data_of_training():
      console.say('finetune: no hours: config.data.path is empty')
      return None, None
    try:
      encoder = finetune.make_encoder(config, model)
    except tokenization.TokenizerError as e:
      console.say(f'finetune: no hours: {e}')
      return None, None
    store = self._training_samples
    how = finetune.job_options(config)
    read = lengths.blocks(store.num_rows, config.plan.survey_rows)
    examples = examples_lib.make_examples(
      (s for block in read for s in store.iter_rows(*block)),
      encoder,
      how.training,
      how.fit.max_length,
    ).examples
    if not examples:
      console.say('finetune: no hours: none of the samples can be trained on')
      return None, None
    mean = sum(len(e.ids) for e in examples) / len(examples)
    share = len(examples) / sum(stop - start for start, stop in read)
    samples = _taken(config, share * store.num_rows, mean)
    if samples is None:
      console.say(
        'finetune: no hours: how many rows pass select.budget.threshold is '
        'known once they are scored'
      )
      return None, None
    samples = max(samples - config.finetune.validation_rows, 0)
    return round(samples), round(samples * mean)

  def _data_of_training(self):
    data = self._config.finetune.data
    return self._config.data.path if data in ('all', 'selected') else data

  @functools.cached_property
  def _training_samples(self):
    data = self._config.finetune.data
    if data in ('all', 'selected'):
      return self._samples
    return self._prepared(data)

  @functools.cached_property
  def _samples(self):
    """Those of the work directory, else prepared in a folder of its own."""
    config, workdir = self._config, self._workdir
    if workdir.samples.exists():
      return artifacts.open_samples(config, workdir)
    return self._prepared()

  def _prepared(self, path=''):
    """Samples of a file, or of the config's, for the moment."""
    source = artifacts.data_source(self._config, self._workdir, path)
    if path:  # as training_data.prepared reads it
      source = dataclasses.replace(source, limit=0)
    folder = tempfile.TemporaryDirectory()
    self._folders.append(folder)
    inside = os.path.join(folder.name, 'samples')
    samples_lib.prepare(source, inside)
    return samples_lib.SampleStore.open(inside)


def _taken(config, usable, mean) -> float | None:
  """Samples that the selection leaves of so many, each of `mean` tokens."""
  if config.finetune.data != 'selected':
    return usable
  budget = budget_lib.Budget.of(config.select.budget)
  if not budget.given():
    budget = rule.get_rule(config.select.rule).budget
  if budget.threshold is not None:
    return None
  if budget.tokens is not None:
    return min(budget.tokens / mean, usable)
  rows = budget.limit(round(usable))
  return usable if rows is None else min(rows, usable)
