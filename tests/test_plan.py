"""`qaq plan`: names, collectives, memory, lengths; compiled for TPUs."""

import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_configs

from qaq_jax import config as config_lib
from qaq_jax.data import samples as samples_lib
from qaq_jax.encoding import examples
from qaq_jax.finetune import lora as lora_lib
from qaq_jax.finetune import optimizer, step
from qaq_jax.models import sharding
from qaq_jax.models.hf import checkpoint
from qaq_jax.models.hf.read_config import read_config
from qaq_jax.models.options import LoraOptions
from qaq_jax.planner import (
  collectives,
  footprint,
  lengths,
  predict,
  score_plan,
  text,
  topology,
)
from qaq_jax.planner.footprint import Mesh
from qaq_jax.scoring import planning
from qaq_jax.scoring import programs as programs_lib
from qaq_jax.stages import artifacts, finetune, plan
from qaq_jax.workdir.layout import WorkDir

FIXTURES = pathlib.Path(__file__).parent / 'fixtures' / 'hf_configs'
ASSUMED = predict.Assumptions()


def hf_config(name):
  text = (FIXTURES / f'{name.replace("/", "--")}.json').read_text()
  return read_config(json.loads(text))


def request(name, **changes):
  return score_plan.Request(
    **(
      {
        'name': name,
        'config': hf_config(name),
        'dtype': 'bfloat16',
        'max_length': 2048,
        'survey': None,
        'options': planning.ScoreOptions(),
      }
      | changes
    )
  )


def tiny():
  """A model of two layers, in Qwen2's shape."""
  values = json.loads((FIXTURES / 'Qwen--Qwen2.5-Coder-0.5B.json').read_text())
  return read_config(
    values
    | {
      'hidden_size': 128,
      'intermediate_size': 256,
      'num_hidden_layers': 3,
      'num_attention_heads': 4,
      'num_key_value_heads': 2,
      'vocab_size': 1000,
    }
  )


# Names.


@pytest.mark.parametrize(
  'name, chip, number, devices',
  [
    ('v5e:2x2', 'v5e', 4, 4),
    ('v6e:2x4', 'v6e', 8, 8),
    ('v5p:2x2x1', 'v5p', 4, 4),
    ('v4:2x2x1', 'v4', 4, 4),
    ('H100:8', 'h100', 8, 0),
  ],
)
def test_a_topology_has_one_device_per_chip(name, chip, number, devices):
  if chip.startswith('v'):
    pytest.importorskip('libtpu')
  found = topology.describe(name)
  assert (found.chip.name, found.number) == (chip, number)
  assert len(found.devices) == devices


@pytest.mark.parametrize(
  'name, words',
  [
    ('v5e', 'a chip, a colon and sizes, as in v4:2x2x4'),
    ('v9:2x2', "chip 'v9' is not known; there are: v6e, v5e"),
    ('v5e:2x2x2', 'v5e has 2 dimensions, as in v5e:4x4'),
    ('v5e:3x3', 'libtpu knows no such slice'),
    ('h100:0', 'sizes are at least 1'),
  ],
)
def test_a_wrong_topology_is_told(name, words):
  pytest.importorskip('libtpu')
  with pytest.raises(ValueError, match=words):
    topology.describe(name)


@pytest.mark.parametrize(
  'name, bigger',
  [('v5e:4x4', 'v5e:4x8'), ('v5p:2x2x4', 'v5p:4x2x4'), ('h100:8', 'h100:16')],
)
def test_larger_topology_doubles_the_chips(name, bigger):
  found = topology.larger(topology.Topology(name, topology.parse(name)[0], 0))
  assert found == bigger


# Collectives.


def test_collectives_of_a_loop_count_as_often_as_it_runs():
  """A psum of 4 KiB in a scan of 5 and an all-gather of 1 KiB after it."""
  mesh = sharding.make_mesh(data=2, tensor=4)

  def island(x):
    def body(x, _):
      return jax.lax.psum(jnp.sin(x), 'tensor') * 0.1, None

    x, _ = jax.lax.scan(body, x, length=5)
    return jax.lax.all_gather(x[:16], 'data', tiled=True)

  mapped = jax.shard_map(
    island,
    mesh=mesh,
    in_specs=jax.P(None),
    out_specs=jax.P(None),
    check_vma=False,
  )
  with jax.set_mesh(mesh):
    program = (
      jax.jit(mapped)
      .lower(jax.ShapeDtypeStruct((1024,), jnp.float32))
      .compile()
    )
  found = {c.kind: c for c in collectives.find(program.as_text(), 8)}
  reduce, gather = found['all-reduce'], found['all-gather']
  assert (reduce.count, reduce.bytes, reduce.group) == (5, 4096, 4)
  assert reduce.wire_bytes == 5 * 4096 * 2 * 3 / 4
  assert (gather.count, gather.bytes, gather.group) == (1, 128, 2)
  assert gather.wire_bytes == 64


