"""The training loop: it learns, stops on bad numbers, refuses bad folders."""

import dataclasses
import importlib.util
import io
import json
import math

import finetune_rig as rig
import jax
import numpy as np
import pytest

from qaq_jax.finetune import (
  checkpoints,
  curve,
  loop,
  mfu,
  optimizer,
  step,
  trackers,
)
from qaq_jax.models import flops
from qaq_jax.workdir import files
from qaq_jax.workdir import journal as journal_lib


def _lines(folder, name='metrics.jsonl'):
  return [json.loads(x) for x in (folder / name).read_text().splitlines()]


def _options(**changes):
  return dataclasses.replace(rig.OPTIONS, **changes)


def test_padded_and_packed_learn_the_same(tmp_path):
  """Two layouts of the same batches: one curve, to float32 rounding."""
  rel = rig.curve_limit()
  found = {}
  for packing in ('packed', 'padded'):
    options = _options(packing=packing, max_length=16, tokens_per_device=32)
    rig.fit(tmp_path / packing, options=options)
    found[packing] = _lines(tmp_path / packing)
  for a, b in zip(*found.values(), strict=True):
    for key in ('step', 'loss', 'validation_loss', 'grad_norm', 'tokens'):
      assert (key in a) == (key in b)
      if key in a:
        assert a[key] == pytest.approx(b[key], rel=rel)


@pytest.mark.parametrize('name', ['adamw', 'muon'])
def test_training_learns(tmp_path, name):
  rig.fit(
    tmp_path,
    options=_options(epochs=6, eval_every=48, save_every=0),
    optimizer_options=optimizer.OptimizerOptions(
      name=name, learning_rate=0.02, schedule='wsd', warmup_ratio=0.1
    ),
  )
  losses = [x['loss'] for x in _lines(tmp_path) if 'loss' in x]
  assert losses[0] > 2.5
  assert losses[-1] < 0.5 * losses[0]


def test_lines_have_rates_and_the_schedule(tmp_path):
  rig.fit(tmp_path)
  lines = [x for x in _lines(tmp_path) if 'loss' in x]
  for line in lines:
    assert line['learning_rate'] == optimizer.learning_rate(
      rig.OPTIMIZER, line['step'] - 1, 24
    )
    assert line['tokens_per_second'] > 0 and 0 < line['mfu'] < 1
  assert [x['seconds'] for x in lines] == sorted(x['seconds'] for x in lines)


def test_loss_of_a_line_is_the_mean_of_its_updates(tmp_path):
  rig.fit(tmp_path / 'each', options=_options(log_every=1, max_steps=6))
  rig.fit(tmp_path / 'six', options=_options(log_every=6, max_steps=6))
  each = [x for x in _lines(tmp_path / 'each') if 'loss' in x]
  (six,) = [x for x in _lines(tmp_path / 'six') if 'loss' in x]
  low, high = min(x['loss'] for x in each), max(x['loss'] for x in each)
  assert len(each) == 6 and low < six['loss'] < high
  assert six['grad_norm'] == pytest.approx(
    np.mean([x['grad_norm'] for x in each])
  )


def test_samples_and_measures_are_written_at_evaluations(tmp_path):
  rig.fit(
    tmp_path,
    options=_options(max_steps=8),
    sample_fn=lambda state: [{'query': 'q', 'step': int(state.step)}],
    measure_fn=lambda state: {'auroc': 0.5},
  )
  assert _lines(tmp_path, 'samples.jsonl') == [
    {'step': n, 'samples': [{'query': 'q', 'step': n}]} for n in (6, 8)
  ]
  found = [x for x in _lines(tmp_path) if 'validation_loss' in x]
  assert [x['auroc'] for x in found] == [0.5, 0.5]


def test_without_validation_the_last_is_the_best(tmp_path):
  result = rig.fit(tmp_path, options=_options(max_steps=8), validation=())
  assert (result.best_step, result.best_loss) == (8, None)
  jax.tree.map(np.testing.assert_array_equal, result.load_best(), result.state)


