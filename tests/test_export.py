"""Exported checkpoints and adapters, as transformers and PEFT read them."""

import functools
import json
import os
import stat

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_models
import tiny_tokenizers
import tolerances
from flax import nnx
from safetensors.numpy import load_file

from qaq_jax.encoding import chat
from qaq_jax.finetune import lora
from qaq_jax.models.hf import checkpoint, export, source
from qaq_jax.models.hf.read_config import read_config
from qaq_jax.models.options import LoraOptions

IDS = np.arange(24, dtype=np.int32).reshape(2, 12) * 7


def start(tmp_path, case='qwen2', **tokenizer):
  """A start with tokenizer, and its decoder in float32."""
  config = tiny_models.hf_config(case) | {'vocab_size': 448}
  folder = tiny_tokenizers.make(tmp_path, 'qwen', **tokenizer)
  model = checkpoint.random_init(read_config(config), mesh=None)
  checkpoint.save_hf(model, folder, dtype=jnp.float32)
  return source.resolve(folder), checkpoint.load(folder, mesh=None)


@functools.partial(jax.jit, static_argnums=0)
def logits(graphdef, params, ids):
  model = nnx.merge(graphdef, params)
  return model.logits(model(ids))


def ours(model, ids=IDS):
  return np.asarray(logits(*nnx.split(model), jnp.asarray(ids)))[..., :448]


def theirs(folder, ids=IDS, change=None):
  """Logits of transformers, after `change` of its state dict's tensors."""
  torch = pytest.importorskip('torch')
  import transformers

  transformers.utils.logging.disable_progress_bar()
  model, info = transformers.AutoModelForCausalLM.from_pretrained(
    folder, dtype=torch.float32, output_loading_info=True
  )
  assert not any(info.values()), info
  with torch.no_grad():
    for name, value in (change or {}).items():
      model.state_dict()[name].add_(torch.tensor(value))
    return model(torch.tensor(ids, dtype=torch.long)).logits.numpy()


def test_transformers_loads_the_export_with_the_same_logits(tmp_path):
  origin, model = start(tmp_path)
  out = tmp_path / 'out'
  export.save_model(model, out, source=origin, dtype=jnp.float32)
  want = theirs(out)
  near = tolerances.near(model.config, IDS.shape[1], want)
  np.testing.assert_allclose(ours(model), want, **near)
  assert sorted(os.listdir(out)) == [
    'config.json',
    'generation_config.json',
    'model.safetensors',
    'tokenizer.json',
    'tokenizer_config.json',
  ]
  # Loadable by other users of the machine, as far as the umask goes.
  mask = os.umask(0)
  os.umask(mask)
  for path in out.iterdir():
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask


def test_borrowed_template_goes_with_the_export(tmp_path):
  import transformers

  origin, model = start(tmp_path, template='{{ "own" }}')
  (origin.directory / 'chat_template.json').write_text(
    json.dumps({'chat_template': '{{ "older" }}'})
  )
  hf = transformers.AutoTokenizer.from_pretrained(origin.directory)
  template, _ = chat.find_template(hf, 'chatml')
  end = hf.convert_tokens_to_ids('<|im_end|>')
  out = tmp_path / 'out'
  export.save_model(
    model,
    out,
    source=origin,
    dtype=jnp.float32,
    chat_template=template,
    stop_ids=(end,),
  )
  hf = transformers.AutoTokenizer.from_pretrained(out)
  text = hf.apply_chat_template(
    [{'role': 'user', 'content': 'hi'}], tokenize=False
  )
  assert '<|im_start|>user\nhi<|im_end|>' in text
  config = transformers.GenerationConfig.from_pretrained(out)
  assert config.eos_token_id == [end, 2]  # the turn's end, then the config's


def test_generation_config_of_the_start_is_kept(tmp_path):
  origin, model = start(tmp_path)
  (origin.directory / 'generation_config.json').write_text(
    json.dumps({'eos_token_id': [7, 8], 'temperature': 0.7, 'do_sample': True})
  )
  out = tmp_path / 'out'
  export.save_model(model, out, source=origin, dtype=jnp.float32, stop_ids=(8,))
  written = json.loads((out / 'generation_config.json').read_text())
  assert written['eos_token_id'] == [8, 7]
  assert written['temperature'] == 0.7


def test_an_export_takes_the_place_of_an_older_one_in_one_step(
  tmp_path, monkeypatch
):
  origin, model = start(tmp_path)
  out = tmp_path / 'out'
  export.save_model(model, out, source=origin, dtype=jnp.float32)
  (out / 'of_before').write_text('')
  before = sorted(os.listdir(out))

  def fail(*args, **kwargs):
    raise OSError('disk full')

  with monkeypatch.context() as patch:
    patch.setattr(checkpoint, 'save_hf', fail)
    with pytest.raises(OSError, match='disk full'):
      export.save_model(model, out, source=origin, dtype=jnp.float32)
  assert sorted(os.listdir(out)) == before
  export.save_model(model, out, source=origin, dtype=jnp.float32)
  assert 'of_before' not in os.listdir(out)
  assert not [p for p in tmp_path.iterdir() if p.name.startswith('out.')]


def adapted(model, rank=3, alpha=6.0):
  """The model with adapters that do something."""
  model = lora.add(model, LoraOptions(rank=rank, alpha=alpha))
  rng = np.random.default_rng(0)
  for path, variable in nnx.to_flat_state(nnx.state(model)):
    if path[-1].endswith('_lora_b'):
      value = variable.get_value()
      variable.set_value(
        jnp.asarray(0.1 * rng.standard_normal(value.shape), value.dtype)
      )
      nnx.update(model, nnx.from_flat_state({path: variable}))
  return model


@pytest.mark.parametrize('case', ['qwen2', 'gemma2', 'starcoder2', 'qwen3_moe'])
def test_adapter_is_what_peft_adds_to_the_weights(tmp_path, case):
  origin, base = start(tmp_path, case)
  model = adapted(base)
  export.save_adapter(
    model,
    tmp_path / 'adapter',
    base=str(origin.directory),
    rank=3,
    alpha=6.0,
  )
  config = json.loads((tmp_path / 'adapter/adapter_config.json').read_text())
  assert config['base_model_name_or_path'] == str(origin.directory)
  tensors = load_file(tmp_path / 'adapter' / 'adapter_model.safetensors')
  change = {}
  for name, a in tensors.items():
    module, _, which = name.partition('.lora_')
    assert module.rsplit('.', 1)[1] in config['target_modules']
    if which == 'A.weight':
      b = tensors[f'{module}.lora_B.weight']
      weight = module.removeprefix('base_model.model.') + '.weight'
      change[weight] = config['lora_alpha'] / config['r'] * b @ a
  layers = model.config.num_layers
  assert len(change) == layers * len(config['target_modules'])
  found = theirs(origin.directory, change=change)
  near = tolerances.near(model.config, IDS.shape[1], found)
  np.testing.assert_allclose(ours(model), found, **near)
  assert np.abs(ours(base) - found).max() > 0.05


def test_adapter_of_a_fused_family_is_refused(tmp_path):
  _, model = start(tmp_path, 'gpt2')
  with pytest.raises(ValueError, match='gpt2 keeps query, key and value'):
    export.save_adapter(
      adapted(model), tmp_path / 'adapter', base='x', rank=3, alpha=6.0
    )