@pytest.mark.parametrize(
  'line, size, group',
  [
    (
      '%a = (f32[8]{0}, bf16[4,2]{1,0}) all-reduce(%x, %y), '
      'replica_groups={{0,1},{2,3}}, to_apply=%add',
      48,
      2,
    ),
    (
      '%a = (bf16[4]{0}, bf16[16]{0}) all-gather-start(%x), '
      'replica_groups=[2,4]<=[8], dimensions={0}',
      32,
      4,
    ),
    (
      "%a = s8[100]{0} all-gather(%x), replica_groups=mesh['axis_0'=4,"
      "'axis_1'=1,'axis_2'=2] {'axis_0','axis_2'}, dimensions={0}",
      100,
      8,
    ),
    (
      "%a = s8[100]{0} all-gather(%x), replica_groups=mesh['axis_0'=4,"
      "'axis_1'=2], device_ids=([2,4]T(1,0)) {'axis_0'}, dimensions={0}",
      100,
      4,
    ),
    (  # the text of a kernel may have lines of its own
      '%k = f32[8]{0} custom-call(%p), backend_config={"a": {\n}}, '
      'metadata={}\n  %a = s8[10]{0} all-gather(%k), '
      'replica_groups=[2,4]<=[8], dimensions={0}',
      10,
      4,
    ),
  ],
)
def test_every_way_to_write_a_collective_is_read(line, size, group):
  text = f'ENTRY %main (p: f32[8]) -> f32[8] {{\n  {line}\n}}\n'
  (found,) = collectives.find(text, 8)
  assert (found.bytes, found.group) == (size, group)


def test_a_reduce_scatter_of_a_tpu_is_no_all_reduce():
  text = (
    '%all-reduce-scatter.4 (x: bf16[64]) -> bf16[16] {\n'
    '  %a = bf16[64]{0} all-reduce(%x), replica_groups={{0,1,2,3}}, '
    'to_apply=%add\n'
    '  ROOT %s = bf16[16]{0} dynamic-slice(%a, %i)\n'
    '}\n\n'
    'ENTRY %main (p: bf16[64]) -> bf16[16] {\n'
    '  ROOT %f = bf16[16]{0} fusion(%p), calls=%all-reduce-scatter.4\n'
    '}\n'
  )
  (found,) = collectives.find(text, 4)
  assert (found.kind, found.bytes) == ('reduce-scatter', 32)
  assert found.wire_bytes == 3 * 32


def test_fsdp_on_a_tpu_gathers_every_kernel_once():
  pytest.importorskip('libtpu')
  where = topology.describe('v5e:2x2')
  mesh = sharding.make_mesh(1, 4, 1, devices=where.devices)
  model = checkpoint.abstract(tiny(), mesh=mesh, dtype=jnp.bfloat16)
  program = programs_lib.Programs(model, mesh, memory_limit=1 << 34).program(
    (4, 128)
  )
  gathered = sum(
    c.count * c.bytes
    for c in collectives.find(program.as_text(), 4)
    if c.kind == 'all-gather' and c.bytes > 1000
  )
  # The tied table too: norms and biases, whole everywhere, are 0.3%.
  assert gathered == pytest.approx(
    footprint.param_bytes(tiny(), Mesh(), 2), rel=0.01
  )


# The steps: abstract programs are the real ones.


def test_abstract_scoring_program_needs_what_the_real_one_needs():
  mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
  made = [
    programs_lib.Programs(model, mesh).memory((8, 64))
    for model in (
      checkpoint.abstract(tiny(), mesh=mesh),
      checkpoint.random_init(tiny(), mesh=mesh),
    )
  ]
  assert made[0] == made[1] > 0


