"""An update equals torch's, however the batch is cut up and wherever it runs.

Tolerances, all in float32: of a tensor's largest gradient, that of its decoder
(`tolerances`); of updated weights, what such an error can do to Adam.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_models
import tolerances
from safetensors.numpy import load_file

from qaq_jax.finetune import optimizer as optimizer_lib
from qaq_jax.finetune import step as step_lib
from qaq_jax.models import embedding, sharding
from qaq_jax.models.hf import checkpoint
from qaq_jax.models.hf.read_config import read_config

RATES = (1e-2, 3e-3, 1e-2)
# Epsilon far above rounding: Adam makes the sign of a gradient that is zero
# but for rounding (GPT-2's key biases) count as much as any other.
OPTIONS = optimizer_lib.OptimizerOptions(
  weight_decay=0.1, b2=0.98, eps=1e-4, clip=0.5
)
FAMILIES = (
  'llama',
  'qwen2',
  'qwen3',
  'gemma2',
  'gpt2',
  'qwen3_moe',
  pytest.param('llama_linear', marks=pytest.mark.slow),
  pytest.param('mistral', marks=pytest.mark.slow),
  pytest.param('mixtral', marks=pytest.mark.slow),
  pytest.param('qwen3_moe_window', marks=pytest.mark.slow),
  pytest.param('starcoder2', marks=pytest.mark.slow),
  pytest.param('gemma', marks=pytest.mark.slow),
  pytest.param('gemma3', marks=pytest.mark.slow),
)


def micro_batch(vocab_size, rows=8, length=20, seed=0, packed=True):
  """Random rows; two segments and padding where `packed`."""
  rng = np.random.default_rng(seed)
  segments = np.ones((rows, length), np.int32)
  weights = rng.uniform(0.2, 2, (rows, length)).astype(np.float32)
  weights[rng.random((rows, length)) < 0.3] = 0
  if packed:
    for row in range(rows):
      segments[row, 7 + row :] = 2
    segments[0, 15:] = 0
    weights[segments == 0] = 0
  return {
    'tokens': rng.integers(0, vocab_size, (rows, length)).astype(np.int32),
    'segment_ids': segments,
    'weights': weights,
  }


def load(folder, case, mesh=None, **kwargs):
  directory = folder / case
  if not directory.exists():
    tiny_models.write(case, directory)
  return checkpoint.load(directory, mesh=mesh, **kwargs)


def random_model(case='qwen2', mesh=None, dtype=jnp.float32):
  config = read_config(tiny_models.hf_config(case))
  return checkpoint.random_init(config, mesh=mesh, dtype=dtype)


def trainer_of(model, options=OPTIONS, remat=False, **kwargs):
  return step_lib.Trainer(
    model,
    optimizer_lib.make(options),
    step_lib.StepOptions(remat=remat, **kwargs),
  )


def loss_limit(case, length=20):
  """Of a loss, relative: nothing in its sum cancels."""
  config = read_config(tiny_models.hf_config(case))
  return tolerances.decoder(config, length)


def gradient_limit(case, length=20):
  """Of a gradient and its norm, relative to the largest entry."""
  config = read_config(tiny_models.hf_config(case))
  return tolerances.decoder(config, length, gradient=True)


def weight_limit(gradient, limit, rates):
  """Of weights after updates by clipped gradients that are off by `limit`.

  Adam moves a weight by rate * m / (sqrt(v) + eps): by at most error / eps
  more than it should.
  """
  norm = np.sqrt(sum(np.sum(np.square(g)) for g in gradient.values()))
  most = max(tolerances.largest(g) for g in gradient.values())
  error = limit * most * min(OPTIONS.clip / norm, 1)
  return sum(rates) * error / OPTIONS.eps


def assert_trees_close(got, want, limit):
  """Within `limit` of the largest entry of each array.

  An array that is zero but for rounding (GPT-2's key biases) is a sum of terms
  like the others' that cancel: its error is relative to those.
  """
  assert set(got) == set(want)
  most = max(tolerances.largest(x) for x in want.values())
  for name, x in want.items():
    x = np.asarray(x, np.float32)
    np.testing.assert_allclose(
      np.asarray(got[name]),
      x,
      rtol=0,
      err_msg=name,
      atol=limit * tolerances.largest(x) + tolerances.chain(1) * most,
    )


def exported(trainer, state, params, folder):
  """Arrays by parameter name -> the same by the names of the checkpoint."""
  model = trainer.model(state._replace(params=params))
  checkpoint.save_hf(model, folder, dtype=jnp.float32)
  return load_file(folder / 'model.safetensors')


def torch_updates(directory, case, batch):
  """transformers and torch.optim: losses, norms, first gradient, weights."""
  import torch
  import transformers

  model = transformers.AutoModelForCausalLM.from_pretrained(
    directory, dtype=torch.float32
  ).eval()  # no dropout
  decayed = set(transformers.Trainer.get_decay_parameter_names(None, model))
  named = dict(model.named_parameters())
  optimizer = torch.optim.AdamW(
    [
      {
        'params': [p for n, p in named.items() if (n in decayed) == decay],
        'weight_decay': OPTIONS.weight_decay * decay,
      }
      for decay in (True, False)
    ],
    betas=(OPTIONS.b1, OPTIONS.b2),
    eps=OPTIONS.eps,
  )
  ids = torch.tensor(batch['tokens'], dtype=torch.long)
  weights = torch.tensor(batch['weights'])[:, 1:]
  metrics, gradient = [], None
  for rate in RATES:
    for group in optimizer.param_groups:
      group['lr'] = rate
    optimizer.zero_grad()
    logp = torch.log_softmax(model(ids).logits[:, :-1], -1)
    nll = -torch.gather(logp, 2, ids[:, 1:, None])[..., 0]
    loss = (weights * nll).sum() / weights.sum()
    loss.backward()
    if gradient is None:
      gradient = {n: p.grad.numpy().copy() for n, p in named.items()}
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), OPTIONS.clip)
    optimizer.step()
    metrics.append((loss.item(), norm.item()))
  assert metrics[0][1] > OPTIONS.clip  # so that clipping is compared as well
  trained = {n: p.detach().numpy() for n, p in named.items()}
  return metrics, by_expert(gradient, case), by_expert(trained, case)


def by_expert(arrays, case):
  """transformers stacks experts in memory, but not in files."""
  home, template, *names = {
    'mixtral': ('block_sparse_moe', '{}', 'w1', 'w3', 'w2'),
  }.get(case, ('mlp', '{}_proj', 'gate', 'up', 'down'))
  out = {}
  for name, x in arrays.items():
    layer, _, kind = name.rpartition('.mlp.')
    if kind == 'gate.weight':  # the router; an MLP's is gate_proj.weight
      out[f'{layer}.{home}.gate.weight'] = x
    elif not kind.startswith('experts.'):
      out[name] = x
    else:
      halves = kind == 'experts.gate_up_proj'
      parts = np.split(x, 2, axis=1) if halves else [x]
      which = names[:2] if halves else names[2:]
      for part, stacked in zip(which, parts, strict=True):
        for expert, matrix in enumerate(stacked):
          own = f'{home}.experts.{expert}.{template.format(part)}.weight'
          out[f'{layer}.{own}'] = matrix
  return out


@pytest.mark.parametrize('case', FAMILIES)
def test_updates_equal_torch(case, tmp_path):
  pytest.importorskip('torch')
  model = load(tmp_path, case)
  vocab_size = model.config.vocab_size
  batch = micro_batch(vocab_size, rows=3, length=40, packed=False)
  # torch's embedding keeps the gradient of Gemma's padding token, 0, from it.
  batch['tokens'] = np.maximum(batch['tokens'], 1)
  metrics, gradient, weights = torch_updates(tmp_path / case, case, batch)
  trainer = trainer_of(model)
  state = trainer.state
  sums = trainer.gradient(state, batch)
  mean = jax.tree.map(lambda g: g / sums.weight, sums.gradient)
  limit = gradient_limit(case, 40)
  assert_trees_close(
    exported(trainer, state, mean, tmp_path / 'gradient'), gradient, limit
  )
  np.testing.assert_allclose(
    sums.weight,
    batch['weights'][:, 1:].sum(),
    rtol=tolerances.chain(batch['weights'].size),
  )
  for rate, want in zip(RATES, metrics, strict=True):
    state, got = trainer.apply(state, trainer.gradient(state, batch), rate)
    np.testing.assert_allclose(
      (got['loss'], got['grad_norm']), want, rtol=limit
    )
  got = exported(trainer, state, state.params, tmp_path / 'updated')
  assert set(got) == set(weights)
  atol = weight_limit(gradient, limit, RATES)
  for name, want in weights.items():
    np.testing.assert_allclose(got[name], want, rtol=0, atol=atol, err_msg=name)


@functools.cache
def alone(case):
  """Sums and the state after the updates on one device, without a mesh."""
  return run(case, None)


def run(case, sizes):
  mesh = None
  if sizes:
    devices = jax.devices()[: int(np.prod(sizes))]
    mesh = sharding.make_mesh(*sizes, devices=devices)
  trainer = trainer_of(random_model(case, mesh))
  state = trainer.state
  batch = micro_batch(tiny_models.CASES[case]['vocab_size'])
  sums = jax.device_get(trainer.gradient(state, batch))
  held = {k: v.sharding for k, v in state.params.items()}
  losses = []
  for rate in RATES:
    state, metrics = trainer.apply(state, trainer.gradient(state, batch), rate)
    losses.append(float(metrics['loss']))
  assert held == {k: v.sharding for k, v in state.params.items()}
  assert int(state.step) == len(RATES)
  return sums, losses, jax.device_get(state.params)


@pytest.mark.parametrize(
  'case,sizes',
  [
    ('qwen2', (8, 1, 1)),
    ('qwen2', (2, 2, 2)),  # 14 query heads, 2 key/value heads
    ('qwen3', (1, 1, 8)),  # 2 key/value heads for 8 devices
    ('qwen3_moe', (2, 2, 2)),
    pytest.param('qwen2', (1, 8, 1), marks=pytest.mark.slow),
    pytest.param('gemma2', (1, 4, 2), marks=pytest.mark.slow),
    pytest.param('gpt2', (2, 1, 4), marks=pytest.mark.slow),
  ],
)
def test_meshes_give_the_update_of_one_device(case, sizes):
  want, want_losses, want_params = alone(case)
  sums, losses, params = run(case, sizes)
  limit = gradient_limit(case)
  np.testing.assert_allclose(sums.loss, want.loss, rtol=loss_limit(case))
  np.testing.assert_allclose(
    sums.weight, want.weight, rtol=tolerances.chain(8 * 20)
  )
  assert_trees_close(sums.gradient, want.gradient, limit)
  np.testing.assert_allclose(losses, want_losses, rtol=limit)
  atol = weight_limit(want.gradient, limit, RATES)
  for name, x in want_params.items():
    np.testing.assert_allclose(params[name], x, rtol=0, atol=atol, err_msg=name)


def test_micro_batches_add_up():
  trainer = trainer_of(random_model())
  batch = micro_batch(211)
  whole = trainer.gradient(trainer.state, batch)
  sums = None
  for at in (0, 2, 4, 6):
    part = {k: v[at : at + 2] for k, v in batch.items()}
    if sums is None:
      sums = trainer.gradient(trainer.state, part)
    else:
      sums = trainer.add_gradient(trainer.state, part, sums)
  limit = gradient_limit('qwen2')
  np.testing.assert_allclose(sums.loss, whole.loss, rtol=loss_limit('qwen2'))
  assert_trees_close(sums.gradient, whole.gradient, limit)
  state, metrics = trainer.apply(trainer.state, sums, 1e-2)
  other = trainer_of(random_model())
  want, want_metrics = other.update(other.state, batch, 1e-2)
  for name in ('loss', 'grad_norm', 'weight'):
    np.testing.assert_allclose(metrics[name], want_metrics[name], rtol=limit)
  atol = weight_limit(whole.gradient, limit, (1e-2,))
  for name, x in want.params.items():
    np.testing.assert_allclose(
      state.params[name], x, rtol=0, atol=atol, err_msg=name
    )


@pytest.mark.parametrize('case', ['llama', 'gpt2'])
def test_packed_equals_unpacked(case):
  """Also the gradient: a document gets none from the other's loss."""
  model = random_model(case)
  rng = np.random.default_rng(0)
  # Documents of different tokens: the embedding tells them apart.
  parts = [rng.integers(0, 100, 9), rng.integers(100, 200, 11)]
  weights = [rng.uniform(0.5, 1.5, len(p)) for p in parts]
  packed = {
    'tokens': np.zeros((1, 24), np.int32),
    'segment_ids': np.zeros((1, 24), np.int32),
    'weights': np.zeros((1, 24), np.float32),
  }
  apart = {k: np.zeros((2, 12), v.dtype) for k, v in packed.items()}
  at = 0
  for i, (ids, weight) in enumerate(zip(parts, weights, strict=True)):
    for batch, row, start in ((packed, 0, at), (apart, i, 0)):
      here = slice(start, start + len(ids))
      batch['tokens'][row, here] = ids
      batch['segment_ids'][row, here] = i + 1 if batch is packed else 1
      batch['weights'][row, here] = weight
    at += len(ids)
  trainer = trainer_of(model)
  got = trainer.gradient(trainer.state, packed)
  want = trainer.gradient(trainer.state, apart)
  # A segment's first token is nobody's target, whatever its weight.
  rtol = tolerances.chain(24)
  np.testing.assert_allclose(
    got.weight, sum(w[1:].sum() for w in weights), rtol=rtol
  )
  np.testing.assert_allclose(got.loss, want.loss, rtol=loss_limit(case, 24))
  np.testing.assert_allclose(got.weight, want.weight, rtol=rtol)
  assert_trees_close(got.gradient, want.gradient, gradient_limit(case, 24))
  if case == 'llama':  # its head is its own
    packed['weights'][packed['segment_ids'] == 1] = 0
    only = trainer.gradient(trainer.state, packed).gradient['embedding']
    assert not np.any(only[:100])  # exactly none
    assert np.all(np.any(only[np.unique(parts[1][:-1])], axis=1))


def test_remat_gives_the_same():
  batch = micro_batch(211)
  plain, remat = (
    trainer_of(random_model('gemma2'), remat=remat) for remat in (False, True)
  )
  want = plain.gradient(plain.state, batch)
  got = remat.gradient(remat.state, batch)
  np.testing.assert_allclose(got.loss, want.loss, rtol=loss_limit('gemma2'))
  assert_trees_close(got.gradient, want.gradient, gradient_limit('gemma2'))


def test_bfloat16_computes_from_float32_masters():
  batch = micro_batch(211)
  exact = trainer_of(random_model())
  want = exact.gradient(exact.state, batch)
  trainer = trainer_of(
    random_model(dtype=jnp.bfloat16),
    optimizer_lib.OptimizerOptions(eps=1e-12, clip=0.0),
  )
  state = trainer.state
  first = jax.device_get(state.params)
  sums = trainer.gradient(state, batch)
  assert {x.dtype for x in jax.tree.leaves(sums)} == {jnp.dtype('float32')}
  np.testing.assert_allclose(sums.loss, want.loss, rtol=5e-3)
  flat = [
    np.concatenate([np.ravel(s.gradient[k]) for k in sorted(s.gradient)])
    for s in (sums, want)
  ]
  assert np.dot(*flat) / np.prod([np.linalg.norm(x) for x in flat]) > 0.999
  rate = 1e-6  # of weights of 0.1: 1 / 400 of what bfloat16 tells apart
  for _ in range(4):
    state, _ = trainer.update(state, batch, rate)
  for name, x in state.params.items():
    assert x.dtype == jnp.float32, name
  moved = np.abs(
    state.params['stacks/0/up_kernel'] - first['stacks/0/up_kernel']
  )
  assert np.median(moved) > 2 * rate
  assert trainer.model(state).dtype == jnp.bfloat16


def test_gradient_of_a_frequent_token_is_summed_in_float32():
  table = jnp.ones((4, 8), jnp.bfloat16)
  ids = jnp.zeros((1, 1000), jnp.int32)

  def total(table):
    rows = embedding.lookup(table, ids, sharding.ShardingRules())
    return rows.astype(jnp.float32).sum()

  assert np.all(jax.grad(total)(table)[0] == 1000)


def test_logits_are_never_whole():
  """Temporary memory of loss and gradient stays far below [B, T, V]."""
  config = read_config(
    tiny_models.hf_config('qwen3') | {'vocab_size': 20000, 'hidden_size': 32}
  )
  rows, length = 8, 256
  trainer = trainer_of(checkpoint.random_init(config, mesh=None), head_rows=64)
  batch = micro_batch(20000, rows, length)
  args = (trainer._program, trainer.state.params, {}, batch)
  for function in (step_lib._gradient, step_lib._evaluate):
    memory = function.lower(*args).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 0.4 * 4 * rows * length * 20000


def test_one_compilation_for_rates_and_equal_trainers():
  batch = micro_batch(257, 2, 10)
  before = step_lib._update._cache_size()
  for rate, schedule in ((1e-3, 'cosine'), (2e-3, 'linear')):
    trainer = trainer_of(
      random_model('gpt2'),
      optimizer_lib.OptimizerOptions(learning_rate=rate, schedule=schedule),
    )
    state = trainer.state
    for number in range(3):
      state, _ = trainer.update(state, batch, rate * number)
  assert step_lib._update._cache_size() == before + 1


def test_evaluate_gives_the_sums_of_the_loss():
  batch = micro_batch(211)
  trainer = trainer_of(random_model('gemma2'), head_rows=16)
  sums = trainer.gradient(trainer.state, batch)
  got = trainer.evaluate(trainer.state, batch)
  rtol = loss_limit('gemma2')
  np.testing.assert_allclose(got['loss_sum'], sums.loss, rtol=rtol)
  np.testing.assert_allclose(
    got['weight_sum'], sums.weight, rtol=tolerances.chain(8 * 20)
  )


def test_model_stays_usable():
  model = random_model()
  trainer = trainer_of(model)
  trainer.update(trainer.state, micro_batch(211, 2, 10), 1e-3)
  assert np.all(np.isfinite(model.embedding[...]))


def test_wrong_micro_batches_are_named():
  batch = micro_batch(211, 3)
  trainer = trainer_of(random_model())
  with pytest.raises(ValueError, match='without segment_ids.*tokens'):
    trainer.gradient(
      trainer.state, {'tokens': batch['tokens'], 'weights': batch['weights']}
    )
  trainer = trainer_of(random_model(mesh=sharding.make_mesh(4, 2, 1)))
  with pytest.raises(ValueError, match='3 rows.*8 devices.*multiple of 8'):
    trainer.gradient(trainer.state, batch)


@pytest.mark.parametrize('name', ['adamw', 'muon'])
def test_optimizers_learn_on_a_mesh(name):
  model = random_model('qwen3', sharding.make_mesh(2, 2, 2))
  trainer = trainer_of(model, optimizer_lib.OptimizerOptions(name=name))
  batch = micro_batch(211)
  state, losses = trainer.state, []
  before = step_lib._update._cache_size()
  for _ in range(12):
    state, metrics = trainer.update(state, batch, 2e-2)
    losses.append(float(metrics['loss']))
  assert losses[-1] < 0.6 * losses[0]
  assert step_lib._update._cache_size() == before + 1


def test_muon_takes_each_expert_for_a_matrix():
  options = optimizer_lib.OptimizerOptions(name='muon', clip=0.0)
  rule = optimizer_lib.make(options)

  def update(name, gradient):
    params = {name: jnp.ones_like(gradient)}
    return rule.update({name: gradient}, rule.init(params), params)[0][name]

  stacked = jax.random.normal(jax.random.key(0), (2, 3, 8, 6))
  alone = update('stacks/0/up_kernel', stacked[1, 2][None])
  together = update('stacks/0/experts_up_kernel', stacked)
  np.testing.assert_allclose(together[1, 2], alone[0], atol=1e-5)


@pytest.mark.parametrize('name', ['cosine', 'linear', 'constant', 'wsd'])
@pytest.mark.parametrize('ratio', [0.0, 0.13])
def test_schedules_equal_transformers(name, ratio):
  """With a warm-up the first rate is 0, as theirs is."""
  torch = pytest.importorskip('torch')
  import transformers

  steps = 37
  warmup = int(np.ceil(ratio * steps))
  decay = int(np.ceil(0.3 * steps))
  options = optimizer_lib.OptimizerOptions(
    learning_rate=3e-4, schedule=name, warmup_ratio=ratio, decay_ratio=0.3
  )
  optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=3e-4)
  if name == 'constant':
    theirs = transformers.get_constant_schedule_with_warmup(optimizer, warmup)
  elif name == 'wsd':
    theirs = transformers.get_wsd_schedule(
      optimizer,
      warmup,
      decay,
      num_training_steps=steps,
      decay_type='linear',
    )
  else:
    make = getattr(transformers, f'get_{name}_schedule_with_warmup')
    theirs = make(optimizer, warmup, steps)
  for step in range(steps):
    np.testing.assert_allclose(
      optimizer_lib.learning_rate(options, step, steps),
      theirs.get_last_lr()[0],
      rtol=1e-6,
      atol=1e-12,
      err_msg=str(step),
    )
    optimizer.step()
    theirs.step()


@pytest.mark.parametrize('name', ['cosine', 'linear', 'wsd'])
def test_final_ratio_is_the_floor(name):
  options = optimizer_lib.OptimizerOptions(
    learning_rate=2.0, schedule=name, warmup_ratio=0.0, final_ratio=0.1
  )
  rates = [optimizer_lib.learning_rate(options, s, 50) for s in range(60)]
  assert rates[0] == 2.0
  assert rates == sorted(rates, reverse=True)
  np.testing.assert_allclose(rates[50:], 0.2)


@pytest.mark.parametrize(
  'field,value', [('name', 'sgd'), ('schedule', 'step'), ('warmup_ratio', 1.5)]
)
def test_wrong_options_are_named(field, value):
  with pytest.raises(ValueError, match=f'optimizer.{field} is .*{value}'):
    optimizer_lib.OptimizerOptions(**{field: value})
