"""Two-layer checkpoints of every family, the same numbers on every machine.

The weights come from numpy's seeded generator, so that a machine without torch
can make them too and compare with the log-probabilities that torch gave
elsewhere (`python tests/tiny_models.py` writes `tests/reference/parity.json`).
Scales are large enough for every part to matter: scores spread over many nats,
norms and biases are far from neutral.
"""

import copy
import json
import pathlib
import zlib

import numpy as np
from safetensors.numpy import load_file, save_file

from qaq_jax.models.hf import checkpoint
from qaq_jax.models.hf.read_config import read_config

ROWS, LENGTH = 8, 300
LONG = ('gemma3', 'llama', 'qwen2')  # also scored on 2,500 tokens
REFERENCE = pathlib.Path(__file__).parent / 'reference' / 'parity.json'

_BASE = {
  'vocab_size': 211,
  'hidden_size': 48,
  'intermediate_size': 88,
  'num_hidden_layers': 2,
  'num_attention_heads': 6,
  'num_key_value_heads': 2,
  'max_position_embeddings': 4096,
  'hidden_act': 'silu',
  'rms_norm_eps': 1e-6,
  'tie_word_embeddings': False,
  'bos_token_id': 1,
  'eos_token_id': 2,
  'pad_token_id': None,
  'dtype': 'float32',
  'rope_parameters': {'rope_type': 'default', 'rope_theta': 10000.0},
}

# In the current generation of config.json.
CASES = {
  'llama': _BASE
  | {
    'model_type': 'llama',
    'head_dim': 8,
    'eos_token_id': [2, 3],
    'rope_parameters': {
      'rope_type': 'llama3',
      'rope_theta': 500000.0,
      'factor': 8.0,
      'low_freq_factor': 1.0,
      'high_freq_factor': 4.0,
      # wavelengths 6, 167, 4443, ...: one kept, one blended, the rest
      # stretched
      'original_max_position_embeddings': 512,
    },
  },
  # DeepSeek-Coder's scaling, and every bias that the family can have
  'llama_linear': _BASE
  | {
    'model_type': 'llama',
    'hidden_size': 60,
    'attention_bias': True,
    'mlp_bias': True,
    'rms_norm_eps': 1e-5,
    'rope_parameters': {
      'rope_type': 'linear',
      'rope_theta': 100000.0,
      'factor': 4.0,
    },
  },
  'mistral': _BASE
  | {
    'model_type': 'mistral',
    'hidden_size': 40,
    'num_attention_heads': 4,
    'num_key_value_heads': 4,
    'head_dim': 16,
    'sliding_window': 29,
  },
  # 14 query and 2 key/value heads; the second layer slides
  'qwen2': _BASE
  | {
    'model_type': 'qwen2',
    'hidden_size': 112,
    'num_attention_heads': 14,
    'tie_word_embeddings': True,
    'use_sliding_window': True,
    'sliding_window': 37,
    'max_window_layers': 1,
    'layer_types': ['full_attention', 'sliding_attention'],
  },
  # the file names a window that is switched off
  'qwen2_yarn': _BASE
  | {
    'model_type': 'qwen2',
    'use_sliding_window': False,
    'sliding_window': 11,
    'max_window_layers': 1,
    'rope_parameters': {
      'rope_type': 'yarn',
      'rope_theta': 10000.0,
      'factor': 4.0,
      'original_max_position_embeddings': 64,
    },
  },
  'qwen3': _BASE
  | {
    'model_type': 'qwen3',
    'num_attention_heads': 8,
    'head_dim': 14,
    'tie_word_embeddings': True,
    'attention_bias': False,
    'use_sliding_window': False,
    'sliding_window': None,
    'max_window_layers': 2,
    'rope_parameters': {'rope_type': 'default', 'rope_theta': 1e6},
  },
  'mixtral': _BASE
  | {
    'model_type': 'mixtral',
    'num_attention_heads': 8,
    'num_local_experts': 4,
    'num_experts_per_tok': 2,
    'sliding_window': 43,
  },
  # more experts than any device has tokens for, and unnormalised weights
  'qwen3_moe': _BASE
  | {
    'model_type': 'qwen3_moe',
    'num_attention_heads': 8,
    'head_dim': 14,
    'num_experts': 24,
    'num_experts_per_tok': 3,
    'moe_intermediate_size': 20,
    'norm_topk_prob': False,
    'decoder_sparse_step': 1,
    'mlp_only_layers': [],
    'use_sliding_window': False,
    'sliding_window': None,
    'max_window_layers': 2,
  },
  # transformers gives every layer the window, whatever max_window_layers
  'qwen3_moe_window': _BASE
  | {
    'model_type': 'qwen3_moe',
    'num_attention_heads': 8,
    'head_dim': 10,
    'num_experts': 6,
    'num_experts_per_tok': 2,
    'moe_intermediate_size': 36,
    'norm_topk_prob': True,
    'decoder_sparse_step': 1,
    'mlp_only_layers': [],
    'use_sliding_window': True,
    'sliding_window': 37,
    'max_window_layers': 1,
  },
  'gemma': _BASE
  | {
    'model_type': 'gemma',
    'head_dim': 10,
    'num_key_value_heads': 1,
    'hidden_act': 'gelu_pytorch_tanh',
    'tie_word_embeddings': True,
    'pad_token_id': 0,
  },
  'gemma2': _BASE
  | {
    'model_type': 'gemma2',
    'head_dim': 12,
    'hidden_activation': 'gelu_pytorch_tanh',
    'tie_word_embeddings': True,
    'pad_token_id': 0,
    'num_hidden_layers': 4,  # the pattern of two repeats
    'query_pre_attn_scalar': 7,
    'sliding_window': 23,
    'attn_logit_softcapping': 5.0,
    'final_logit_softcapping': 6.0,
    'layer_types': ['sliding_attention', 'full_attention'] * 2,
  },
  'gemma3': _BASE
  | {
    'model_type': 'gemma3_text',
    'head_dim': 12,
    'num_hidden_layers': 5,  # the pattern repeats and is cut off
    'hidden_activation': 'gelu_pytorch_tanh',
    'tie_word_embeddings': True,
    'pad_token_id': 0,
    'query_pre_attn_scalar': 9,
    'sliding_window': 31,
    'layer_types': ['sliding_attention', 'full_attention'] * 2
    + ['sliding_attention'],
    'rope_parameters': {
      'full_attention': {
        'rope_type': 'linear',
        'rope_theta': 1e6,
        'factor': 8.0,
      },
      'sliding_attention': {'rope_type': 'default', 'rope_theta': 10000.0},
    },
  },
  'starcoder2': {k: v for k, v in _BASE.items() if k != 'rms_norm_eps'}
  | {
    'model_type': 'starcoder2',
    'num_attention_heads': 4,
    'hidden_act': 'gelu_pytorch_tanh',
    'norm_epsilon': 1e-5,
    'use_bias': True,
    'sliding_window': 41,
    'tie_word_embeddings': True,
  },
  'gpt2': {
    'model_type': 'gpt2',
    'vocab_size': 257,
    'n_embd': 48,
    'n_inner': None,
    'n_layer': 2,
    'n_head': 4,
    'n_positions': LENGTH,
    'activation_function': 'gelu_new',
    'layer_norm_epsilon': 1e-5,
    'bos_token_id': 256,
    'eos_token_id': 256,
    'tie_word_embeddings': True,
    'dtype': 'float32',
  },
}