def test_abstract_training_step_is_compiled_without_arrays():
  mesh = sharding.make_mesh(data=2, fsdp=4)
  rule = optimizer.make(optimizer.OptimizerOptions())
  sizes = []
  for model in (
    checkpoint.abstract(tiny(), mesh=mesh),
    checkpoint.random_init(tiny(), mesh=mesh),
  ):
    programs = step.Trainer(model, rule).compile(8, 32)
    sizes.append(
      {k: programs_lib.program_bytes(p) for k, p in programs.items()}
    )
  assert sizes[0] == sizes[1]
  assert min(sizes[0].values()) > 0


def test_of_the_experts_a_token_meets_those_chosen():
  def idle(name):
    found = footprint.parameters(hf_config(name))
    return found['parameters'] - found['active_parameters']

  # Layers, experts left out, matrices of each. The cards say 3.3 of 30.5 and
  # 12.9 of 46.7 billion.
  coder = 48 * 120 * 3 * 2048 * 768
  assert idle('Qwen/Qwen3-Coder-30B-A3B-Instruct') == coder
  assert idle('mistralai/Mixtral-8x7B-v0.1') == 32 * 6 * 3 * 4096 * 14336
  assert idle('Qwen/Qwen3-0.6B') == 0
  assert (
    text.describe(
      {
        'model': 'm',
        'family': 'f',
        'dtype': 'd',
        'mesh': {},
        'fits': False,
        'limit_bytes': 1,
        'memory_bytes': 2,
        'param_bytes': 2,
        'try': [],
        **footprint.parameters(hf_config('mistralai/Mixtral-8x7B-v0.1')),
      }
    )[0]
    == 'm: f, 46.70B parameters, 12.88B of them for each token, d, mesh '
  )


def test_bytes_of_parameters_are_those_of_the_arrays():
  for name in (
    'Qwen/Qwen2.5-Coder-0.5B',
    'google/gemma-2-2b',
    'Qwen/Qwen3-Coder-30B-A3B-Instruct',
  ):
    config = hf_config(name)
    mesh = sharding.make_mesh(data=1, fsdp=4, tensor=2)
    model = checkpoint.abstract(config, mesh=mesh, dtype=jnp.bfloat16)
    leaves = jax.tree.leaves(programs_lib.nnx.split(model)[1])
    real = sum(np.prod(x.sharding.shard_shape(x.shape)) * 2 for x in leaves)
    assert footprint.param_bytes(config, Mesh(1, 4, 2), 2) == real


# Lengths.


class _Sequence:
  def __init__(self, length):
    self.ids, self.spans = [0] * length, [('q', 1, 3)]


class _Row:
  status, merged = 'ok', None

  def __init__(self, row):
    self.sequences = [_Sequence(10 + row % 7), _Sequence(20)]


def test_lengths_of_some_rows_stand_for_all():
  def encode(start, stop):
    return [_Row(row) for row in range(start, stop)]

  whole = lengths.sampled(6400, encode, 6400)
  some = lengths.sampled(6400, encode, 640)
  assert (whole['surveyed'], some['surveyed']) == (6400, 640)
  assert some['rows'] == whole['rows'] == 6400
  assert some['tokens'] == pytest.approx(whole['tokens'], rel=0.02)
  assert set(some['lengths']) == set(whole['lengths'])


@pytest.mark.parametrize(
  'budget, samples',
  [
    ({}, 25),
    ({'share': 0.1}, 10),
    ({'rows': 40}, 40),
    ({'rows': 4000}, 100),
    ({'tokens': 10**9}, 100),
    ({'threshold': 0.5}, None),
  ],
)
def test_what_is_trained_on_follows_from_the_budget(
  budget, samples, tmp_path, capsys
):
  """Whatever terms are scored; a hundred of the demo's pairs."""
  config = pairs_to_train_on(tmp_path)
  config.select.budget.update(budget)
  config.score.terms = ('q', 'q_given_a')
  result = plan.run(config, WorkDir(tmp_path / 'work'))['finetune']
  assert result.get('samples') == samples
  if samples is None:
    assert 'no hours: how many rows pass select.budget.threshold' in (
      capsys.readouterr().out
    )
    return
  job_encoder = finetune.make_encoder(
    config, finetune.open_model(config, WorkDir(tmp_path / 'none'))
  )
  store = samples_lib.SampleStore.open(tmp_path / 'all')
  lengths_ = [
    len(e.ids)
    for e in examples.make_examples(
      store.iter_rows(),
      job_encoder,
      finetune.job_options(config).training,
      config.finetune.max_length,
    ).examples
  ]
  assert result['tokens'] == pytest.approx(samples * np.mean(lengths_), abs=1)


