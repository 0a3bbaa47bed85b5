"""The tensors of a checkpoint directory: single or sharded safetensors."""

import dataclasses
import json
import pathlib
import typing

import numpy as np
from safetensors import SafetensorError, safe_open

from qaq_jax.models.hf.families.family import Family
from qaq_jax.models.hf.transforms import bounds

INDEX = 'model.safetensors.index.json'
SINGLE = 'model.safetensors'
_DTYPES = ('F32', 'F16', 'BF16', 'F64')


class CheckpointError(ValueError):
  """A checkpoint that can't be used, and what to do about it."""


class UnknownTensorError(CheckpointError):
  """The files hold a tensor that the family doesn't have."""


class DuplicateTensorError(CheckpointError):
  """Two tensors of the files stand for the same parameter."""


class MissingTensorError(CheckpointError):
  """A parameter has no tensor in the files."""


class TensorShapeError(CheckpointError):
  """A tensor has another shape than config.json asks for."""


def weight_files(directory: pathlib.Path) -> list[pathlib.Path]:
  """Returns the safetensors files of a checkpoint, in order.

  Raises:
    CheckpointError: there are none (says what was found instead), or one that
      the index names is missing.
  """
  index = directory / INDEX
  if index.exists():
    names = sorted(set(json.loads(index.read_text())['weight_map'].values()))
    missing = [n for n in names if not (directory / n).exists()]
    if missing:
      raise MissingTensorError(
        f'{index}: names {missing[0]}, which is not there'
        f' ({len(missing)} of {len(names)} files missing): download again'
      )
    return [directory / n for n in names]
  if (directory / SINGLE).exists():
    return [directory / SINGLE]
  raise CheckpointError(
    f'{directory}: no {SINGLE} and no {INDEX}'
    f'{instead(sorted(p.name for p in directory.iterdir()))}'
  )


def instead(names: list[str]) -> str:
  """Returns what to do with the weights that are there in another format."""
  if any(n.endswith('.gguf') for n in names):
    return (
      '. GGUF files are quantised for llama.cpp: use the original'
      ' safetensors checkpoint that they were made from'
    )
  if any(n.endswith(('.bin', '.pt', '.pth')) for n in names):
    return (
      '. PyTorch pickles can run code when loaded and are not read: convert'
      ' them where you trust them, AutoModelForCausalLM.from_pretrained(...)'
      '.save_pretrained(...) writes safetensors, or use a revision that has'
      ' them (often refs/pr/N)'
    )
  other = [n for n in names if n.endswith('.safetensors')]
  if other:
    return f'. Found {other[0]}: rename it or point to the folder that has both'
  return f'. Found: {", ".join(names[:10]) or "nothing"}'


def _open_file(path: pathlib.Path):
  """Opens one file; its header and length are checked, numbers unread."""
  try:
    return safe_open(path, 'np')
  except SafetensorError as e:
    raise CheckpointError(
      f'{path}: damaged or incomplete safetensors ({e}): download or save it'
      ' again'
    ) from e


class Slicer(typing.Protocol):
  """A tensor of a file, as safetensors has it: what is indexed is read."""

  def get_shape(self) -> list[int]:
    """Its whole shape."""

  def get_dtype(self) -> str:
    """As the format names it: 'F32', say."""

  def __getitem__(self, index) -> np.ndarray:
    """The numbers of a block."""


@dataclasses.dataclass(frozen=True)
class _Piece:
  """One expert's part of a tensor [E, parts x rows, columns], as a slicer."""

  tensor: Slicer
  expert: int
  part: int
  parts: int

  @property
  def _rows(self):
    return self.tensor.get_shape()[1] // self.parts

  def get_shape(self):
    return [self._rows, *self.tensor.get_shape()[2:]]

  def get_dtype(self):
    return self.tensor.get_dtype()

  def __getitem__(self, index):
    first, last = bounds(index[0], self._rows)
    start = self.part * self._rows
    rows = slice(start + first, start + last)
    return self.tensor[self.expert, rows, index[1]]