def test_non_finite_loss_names_update_and_rows(tmp_path):
  data = rig.examples()
  data[17].weights[:] = np.inf
  options = _options(save_every=1)
  with pytest.raises(loop.NonFiniteError) as caught:
    rig.fit(tmp_path, data=data, options=options)
  from qaq_jax.finetune import batches

  number = next(
    n for n in range(8) if 17 in batches.indices(60, 8, seed=0, step=n)
  )
  assert number > 1  # or there would be no checkpoint to look for
  message = str(caught.value)
  assert f'at update {number + 1},' in message
  rows = message.split('rows ')[1].split('. ')[0].split(', ')
  assert sorted(map(int, rows)) == sorted(
    batches.indices(60, 8, seed=0, step=number).tolist()
  )
  saved = sorted(int(p.name) for p in (tmp_path / 'checkpoints').iterdir())
  assert saved == [number - 1, number]  # the last two good ones
  assert all(math.isfinite(x['loss']) for x in _lines(tmp_path) if 'loss' in x)


def test_unwritable_folder_is_refused_before_the_first_update(tmp_path):
  (tmp_path / 'file').write_text('not a folder')
  with pytest.raises(files.StoreError, match='cannot be written to .*file'):
    rig.fit(tmp_path / 'file' / 'run')


def test_full_disk_is_refused_before_the_first_update(tmp_path, monkeypatch):
  state = rig.trainer().state
  size = checkpoints.size_of(state)
  text = checkpoints.check_folder(tmp_path, state, keep=2, free=10**9)
  assert f'4 checkpoints of {size / 2**20:,.1f} MiB' in text
  with pytest.raises(files.StoreError, match='too full .*MiB more, 0 MiB free'):
    checkpoints.check_folder(tmp_path, state, keep=2, free=1000)
  # Two that stay, the best, and the one being written.
  needed = 4 * size + checkpoints._SLACK
  checkpoints.check_folder(tmp_path, state, keep=2, free=needed)
  with pytest.raises(files.StoreError, match='too full'):
    checkpoints.check_folder(tmp_path, state, keep=2, free=needed - 1)
  # What lies there already needs no more room.
  (tmp_path / 'old').write_bytes(bytes(4 * size))
  limit = (64 << 20) + 1000
  checkpoints.check_folder(tmp_path, state, keep=2, free=limit)
  (tmp_path / 'old').unlink()
  with pytest.raises(files.StoreError, match='too full'):
    checkpoints.check_folder(tmp_path, state, keep=2, free=limit)
  full = type(checkpoints.shutil.disk_usage(tmp_path))(10**9, 10**9, 0)
  monkeypatch.setattr(checkpoints.shutil, 'disk_usage', lambda path: full)
  with pytest.raises(files.StoreError, match='too full'):
    rig.fit(tmp_path / 'run')
  assert not (tmp_path / 'run' / 'metrics.jsonl').exists()


@pytest.mark.parametrize(
  'change, message',
  [
    ({'data': []}, 'no examples'),
    ({'options': _options(max_length=8)}, 'row .* has .* tokens.*max_length=8'),
  ],
)
def test_impossible_data_is_refused(tmp_path, change, message):
  with pytest.raises(ValueError, match=message):
    rig.fit(tmp_path, **change)


def test_example_without_a_target_is_refused(tmp_path):
  data = rig.examples()
  data[5].weights[1:] = 0
  with pytest.raises(ValueError, match='row 5 has no token of weight'):
    rig.fit(tmp_path, data=data)


