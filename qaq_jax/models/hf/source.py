"""Where a model comes from: a local folder, or a hub id at a fixed commit."""

import dataclasses
import json
import os
import pathlib
import re
from concurrent import futures

import huggingface_hub
from huggingface_hub import constants, errors

from qaq_jax.models.hf import tensors
from qaq_jax.workdir import checksums

# Nothing else is downloaded: no pickles, no code, no other formats' weights.
ALLOWED = (
  'model.safetensors',
  'model-*.safetensors',
  tensors.INDEX,
  'config.json',
  'generation_config.json',
  'tokenizer.json',
  'tokenizer_config.json',
  'tokenizer.model',
  'special_tokens_map.json',
  'added_tokens.json',
  'vocab.json',
  'merges.txt',
  'chat_template.jinja',
  'chat_template.json',
)


@dataclasses.dataclass(frozen=True)
class ModelSource:
  """A model's files, at rest on this machine.

  Attributes:
    path: what the user named: a folder or a hub id.
    revision: what the user asked for; None: the default branch.
    commit: the commit it stands for; None for a local folder.
    directory: the folder with config.json and the weights.
  """

  path: str
  revision: str | None
  commit: str | None
  directory: pathlib.Path


def resolve(
  path: str, revision: str | None = None, *, weights: bool = True
) -> ModelSource:
  """Returns the files of a local folder or of a hub id, downloading them.

  `HF_TOKEN` opens gated repositories, `HF_HUB_OFFLINE=1` takes what is cached.
  Code in repositories is never run.

  Args:
    path: a folder, or `owner/name` (or `name`) on the hub.
    revision: branch, tag or commit of a hub id.
    weights: False takes config and tokenizer alone, for planning.

  Raises:
    FileNotFoundError: no such folder, repository, revision, or not cached.
    PermissionError: gated or private; names the licence page.
    ConnectionError: the hub could not be reached.
    CheckpointError: the files are there, but not as safetensors.
  """
  path = os.fspath(path)
  local = pathlib.Path(path).expanduser()
  if local.is_dir():
    if revision is not None:
      raise ValueError(
        f'{path} is a local folder: revision {revision!r} has no meaning'
      )
    return _checked(ModelSource(path, None, None, local.resolve()), weights)
  if path.endswith('.gguf') or local.is_file():
    raise tensors.CheckpointError(
      f'{path} is a file: name a folder with config.json and safetensors'
      ' weights. GGUF and single weight files are not read'
    )
  if not re.fullmatch(r'[\w.-]+(/[\w.-]+)?', path) or path.startswith('.'):
    raise FileNotFoundError(f'{path}: no such folder, and not a hub id')
  directory = _download(path, revision, weights)
  return _checked(
    ModelSource(path, revision, directory.name, directory), weights
  )


def _download(repo: str, revision: str | None, weights: bool) -> pathlib.Path:
  page = f'{constants.ENDPOINT}/{repo}'
  where = repo if revision is None else f'{repo} at revision {revision!r}'
  try:
    return pathlib.Path(
      huggingface_hub.snapshot_download(
        repo,
        revision=revision,
        allow_patterns=[
          name for name in ALLOWED if weights or 'safetensors' not in name
        ],
      )
    )
  except errors.GatedRepoError as e:
    raise PermissionError(
      f'{repo} is gated: accept its licence at {page}, then set HF_TOKEN to'
      ' a token of that account'
    ) from e
  except errors.RevisionNotFoundError as e:
    raise FileNotFoundError(f'{where}: no such revision, see {page}') from e
  except errors.RepositoryNotFoundError as e:
    raise FileNotFoundError(
      f'{repo}: no such folder here and no such repository on the hub; if it'
      ' is private, set HF_TOKEN'
    ) from e
  except errors.LocalEntryNotFoundError as e:
    if constants.HF_HUB_OFFLINE:
      raise FileNotFoundError(
        f'{where} is not in the cache and HF_HUB_OFFLINE is set: unset it, or'
        f' run `hf download {repo}` where there is a network'
      ) from e
    raise ConnectionError(
      f'{where} is not in the cache and the hub could not be reached: {e}'
    ) from e
  except (errors.HfHubHTTPError, OSError) as e:
    raise ConnectionError(f'{where}: the hub answered: {e}') from e


def _checked(source: ModelSource, weights: bool) -> ModelSource:
  """Refuses early what can't be loaded."""
  if not (source.directory / 'config.json').exists():
    if (source.directory / 'adapter_config.json').exists():
      raise tensors.CheckpointError(
        f'{source.path} is an adapter, not a model: it has adapter_config.json '
        'and no config.json. Merge it into its base model (in peft: '
        'merge_and_unload, then save_pretrained) and name that folder; what '
        'qaq finetune writes is merged in the folder model beside it'
      )
    raise tensors.CheckpointError(
      f'{source.path}: no config.json in {source.directory}'
    )
  if not weights:
    return source
  # Beside what the finetune stage exported.
  checksums.check(source.directory, 'delete the folder and export it again')
  try:
    tensors.weight_files(source.directory)
  except tensors.MissingTensorError:
    raise
  except tensors.CheckpointError as e:
    if source.commit is None or constants.HF_HUB_OFFLINE:
      raise
    # Only allowed files came down; the hub knows what else there is.
    names = huggingface_hub.list_repo_files(source.path, revision=source.commit)
    raise tensors.CheckpointError(
      f'{source.path}: no safetensors weights{tensors.instead(names)}'
    ) from e
  return source


def read_json(source: ModelSource) -> dict:
  """Returns the parsed config.json."""
  path = source.directory / 'config.json'
  try:
    return json.loads(path.read_text(encoding='utf-8'))
  except ValueError as e:
    raise tensors.CheckpointError(f'{path} is not valid JSON: {e}') from e


def fingerprint(source: ModelSource) -> dict:
  """Returns what identifies a model's numbers.

  Returns:
    {'path', 'revision', 'commit', 'files': [{'name', 'bytes', 'sha256'}]} over
    config.json and the weight files. Equal contents have equal `files`,
    wherever they lie.
  """
  paths = [source.directory / 'config.json']
  if (source.directory / tensors.INDEX).exists():
    paths.append(source.directory / tensors.INDEX)
  paths += tensors.weight_files(source.directory)
  with futures.ThreadPoolExecutor(4) as pool:
    digests = list(pool.map(_sha256, paths))
  return {
    'path': source.path,
    'revision': source.revision,
    'commit': source.commit,
    'files': [
      {'name': p.name, 'bytes': p.stat().st_size, 'sha256': digest}
      for p, digest in zip(paths, digests, strict=True)
    ],
  }


def _sha256(path: pathlib.Path) -> str:
  real = path.resolve()
  # The hub's cache names large files by their hash already.
  if real.parent.name == 'blobs' and re.fullmatch('[0-9a-f]{64}', real.name):
    return real.name
  return checksums.sha256(real)