def hf_config(case: str) -> dict:
  """Returns a case's config.json."""
  return copy.deepcopy(CASES[case])


def weights(case: str) -> dict[str, np.ndarray]:
  """Returns a case's tensors by their Hugging Face names."""
  config = read_config(hf_config(case))
  out = {}
  for name, shape in sorted(checkpoint.expected_tensors(config).items()):
    rng = np.random.default_rng(zlib.crc32(f'{case}/{name}'.encode()))
    x = rng.standard_normal(shape)
    if 'norm' in name or '.ln_' in name:
      x = 0.3 * x
      if name.endswith('weight') and config.norm != 'rms_plus_one':
        x = 1 + x
    elif name.endswith('bias'):
      x = 0.3 * x
    elif 'embed' in name or '.wte.' in name or '.wpe.' in name:
      x = 1.5 * x * shape[1] ** -0.5
    else:
      conv = config.family == 'gpt2' and 'lm_head' not in name
      x = 1.5 * x * shape[0 if conv else 1] ** -0.5
    out[name] = x.astype(np.float32)
  return out


def write(case: str, directory: pathlib.Path) -> pathlib.Path:
  """Writes a case as one safetensors file and the current config.json."""
  directory.mkdir(parents=True, exist_ok=True)
  save_file(
    weights(case), directory / 'model.safetensors', metadata={'format': 'pt'}
  )
  (directory / 'config.json').write_text(json.dumps(hf_config(case)))
  return directory


def tokens(case: str, rows: int = ROWS, length: int = LENGTH) -> np.ndarray:
  """Returns ids with what real rows have: repeats, first and last ids."""
  vocab = CASES[case]['vocab_size']
  rng = np.random.default_rng(zlib.crc32(case.encode()))
  ids = rng.integers(0, vocab, (rows, length)).astype(np.int32)
  ids[0, 5:60] = 7
  ids[0, 60:160] = np.tile(ids[0, 160:170], 10)
  ids[-1, :3] = vocab - 1
  ids[-1, 3:6] = 0
  return ids