def test_a_second_run_compiles_nothing(tmp_path):
  """Other data, other length, other rate: the same programs."""
  rig.fit(tmp_path / 'one')
  sizes = [
    getattr(step, name)._cache_size()
    for name in ('_update', '_gradient', '_add_gradient', '_apply', '_evaluate')
  ]
  assert sum(sizes) <= 5 * 4  # four kinds of runs in this file
  rig.fit(
    tmp_path / 'two',
    data=rig.examples(33, seed=5),
    options=_options(epochs=2, seed=3),
    optimizer_options=dataclasses.replace(
      rig.OPTIMIZER, learning_rate=0.01, schedule='linear'
    ),
  )
  assert sizes == [
    getattr(step, name)._cache_size()
    for name in ('_update', '_gradient', '_add_gradient', '_apply', '_evaluate')
  ]


def test_the_plan_is_told(tmp_path, capsys):
  options = _options(max_steps=6, progress=True)
  rig.fit(tmp_path, options=options, name='x')
  text = capsys.readouterr().out
  for part in (
    'x: 60 examples',
    '6 updates of 8 examples, 8 per epoch',
    'packed micro-batches (rows x tokens): 2 x 32',
    '% full',
    'MiB free',
    'TFLOP/s (float32 product of matrices measured on cpu)',
  ):
    assert part in text
  rig.fit(tmp_path, options=options)
  assert 'continuing after update 6 of 6' in capsys.readouterr().out


def test_operations_are_those_of_a_hand_count():
  """2 layers, width 32, 2 heads of 16, MLP 48, vocabulary 40 (128 padded)."""
  config = rig.model().config
  layer = 4 * 32 * 32 + 3 * 32 * 48  # q, k, v, o; gate, up, down
  weights = 2 * layer + 128 * 32
  # One sequence of 10 tokens: scores and values of 5 keys on average.
  attention = 2 * 2 * 32 * 5 * 10 * 2
  assert flops.training_flops(config, 10, 100) == (
    6 * weights * 10 + 3 * attention
  )
  assert flops.training_flops(config, 10, 100, lora_params=1000) == (
    4 * weights * 10 + 6 * 1000 * 10 + 3 * attention
  )
  # Two sequences of 5 attend over half as much.
  assert flops.training_flops(config, 10, 50) == (
    6 * weights * 10 + 3 * attention / 2
  )


def test_window_limits_the_counted_keys():
  config = rig.model().config
  short = dataclasses.replace(
    config,
    layers=tuple(dataclasses.replace(kind, window=4) for kind in config.layers),
  )
  full = flops.forward_flops(config, 10, 100)[1]
  assert flops.forward_flops(short, 10, 100)[1] == pytest.approx(
    full * (4 - 16 / 20) / 5
  )


@dataclasses.dataclass(frozen=True)
class _Device:
  device_kind: str
  platform: str = 'tpu'


@pytest.mark.parametrize(
  'kind, tflops',
  [
    ('TPU v4', 275),
    ('TPU v5 lite', 197),
    ('TPU v5p', 459),
    ('TPU v5', 459),
    ('TPU v6 lite', 918),
    ('NVIDIA A100-SXM4-80GB', 312),
    ('NVIDIA H100 80GB HBM3', 989),
    ('NVIDIA H200', 989),
  ],
)
def test_peaks_of_known_devices(kind, tflops):
  peak, origin = mfu.peak_flops('bfloat16', [_Device(kind)] * 4)
  assert peak == 4 * tflops * 1e12
  assert 'data sheet' in origin


def test_peak_of_a_cpu_is_measured_once_for_all_its_fake_devices():
  peak, origin = mfu.peak_flops('float32', jax.devices())
  assert 'measured' in origin
  assert (peak, origin) == mfu.peak_flops('float32', jax.devices()[:1])
  assert 1e8 < peak < 1e15


