"""Data sets of the Hugging Face hub, and those saved by `save_to_disk`."""

from __future__ import annotations

import os
import pathlib
import re
from collections.abc import Iterator

from qaq_jax.data import arrow
from qaq_jax.data.types import DataError, DataSource, Record

_BATCH = 256  # rows fetched at a time
_SAVED_MARKS = ('dataset_info.json', 'dataset_dict.json', 'state.json')


def is_saved_dataset(path: str) -> bool:
  """Whether `path` is a folder written by `datasets.save_to_disk`."""
  return any(os.path.isfile(os.path.join(path, m)) for m in _SAVED_MARKS[1:])


def looks_like_hub_id(path: str) -> bool:
  """Whether `path` has the form owner/name (or the old bare name)."""
  return bool(re.fullmatch(r'[\w.-]+(/[\w.-]+)?', path))


def resolve(source: DataSource) -> dict:
  """What will be read: a saved folder's fingerprint or a hub commit.

  Raises:
    DataError: the split is unknown, or the hub does not give the data set
      (missing, gated, offline and not in the cache).
  """
  if is_saved_dataset(source.path):
    data = _load_saved(source)
    return {
        'saved': source.path,
        'split': str(data.split) if data.split else source.split,
        'arrow_fingerprint': data._fingerprint,
        'rows': len(data),
    }
  return {
      'hub_id': source.path,
      'name': source.name,
      'split': source.split or 'train',
      'commit': _commit(source),
  }


def read(source: DataSource, resolved: dict) -> Iterator[Record]:
  """Records of a saved or hub data set; hub data sets are streamed."""
  if 'saved' in resolved:
    data = _load_saved(source)
  else:
    data = _load_hub(source, resolved)
  # Arrow tables: images and sounds are then not decoded.
  for table in data.with_format('arrow').iter(batch_size=_BATCH):
    yield from arrow.table_records(table)


def _load_saved(source):
  import datasets  # slow to import, and most inputs are plain files

  try:
    data = datasets.load_from_disk(source.path)
  except (OSError, ValueError) as e:
    raise DataError(
        f'{source.path}: not a folder written by save_to_disk ({e})'
    ) from e
  if isinstance(data, datasets.DatasetDict):
    splits = list(data)
    split = source.split or (splits[0] if len(splits) == 1 else None)
    if split not in data:
      raise DataError(
          f'{source.path}: has the splits {splits}; set data.split to one'
      )
    data = data[split]
  return data


def _load_hub(source, resolved):
  import datasets

  try:
    return datasets.load_dataset(
        source.path, source.name, split=resolved['split'], streaming=True,
        revision=resolved['commit'],
    )
  except Exception as e:  # noqa: BLE001 the library raises many kinds
    raise DataError(
        f'hub data set {source.path!r} (data.name={source.name!r}, '
        f'data.split={resolved["split"]!r}): {type(e).__name__}: {e}'
    ) from e


def _commit(source) -> str:
  """The commit that the wanted revision is at."""
  import huggingface_hub
  from huggingface_hub import constants, errors

  wanted = source.revision or 'main'
  page = f'https://huggingface.co/datasets/{source.path}'
  try:
    info = huggingface_hub.HfApi().dataset_info(
        source.path, revision=wanted, timeout=30
    )
  except errors.GatedRepoError as e:
    raise DataError(
        f'hub data set {source.path!r} is gated: accept its licence at {page} '
        'and set HF_TOKEN'
    ) from e
  except errors.RevisionNotFoundError as e:
    raise DataError(
        f'hub data set {source.path!r} has no revision {wanted!r}'
    ) from e
  except errors.RepositoryNotFoundError as e:
    raise DataError(
        f'{source.path!r} is neither a local path nor a data set that the hub '
        f'shows; a private one ({page}) needs HF_TOKEN'
    ) from e
  except Exception as e:  # noqa: BLE001 offline, or no way to the hub
    folder = 'datasets--' + source.path.replace('/', '--')
    ref = pathlib.Path(constants.HF_HUB_CACHE, folder, 'refs', wanted)
    if ref.is_file():
      return ref.read_text().strip()
    if re.fullmatch('[0-9a-f]{40}', wanted):
      return wanted
    raise DataError(
        f'{source.path!r} is no local path, and the hub was not reached '
        f'({type(e).__name__}); check the path or the connection'
    ) from e
  return info.sha