def test_training_data_of_its_own_is_what_is_counted(tmp_path):
  """Without the rows that are held out."""
  config = pairs_to_train_on(tmp_path)
  config.finetune.validation_rows = 10
  other = tmp_path / 'other.jsonl'
  lines = (tmp_path / 'pairs.jsonl').read_text().splitlines()
  other.write_text('\n'.join(lines[:30]) + '\n')
  config.finetune.data = str(other)
  result = plan.run(config, WorkDir(tmp_path / 'work'))['finetune']
  assert result['samples'] == 20


def pairs_to_train_on(folder):
  """A config that fine-tunes the demo's model on an estimated GPU."""
  data = folder / 'pairs.jsonl'
  data.write_text(
    ''.join(
      json.dumps({'instruction': f'Add {i}.', 'output': f'x + {i} ' * (i + 1)})
      + '\n'
      for i in range(100)
    )
  )
  config = config_lib.get_default()
  config_lib.use_demo(config, rows=0)
  config.data.path = str(data)
  config.plan.topology = 'h100:1'
  config.stages = ('prepare', 'select', 'finetune')
  samples_lib.prepare(
    artifacts.data_source(config, WorkDir(folder / 'none')), folder / 'all'
  )
  return config


def test_blocks_stay_within_the_data():
  assert lengths.blocks(50, 10) == [(0, 50)]
  assert lengths.blocks(1000, 130) == [(0, 64), (936, 1000)]


# Predictions.


def test_a_prediction_is_the_roofline_of_counted_operations():
  """One chip, so no collectives; operations counted by hand."""
  config, chip = tiny(), topology.parse('v5e:1x1')[0]
  made = predict.scoring_step(
    config, Mesh(), chip, (4, 64), 0.5, ASSUMED, dtype='bfloat16'
  )
  layer = 2 * 128 * 128 + 2 * 128 * 64 + 3 * 128 * 256
  products = 2 * 256 * (3 * layer + 0.5 * 1024 * 128)
  attention = 4 * 128 * 32 * 256 * 3
  assert made.compute == pytest.approx((products + attention) / (197e12 * 0.5))
  assert made.links == 0
  assert made.seconds == max(made.compute, made.memory)


@pytest.mark.parametrize(
  'dtype, quantized, layers, head',
  [
    ('bfloat16', '', 197e12, 197e12),
    ('float32', '', 197e12 / 6, 197e12 / 6),
    ('bfloat16', 'int8', 197e12, 197e12),  # products in bfloat16
    ('bfloat16', 'int8_dynamic', 394e12, 197e12),
  ],
)
def test_products_run_at_the_rate_of_their_dtype(
  dtype, quantized, layers, head
):
  config, chip = tiny(), topology.parse('v5e:1x1')[0]
  made = predict.scoring_step(
    config,
    Mesh(),
    chip,
    (4, 64),
    0.5,
    ASSUMED,
    dtype=dtype,
    quantized=quantized,
  )
  kernels = 3 * (2 * 128 * 128 + 2 * 128 * 64 + 3 * 128 * 256)
  others = 0.5 * 1024 * 128 * 2 * 256 + 4 * 128 * 32 * 256 * 3
  assert made.compute == pytest.approx(
    (2 * 256 * kernels / layers + others / head) / 0.5, rel=2e-3
  )


def test_int8_kernels_are_read_and_gathered_as_such():
  mesh = Mesh(1, 4, 1)
  config = hf_config('Qwen/Qwen2.5-Coder-7B')
  chip = topology.parse('v5e:2x2')[0]
  plain, int8 = (
    predict.scoring_step(
      config,
      mesh,
      chip,
      (4, 64),
      0.5,
      ASSUMED,
      dtype='bfloat16',
      quantized=quantized,
    )
    for quantized in ('', 'int8')
  )
  fewer = footprint.param_bytes(config, Mesh(), 2) - footprint.param_bytes(
    config, Mesh(), 2, kernel_itemsize=1
  )
  assert plain.links - int8.links == pytest.approx(
    fewer * 3 / 4 / (chip.links * 0.8)
  )
  assert plain.memory - int8.memory == pytest.approx(
    fewer / (chip.bandwidth * 0.8)
  )