def test_journal_drops_lines_behind_the_checkpoint_and_half_lines(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  fields = {'step': int}
  journal = journal_lib.Journal(path, fields=fields)
  for number in (1, 2, 2, 3):
    journal.add({'step': number, 'text': 'é'})
  journal.close()
  with path.open('ab') as file:
    file.write(b'{"step": 4, "lo')
  journal = journal_lib.Journal(
    path, fields=fields, keep=lambda record: record['step'] <= 2
  )
  journal.add({'step': 3, 'text': 'again'})
  journal.close()
  assert [(x['step'], x['text']) for x in _lines(tmp_path)] == [
    (1, 'é'),
    (2, 'é'),
    (2, 'é'),
    (3, 'again'),
  ]


def test_bar_shows_updates_loss_and_utilisation(monkeypatch):
  err = io.StringIO()
  monkeypatch.setattr('sys.stderr', err)
  bar = trackers.Bar('m', tokens=100, steps=7, show=True)
  bar.add(3, 100, 1.25, 0.5)
  bar.close()
  text = err.getvalue()
  for part in ('train m', 'update 3/7', 'loss 1.250', 'MFU 50.0%', 'tok/s'):
    assert part in text


def test_unknown_tracker_is_refused(tmp_path):
  with pytest.raises(ValueError, match="'board'.*tensorboard, wandb"):
    rig.fit(tmp_path, options=_options(trackers=('board',)))


@pytest.mark.parametrize('name', trackers.TRACKERS)
def test_tracker_that_is_not_installed_is_named(tmp_path, name):
  if importlib.util.find_spec(name):
    pytest.skip(f'{name} is installed')
  with pytest.raises(ModuleNotFoundError, match=rf"'\.\[{name}\]'"):
    rig.fit(tmp_path, options=_options(trackers=(name,)))


def test_tensorboard_has_the_curve(tmp_path):
  pytest.importorskip('tensorboard')
  from tensorboard.backend.event_processing import event_accumulator
  from tensorboard.util import tensor_util

  rig.fit(tmp_path, options=_options(trackers=('tensorboard',)))
  events = event_accumulator.EventAccumulator(str(tmp_path / 'tensorboard'))
  events.Reload()
  for key in ('loss', 'validation_loss', 'learning_rate'):
    found = [
      (e.step, tensor_util.make_ndarray(e.tensor_proto).item())
      for e in events.Tensors(key)
    ]
    assert found == [
      (x['step'], pytest.approx(x[key])) for x in _lines(tmp_path) if key in x
    ]


def test_wandb_has_the_curve(tmp_path, monkeypatch):
  pytest.importorskip('wandb')
  monkeypatch.setenv('WANDB_MODE', 'offline')
  rig.fit(tmp_path, options=_options(trackers=('wandb',)))
  first = files.read_json(tmp_path / 'wandb.json')['id']
  (run,) = (tmp_path / 'wandb').glob(f'offline-run-*-{first}')
  assert list(run.glob('*.wandb'))


QUIET = curve.Run(
  name='',
  steps=2,
  per_epoch=2,
  tokens_left=10,
  log_every=1,
  flops=lambda batch: 1.0,
  peak=1.0,
  settings={},
  show=False,
)


def test_a_curve_goes_on_behind_the_checkpoint(tmp_path):
  """Without the lines that a killed run has left behind it."""
  made = curve.Curve(tmp_path, QUIET, step=0, progress=None)
  for update in (1, 2, 3):
    made.evaluated(update, {'validation_loss': 1.0 * update})
    made.looked(update, [update])
  made.close()
  made = curve.Curve(tmp_path, QUIET, step=2, progress=None)
  made.evaluated(3, {'validation_loss': 9.0})
  made.close()
  metrics, samples = (
    [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]
    for name in ('metrics.jsonl', 'samples.jsonl')
  )
  assert [(m['step'], m['validation_loss']) for m in metrics] == [
    (1, 1.0),
    (2, 2.0),
    (3, 9.0),
  ]
  assert [s['step'] for s in samples] == [1, 2]


def test_curve_counts_alike_without_writing(tmp_path):
  """What processes other than the first do."""
  made = curve.Curve(tmp_path, QUIET, step=0, progress=None, write=False)
  made.evaluated(1, {'validation_loss': 1.0})
  made.looked(1, ['x'])
  assert made.progress()['tokens'] == 0
  made.close()
  assert not list(tmp_path.iterdir())
