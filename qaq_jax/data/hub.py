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
      'split': str(data.split) if data.split else source.split or None,
      'arrow_fingerprint': data._fingerprint,
      'rows': len(data),
    }
  commit, offline = _commit(source)
  return {
    'hub_id': source.path,
    'name': source.name or None,
    'split': source.split or 'train',
    'commit': commit,
    'offline': offline,
  }


def read(source: DataSource, resolved: dict) -> Iterator[Record]:
  """Records of a saved or hub data set; hub data sets are streamed.

  Without a way to the hub, from the files of the commit in the hub's cache.
  """
  if 'saved' in resolved:
    data = _load_saved(source)
  elif resolved['offline']:
    data = _load_cached(source, resolved)
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
      source.path,
      source.name or None,
      split=resolved['split'],
      streaming=True,
      revision=resolved['commit'],
    )
  except Exception as e:  # noqa: BLE001 the library raises many kinds
    raise DataError(
      f'hub data set {source.path!r} (data.name={source.name!r}, '
      f'data.split={resolved["split"]!r}): {type(e).__name__}: {e}'
    ) from e


def _load_cached(source, resolved):
  """Streams the files of a commit that are in the hub's cache."""
  import datasets

  split = resolved['split']
  folder = _cache_folder(source) / 'snapshots' / resolved['commit']
  what = f'hub data set {source.path!r}, offline'
  get = (
    f'with a connection, run: hf download --repo-type dataset {source.path} '
    f'--revision {resolved["commit"]}'
  )
  if not folder.is_dir():
    raise DataError(f'{what}: {folder} is not there; {get}')
  try:
    builder = datasets.load_dataset_builder(str(folder), source.name or None)
    files = builder.config.data_files or {}
    data = builder.as_streaming_dataset(split=split)
  except Exception as e:  # noqa: BLE001 the library raises many kinds
    raise DataError(
      f'{what}: cannot read {folder} (data.name={source.name!r}, '
      f'data.split={split!r}): {type(e).__name__}: {e}. If files are '
      f'missing: {get}'
    ) from e
  missing = _missing_files(files.get(split, ()))
  if missing:
    raise DataError(f'{what}: {missing[0]} is not in the cache; {get}')
  return data


def _missing_files(paths) -> list[str]:
  """Files that are not there, by links and by names like x-00000-of-00002."""
  wanted = set(paths)
  for path in paths:
    part = re.fullmatch(r'(.*-)(\d{5,})(-of-)(\d{5,})(\D[^/]*)', path)
    if part:
      start, number, of, count, end = part.groups()
      wanted |= {
        f'{start}{i:0{len(number)}d}{of}{count}{end}' for i in range(int(count))
      }
  return sorted(p for p in wanted if not os.path.exists(p))


def _cache_folder(source) -> pathlib.Path:
  from huggingface_hub import constants

  folder = 'datasets--' + source.path.replace('/', '--')
  return pathlib.Path(constants.HF_HUB_CACHE, folder)


def _commit(source) -> tuple[str, bool]:
  """The commit that the wanted revision is at; whether only the cache says."""
  import huggingface_hub
  from huggingface_hub import errors

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
    ref = _cache_folder(source) / 'refs' / wanted
    if ref.is_file():
      return ref.read_text().strip(), True
    if re.fullmatch('[0-9a-f]{40}', wanted):
      return wanted, True
    raise DataError(
      f'{source.path!r} is no local path, and the hub was not reached '
      f'({type(e).__name__}); check the path or the connection'
    ) from e
  return str(info.sha), False
