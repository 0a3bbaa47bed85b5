"""Trained models as folders that transformers, vLLM or PEFT load.

`save_model` writes a whole Hugging Face checkpoint: weights, config.json,
generation_config.json, tokenizer, and the chat template of the training, also
where it was borrowed. `save_adapter` writes a LoRA adapter in PEFT's format.
"""

import contextlib
import json
import os
import pathlib
import shutil
from collections.abc import Iterator, Sequence

import jax
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils
from safetensors.numpy import save_file

from qaq_jax.models.decoder import Decoder
from qaq_jax.models.hf import checkpoint, stacking
from qaq_jax.models.hf.families import family_of
from qaq_jax.models.hf.source import ALLOWED, ModelSource
from qaq_jax.runtime import processes
from qaq_jax.workdir import files

# Files of the start that say how text becomes ids.
_TOKENIZER_FILES = tuple(
  name
  for name in ALLOWED
  if 'safetensors' not in name
  and name not in ('config.json', 'generation_config.json')
)
_TEMPLATE_FILES = ('chat_template.jinja', 'chat_template.json')


def save_model(
  model: Decoder,
  directory: str | os.PathLike,
  *,
  source: ModelSource,
  dtype,
  chat_template: str | None = None,
  stop_ids: Sequence[int] = (),
) -> None:
  """Writes a checkpoint that transformers loads, in one step.

  Every process must call it; the first one writes.

  Args:
    model: the decoder, without LoRA parameters.
    directory: made or replaced.
    source: where training started; its tokenizer files are copied.
    dtype: the dtype of the saved weights.
    chat_template: text of the template of the training, which then is the
      folder's own; None leaves the tokenizer's.
    stop_ids: tokens that end a turn; generation_config.json names them beside
      those of the start.

  Raises:
    OSError: a file cannot be written.
  """
  with _in_one_step(pathlib.Path(directory)) as folder:
    checkpoint.save_hf(model, folder, dtype=dtype)
    if jax.process_index():
      return
    _copy_tokenizer(source.directory, folder, chat_template)
    _write_json(
      folder / 'generation_config.json',
      _generation_config(model.config, source.directory, stop_ids),
    )
    _readable(folder)


def save_adapter(
  model: Decoder,
  directory: str | os.PathLike,
  *,
  base: str,
  rank: int,
  alpha: float,
) -> None:
  """Writes the LoRA parameters as a PEFT adapter, float32, in one step.

  Every process must call it; the first one writes.

  Args:
    model: a decoder with LoRA parameters.
    directory: made or replaced.
    base: folder or hub id of the model that the adapter belongs to.
    rank: columns of A.
    alpha: numerator of the scale; PEFT too scales by alpha / rank.

  Raises:
    ValueError: the family stores query, key and value as one matrix, which
      PEFT adapts as a whole: use the merged export.
  """
  config = model.config
  family = family_of(config)
  if family.has_fused_heads:
    raise ValueError(
      f'{config.family} keeps query, key and value in one matrix, of which '
      'PEFT knows one adapter and not three: use the merged model'
    )
  weights, modules = {}, set()
  for path, variable in nnx.to_flat_state(nnx.state(model)):
    target, _, which = str(path[-1]).partition('_lora_')
    if not which:
      continue
    template, _ = family.tensor((*path[:-1], f'{target}_kernel'))
    name = template.removesuffix('.weight')
    modules.add(name.rsplit('.', 1)[-1])
    stacked = _on_host(variable.get_value())
    layers = stacking.layers_of(config, path)
    assert layers is not None, 'adapters are those of layers'
    for i, layer in enumerate(layers):
      # Ours: A [in..., rank] and B [rank, out...]; PEFT's are transposed.
      matrix = stacked[i]
      if which == 'a':
        matrix = matrix.reshape(-1, rank)
      else:
        matrix = matrix.reshape(rank, -1)
      key = f'base_model.model.{name.format(layer)}.lora_{which.upper()}.weight'
      weights[key] = np.ascontiguousarray(matrix.T, np.float32)
  with _in_one_step(pathlib.Path(directory)) as folder:
    if jax.process_index():
      return
    save_file(
      weights,
      folder / 'adapter_model.safetensors',
      metadata={'format': 'pt'},
    )
    _write_json(
      folder / 'adapter_config.json',
      {
        'peft_type': 'LORA',
        'task_type': 'CAUSAL_LM',
        'base_model_name_or_path': base,
        'r': rank,
        'lora_alpha': alpha,
        'lora_dropout': 0.0,
        'target_modules': sorted(modules),
        'bias': 'none',
        'fan_in_fan_out': False,
        'inference_mode': True,
      },
    )
    _readable(folder)


@contextlib.contextmanager
def _in_one_step(directory: pathlib.Path) -> Iterator[pathlib.Path]:
  """A new folder that takes the place of `directory` when all went well."""
  if jax.process_index():
    yield directory  # where it writes nothing
  else:
    with files.atomic_folder(directory) as folder:
      yield folder
  processes.barrier(f'exported {directory.name}')


def _copy_tokenizer(source, folder, chat_template):
  for name in _TOKENIZER_FILES:
    if chat_template is not None and name in _TEMPLATE_FILES:
      continue
    if (source / name).exists():
      shutil.copyfile(source / name, folder / name)
  if chat_template is not None:
    (folder / 'chat_template.jinja').write_text(chat_template, encoding='utf-8')


def _generation_config(config, source, stop_ids) -> dict:
  path = source / 'generation_config.json'
  value = (
    json.loads(path.read_text('utf-8'))
    if path.exists()
    else {
      name: getattr(config, name)
      for name in ('bos_token_id', 'pad_token_id')
      if getattr(config, name) is not None
    }
  )
  known = value.get('eos_token_id', config.eos_token_id)
  known = [known] if isinstance(known, int) else list(known or ())
  # The turn's own end first: that is what the training taught.
  ends = list(dict.fromkeys([*map(int, stop_ids), *known]))
  if ends:
    value['eos_token_id'] = ends if len(ends) > 1 else ends[0]
  return value


def _on_host(array) -> np.ndarray:
  if not array.is_fully_addressable:
    array = multihost_utils.process_allgather(array, tiled=True)
  return np.asarray(array, np.float32)


def _write_json(path, value):
  path.write_text(json.dumps(value, indent=2) + '\n', encoding='utf-8')


def _readable(folder):
  """Gives files the usual mode: safetensors makes them the owner's alone."""
  mask = os.umask(0)
  os.umask(mask)
  for path in folder.iterdir():
    path.chmod(0o666 & ~mask)