def test_adapters_alone_have_optimiser_state_by_estimate():
  """As the compiled state of a LoRA run has it, frozen weights in bfloat16."""
  options, mesh = LoraOptions(rank=2), Mesh(1, 2, 2)
  config = tiny()
  device_mesh = sharding.make_mesh(**mesh.shape, devices=jax.devices()[:4])
  model = lora_lib.add(
    checkpoint.abstract(
      config,
      mesh=device_mesh,
      dtype=jnp.bfloat16,
      param_dtype=jnp.bfloat16,
    ),
    options,
  )
  leaves = {
    path: x.get_value()
    for path, x in programs_lib.nnx.to_flat_state(programs_lib.nnx.state(model))
  }
  numbers = {
    path: np.prod(x.sharding.shard_shape(x.shape)) for path, x in leaves.items()
  }
  adapters = sum(n for path, n in numbers.items() if '_lora_' in path[-1])
  frozen = sum(numbers.values()) - adapters
  assert 0 < adapters < frozen / 10
  assert footprint.trained_bytes(config, mesh, options) == 4 * adapters
  whole = sum(
    np.prod(x.shape) for path, x in leaves.items() if '_lora_' in path[-1]
  )
  assert footprint.adapters(config, options) == whole
  full, lora = (
    footprint.training_bytes(config, mesh, 0, lora=given)
    for given in (None, options)
  )
  assert full - lora == pytest.approx(
    5 * 4 * frozen - (2 * frozen + 5 * 4 * adapters)
  )
  steps = [
    predict.training_step(
      config,
      mesh,
      topology.parse('v5e:2x2')[0],
      (4, 64),
      ASSUMED,
      False,
      0.0,
      'bfloat16',
      lora=given,
    )
    for given in (None, options)
  ]
  assert 2 / 3 < steps[1].compute / steps[0].compute < 0.8


def test_collectives_by_estimate_are_those_of_the_compiled_step():
  """Two sums of the stream per layer over `tensor`, one for the embedding."""
  mesh = Mesh(2, 1, 4)
  device_mesh = sharding.make_mesh(**mesh.shape)
  programs = programs_lib.Programs(
    checkpoint.abstract(tiny(), mesh=device_mesh),
    device_mesh,
  )
  found = collectives.find(programs.program((4, 256)).as_text(), 8)
  wire = sum(c.wire_bytes for c in found)
  estimate = predict.scoring_wire_bytes(tiny(), mesh, 1024, itemsize=4)
  assert wire == pytest.approx(estimate, rel=0.1)


@pytest.mark.parametrize('field', ['utilisation', 'bandwidth', 'links'])
def test_shares_are_checked(field):
  with pytest.raises(ValueError, match=f'config.plan.{field} is 1.5'):
    predict.Assumptions(**{field: 1.5})


def test_what_does_not_fit_says_what_would():
  wanted = request('Qwen/Qwen2.5-Coder-32B', dtype='float32')  # 131 GB
  found = score_plan.plan(wanted, topology.describe('h100:1'), Mesh(), ASSUMED)
  assert not found['fits'] and 'GiB' in found['why']
  (other,) = found['try']
  there = topology.describe(other['topology'])
  mesh = Mesh(**other['mesh'])
  assert mesh.number == there.number > 1
  assert score_plan.plan(wanted, there, mesh, ASSUMED)['fits']


def test_a_gpu_plan_is_marked_as_an_estimate(tmp_path, capsys):
  config = config_lib.get_default()
  config_lib.use_demo(config, rows=100)
  config.data.path = ''
  config.plan.topology = 'h200:4'
  result = plan.run(config, WorkDir(tmp_path))
  text = capsys.readouterr().out
  assert 'ESTIMATED' in text and 'config.data.path is empty' in text
  assert not result['score']['strong']['compiled']
  assert 'hours' not in result['score']['strong']


def test_an_empty_topology_is_told(tmp_path):
  with pytest.raises(ValueError, match='say --topology=NAME, as in v4:2x2x4'):
    plan.run(config_lib.get_default(), WorkDir(tmp_path))