def rewrite_old(case: str, source: pathlib.Path, target: pathlib.Path) -> None:
  """Rewrites a checkpoint as files from before transformers 5 look.

  Older names of config.json, several weight files with an index, the buffers
  that old versions saved, the tied head stored once more, and for GPT-2 names
  without `transformer.`.
  """
  target.mkdir(parents=True)
  config = json.loads((source / 'config.json').read_text())
  config['torch_dtype'] = config.pop('dtype')
  _old_rope(config)
  config.pop('layer_types', None)
  if config['model_type'] == 'gemma3_text':
    config['sliding_window_pattern'] = 2
  if config['model_type'] == 'gemma':
    config['hidden_act'] = 'gelu'
  (target / 'config.json').write_text(json.dumps(config))

  data = {}
  for name, value in load_file(source / 'model.safetensors').items():
    data[name.removeprefix('transformer.')] = value
  half = np.ones(4, np.float32)
  if case == 'gpt2':
    data['lm_head.weight'] = data['wte.weight']
    for i in range(2):
      data[f'h.{i}.attn.bias'] = np.ones((1, 1, 8, 8), np.float32)
      data[f'h.{i}.attn.masked_bias'] = np.full((), -1e4, np.float32)
  else:
    if config['tie_word_embeddings']:
      data['lm_head.weight'] = data['model.embed_tokens.weight']
    for i in range(config['num_hidden_layers']):
      data[f'model.layers.{i}.self_attn.rotary_emb.inv_freq'] = half
  names = sorted(data)
  where = {}
  for i, part in enumerate((names[::2], names[1::2])):
    file = f'model-{i + 1:05d}-of-00002.safetensors'
    save_file({n: data[n] for n in part}, target / file)
    where |= dict.fromkeys(part, file)
  (target / 'model.safetensors.index.json').write_text(
    json.dumps({'metadata': {}, 'weight_map': where})
  )


def _old_rope(config: dict) -> None:
  rope = config.pop('rope_parameters', None)
  if rope is None:
    return
  if 'full_attention' in rope:
    config['rope_local_base_freq'] = rope['sliding_attention']['rope_theta']
    rope = rope['full_attention']
  rope = dict(rope)
  config['rope_theta'] = rope.pop('rope_theta')
  kind = rope.pop('rope_type')
  config['rope_scaling'] = None
  if kind != 'default':  # both spellings were in use
    key = 'type' if kind == 'linear' else 'rope_type'
    config['rope_scaling'] = {key: kind, **rope}


def torch_logp(directory: pathlib.Path, ids: np.ndarray) -> np.ndarray:
  """Returns transformers' log-probability of each token but the first."""
  import torch
  import transformers

  transformers.utils.logging.disable_progress_bar()
  model, info = transformers.AutoModelForCausalLM.from_pretrained(
    directory, dtype=torch.float32, output_loading_info=True
  )
  assert not any(info.values()), info  # it takes every tensor, and no other
  ids = torch.tensor(ids, dtype=torch.long)
  with torch.no_grad():
    logp = torch.log_softmax(model(ids).logits[:, :-1], -1)
  return torch.gather(logp, 2, ids[:, 1:, None])[..., 0].numpy()


def resave(directory: pathlib.Path, target: pathlib.Path) -> pathlib.Path:
  """Loads a checkpoint with transformers and saves it again, its own way."""
  import transformers

  transformers.utils.logging.disable_progress_bar()
  model = transformers.AutoModelForCausalLM.from_pretrained(directory)
  model.save_pretrained(target)
  return target


def write_reference() -> None:
  """Writes what torch gives for the first two rows of each case."""
  import tempfile

  out = {}
  for case in CASES:
    with tempfile.TemporaryDirectory() as folder:
      directory = write(case, pathlib.Path(folder))
      logp = torch_logp(directory, tokens(case)[:2])
      out[case] = [[round(float(x), 6) for x in row] for row in logp]
      if case in LONG:
        logp = torch_logp(directory, tokens(case, 1, 2500))[0, -400:]
        out[f'{case}_long'] = [round(float(x), 6) for x in logp]
  REFERENCE.parent.mkdir(exist_ok=True)
  lines = ',\n'.join(f'"{k}": {json.dumps(v)}' for k, v in out.items())
  REFERENCE.write_text(f'{{\n{lines}\n}}\n')


if __name__ == '__main__':
  write_reference()
