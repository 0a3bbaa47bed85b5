"""Which samples a model is fine-tuned on, and which are held out."""

import dataclasses
import functools
from collections.abc import Iterator

import numpy as np

from qaq_jax.data import samples
from qaq_jax.runtime import processes
from qaq_jax.stages import artifacts

_SPLIT_SEED = 0x5EED  # keeps the draw of validation rows apart from others


def training_samples(config, workdir) -> tuple[Iterator[samples.Sample], str]:
  """The samples that `config.finetune.data` names, and that in words.

  Raises:
    ValueError: there is no such selection, or it is empty.
  """
  data = config.finetune.data
  if data == 'all':
    store = artifacts.open_samples(config, workdir)
    return store.iter_rows(), f'all {store.num_rows:,} prepared samples'
  if data == 'selected':
    store = artifacts.open_samples(config, workdir)
    selection = artifacts.selection(config, workdir)
    artifacts.check_selection(config, workdir, selection)
    rows = selection.rows
    if not len(rows):
      raise ValueError(
        f'{workdir.selection}: the selection is empty; there is nothing to '
        'fine-tune on'
      )
    return chosen(store, rows), (
      f'{len(rows):,} of {store.num_rows:,} samples, chosen by '
      f'{config.select.rule}'
    )
  folder = workdir.path / config.finetune.folder / 'samples'
  store = prepared(config, workdir, data, folder)
  return store.iter_rows(), f'{store.num_rows:,} samples of {data}'


def chosen(store, rows) -> Iterator[samples.Sample]:
  """Samples of increasing row numbers."""
  wanted = set(np.asarray(rows).tolist())
  return (s for s in store.iter_rows() if s.row in wanted)


def prepared(config, workdir, path, folder) -> samples.SampleStore:
  """Samples of other data, read by the rules of `config.data`."""
  artifacts.check_mined(workdir, path)
  source = artifacts.data_source(config, workdir, path)
  source = dataclasses.replace(source, limit=0)
  prepare = functools.partial(samples.prepare, source, folder)
  processes.by_the_first(prepare, f'prepared {folder}')
  return samples.SampleStore.open(folder)


def split(config, workdir, data):
  """Training and validation samples, as `config.finetune` divides them.

  Raises:
    ValueError: contradicting settings, or nothing left to train on.
  """
  c = config.finetune
  if c.validation and c.validation_rows:
    raise ValueError(
      'config.finetune.validation and validation_rows are both given: a '
      'validation set comes from its own file or from the data'
    )
  if c.validation:
    folder = workdir.path / c.folder / 'validation'
    store = prepared(config, workdir, c.validation, folder)
    held = list(store.iter_rows())
    name = f'config.finetune.validation: {c.validation}'
    return apart(data, held, name), held
  if not c.validation_rows:
    return data, []
  data = [s for s in data if s.status == 'ok']
  if not data:
    raise ValueError(
      'no sample of the data can be used: the prepare stage prints why'
    )
  if c.validation_rows >= len(data):
    raise ValueError(
      f'config.finetune.validation_rows={c.validation_rows} leaves nothing '
      f'of {len(data):,} samples to train on'
    )
  rng = np.random.default_rng((_SPLIT_SEED, config.seed))
  drawn = set(rng.permutation(len(data))[: c.validation_rows].tolist())
  return (
    [s for i, s in enumerate(data) if i not in drawn],
    [s for i, s in enumerate(data) if i in drawn],
  )


def apart(data, held, name: str) -> Iterator[samples.Sample]:
  """Yields the samples, none of which may be a held-out one.

  Args:
    data: samples to train on.
    held: samples to judge by.
    name: the name of the held-out data, for the message.

  Raises:
    ValueError: a sample is in both; names its row.
  """
  known = {(s.query, s.answer) for s in held if s.status == 'ok'}
  for sample in data:
    if (sample.query, sample.answer) in known:
      raise ValueError(
        f'{name} holds row {sample.row} of the training data: what is judged '
        'by what it was trained on looks better than it is; take it out'
      )
    yield sample