class Tensors:
  """Lazy access to every tensor of a checkpoint by its canonical name.

  Nothing is read before a block of a tensor is asked for, and then only that
  block.
  """

  def __init__(self, directory: pathlib.Path, family: Family):
    self.directory = pathlib.Path(directory)
    # Canonical name -> file, name there, which piece of it.
    self._where: dict[str, tuple[pathlib.Path, str, tuple]] = {}
    self._handles = {}
    for path in weight_files(self.directory):
      handle = _open_file(path)
      self._handles[path] = handle
      for name in handle.keys():  # noqa: SIM118 (not a mapping)
        if family.is_skipped(name):
          continue
        self._add(path, name, family)

  def _add(self, path, name, family):
    """Notes what a tensor stands for: itself, or each expert's parts of it."""
    canonical = family.canonical(name)
    templates = family.parts(canonical)
    if not templates:
      self._note(canonical, path, name, ())
      return
    shape = self._handles[path].get_slice(name).get_shape()
    if len(shape) != 3 or shape[1] % len(templates):
      raise TensorShapeError(
        f'tensor {name!r} of {path} has shape {list(shape)}, expected'
        f' [experts, {len(templates)} x rows, columns]'
      )
    for expert in range(shape[0]):
      for part, template in enumerate(templates):
        self._note(
          template.format(expert=expert),
          path,
          name,
          (expert, part, len(templates)),
        )

  def _note(self, canonical, path, name, piece):
    if canonical in self._where:
      first_path, first, _ = self._where[canonical]
      raise DuplicateTensorError(
        f'tensor {name!r} of {path} sets the same parameter as {first!r}'
        f' of {first_path}: keep one of them'
      )
    self._where[canonical] = path, name, piece

  def __contains__(self, name: str) -> bool:
    return name in self._where

  def names(self) -> set[str]:
    """Returns the canonical names."""
    return set(self._where)

  def describe(self, name: str) -> str:
    """Returns a tensor's own name and file, for messages."""
    path, own, _ = self._where[name]
    return f'tensor {own!r} of {path}'

  def check(self, expected: dict[str, tuple[int, ...]]) -> None:
    """Compares names, shapes and dtypes with what the model needs.

    Args:
      expected: canonical name -> shape.

    Raises:
      UnknownTensorError, MissingTensorError, TensorShapeError: as they say.
      CheckpointError: a dtype that is not a plain float.
    """
    unknown = sorted(self.names() - set(expected))
    if unknown:
      raise UnknownTensorError(
        f'{self.describe(unknown[0])} is not known to this family'
        f' ({len(unknown)} such): is config.json of the same model?'
      )
    missing = sorted(set(expected) - self.names())
    if missing:
      hint = ''
      if 'lm_head.weight' in missing:
        hint = '; if the head is tied, config.json lacks tie_word_embeddings'
      raise MissingTensorError(
        f'tensor {missing[0]!r} is in none of the files of'
        f' {self.directory} ({len(missing)} such){hint}'
      )
    for name, shape in expected.items():
      tensor = self.open(name)
      found = tuple(tensor.get_shape())
      if found != tuple(shape):
        raise TensorShapeError(
          f'{self.describe(name)} has shape {list(found)}, config.json asks'
          f' for {list(shape)}'
        )
      if tensor.get_dtype() not in _DTYPES:
        raise CheckpointError(
          f'{self.describe(name)} is {tensor.get_dtype()}: quantised weights'
          ' are not supported, use the original checkpoint'
        )

  def open(self, name: str) -> Slicer:
    """Returns a slicer: index it to read that block as a numpy array."""
    path, own, piece = self._where[name]
    tensor = self._handles[path].get_slice(own)
    return _Piece(tensor, *piece) if piece else tensor

  def equal(self, first: str, second: str, rows: int = 4096) -> bool:
    """Whether two tensors hold the same numbers; reads `rows` at a time."""
    a, b = self.open(first), self.open(second)
    if a.get_shape() != b.get_shape():
      return False
    size = a.get_shape()[0]
    blocks = (slice(i, min(i + rows, size)) for i in range(0, size, rows))
    return all(np.array_equal(a[block], b[block]) for block in blocks)