def test_plan_for_a_tpu_reads_the_users_data(tmp_path, capsys):
  """An embedded model on four v5e chips, compiled here."""
  pytest.importorskip('libtpu')
  rows = [
    {
      'instruction': f'Write function number {i} ' * (1 + i % 5),
      'output': f'def f{i}(x):\n  return x + {i}\n' * (1 + i % 3),
    }
    for i in range(200)
  ]
  data = tmp_path / 'pairs.jsonl'
  data.write_text(''.join(json.dumps(r) + '\n' for r in rows))
  config = config_lib.get_default()
  config_lib.use_demo(config, rows=0)
  config.data.path = str(data)
  config.plan.topology = 'v5e:2x2'
  del config.models['weak']
  config.models.strong.dtype = 'bfloat16'
  config.score.max_shapes = 1
  config.score.tokens_per_batch = 1024
  config.score.mesh.fsdp = 2
  result = plan.run(config, WorkDir(tmp_path / 'work'))
  text = capsys.readouterr().out
  assert 'compiled for it' in text and 'all-gather' in text
  for found in result['score'].values():
    assert found['fits'] and found['compiled'] and found['rows'] == 200
    assert found['mesh'] == {'data': 2, 'fsdp': 2, 'tensor': 1}
    assert 0 < found['memory_bytes'] < found['limit_bytes']
    assert found['chip_hours'] == pytest.approx(4 * found['hours'])
    assert found['tokens'] / found['tokens_per_second'] == pytest.approx(
      found['hours'] * 3600
    )
  assert not (tmp_path / 'work' / 'samples').exists()
  assert json.loads((tmp_path / 'work' / 'plan.json').read_text())


# Every pod recipe fits the topology that it names.

# The demo's, and those whose models the user names.
ANYWHERE = {'demo.py', 'pairs.py', 'compare.py'}
PODS = [r for r in test_configs.RECIPES if r not in ANYWHERE]


def test_every_pod_recipe_names_its_topology():
  assert len(PODS) >= 7
  for recipe in test_configs.RECIPES:
    named = test_configs.resolve(recipe).plan.topology
    assert bool(named) == (recipe in PODS), recipe


@pytest.mark.slow
@pytest.mark.parametrize(
  'recipe, where',
  [
    *[(recipe, '') for recipe in PODS],
    ('warriorcoder.py', 'v6e:2x4'),
  ],
)
def test_recipe_fits_its_topology(recipe, where, tmp_path):
  """The real steps at full length, with sizes from config.json alone."""
  pytest.importorskip('libtpu')
  config = test_configs.resolve(recipe)
  with config.unlocked():
    config.plan.topology = where or config.plan.topology
    config.data.path = ''
    for name, model in config.models.items():
      folder = tmp_path / name
      folder.mkdir()
      fixture = FIXTURES / f'{model.path.replace("/", "--")}.json'
      shutil.copy(fixture, folder / 'config.json')
      model.path = str(folder)
  result = plan.run(config, WorkDir(tmp_path / 'work'))
  plans = dict(result['score'])
  if 'finetune' in config.stages:
    plans['finetune'] = result['finetune']
  assert plans
  for name, found in plans.items():
    assert found['fits'], (name, found)
    assert found['memory_bytes'] <= found['limit_bytes']
    assert found['compiled']


@pytest.mark.slow
@pytest.mark.parametrize(
  'name, where, mesh',
  [
    ('deepseek-ai/deepseek-coder-6.7b-base', 'v5e:4x4', Mesh(4, 1, 4)),
    ('deepseek-ai/deepseek-coder-6.7b-base', 'v5e:4x4', Mesh(2, 8, 1)),
    ('Qwen/Qwen3-0.6B', 'v6e:2x4', Mesh(8, 1, 1)),
    ('Qwen/Qwen2.5-Coder-32B', 'v5p:2x2x2', Mesh(1, 2, 4)),
    ('Qwen/Qwen3-Coder-30B-A3B-Instruct', 'v6e:2x4', Mesh(1, 8, 1)),
    ('Qwen/Qwen3-Coder-30B-A3B-Instruct', 'v6e:2x4', Mesh(1, 2, 4)),
  ],
)
def test_estimated_memory_is_within_a_third_of_the_compiled(name, where, mesh):
  pytest.importorskip('libtpu')
  options = planning.ScoreOptions(tokens_per_batch=8192)
  made = request(name, options=options)
  found = score_plan.plan(made, topology.describe(where), mesh, ASSUMED)
  estimate = footprint.scoring_bytes(made.config, mesh, 8192)
  assert found['fits']
  assert 0.67 < estimate / found['memory_bytes'] < 1.33
