"""The learning curve: means, a progress bar, and trackers if asked for."""

import importlib.util
import os
import pathlib
import secrets
from collections.abc import Iterable

from qaq_jax.runtime import progress
from qaq_jax.workdir import files

TRACKERS = ('tensorboard', 'wandb')


class Window:
  """Sums over the updates since the last line of the curve.

  Kept in checkpoints, so that the line after a resume is the one that would
  have been written anyway.
  """

  def __init__(self, sums: dict | None = None):
    self.sums = dict(
      sums
      or {'updates': 0, 'loss_sum': 0.0, 'weight': 0.0, 'grad_norm_sum': 0.0}
    )

  def add(self, loss: float, weight: float, grad_norm: float) -> None:
    """Counts an update."""
    self.sums['updates'] += 1
    self.sums['loss_sum'] += loss * weight
    self.sums['weight'] += weight
    self.sums['grad_norm_sum'] += grad_norm

  def means(self) -> dict[str, float]:
    """`loss`, mean nats per weighted token, and mean `grad_norm`."""
    sums = self.sums
    return {
      'loss': sums['loss_sum'] / sums['weight'],
      'grad_norm': sums['grad_norm_sum'] / sums['updates'],
    }


class Bar:
  """The progress bar: updates, loss, tokens per second, MFU, time left."""

  def __init__(self, name: str, *, tokens: int, steps: int, show: bool):
    """Starts the bar.

    Args:
      name: the name of the run.
      tokens: the tokens that are left to train on; time left goes by them.
      steps: the number of updates of the whole run.
      show: False prints nothing.
    """
    self._steps = steps
    self._bar = progress.token_bar(f'train {name}'.strip(), tokens, show)

  def add(self, step: int, tokens: int, loss: float, mfu: float | None) -> None:
    """Counts an update."""
    share = '' if mfu is None else f', MFU {mfu:.1%}'
    self._bar.set_postfix_str(
      f'update {step:,}/{self._steps:,}, loss {loss:.3f}{share}',
      refresh=False,
    )
    self._bar.update(tokens)

  def close(self) -> None:
    """Ends the bar."""
    self._bar.close()


def check(names: Iterable[str]) -> None:
  """Refuses trackers that cannot be opened.

  Args:
    names: names of `TRACKERS`.

  Raises:
    ValueError: an unknown name.
    ModuleNotFoundError: its package is not installed; says how to get it.
  """
  for tracker in names:
    if tracker not in TRACKERS:
      raise ValueError(
        f'trackers has {tracker!r}; there are: {", ".join(TRACKERS)}'
      )
    if importlib.util.find_spec(tracker) is None:
      raise ModuleNotFoundError(
        f'trackers has {tracker!r}, and its package is not installed: '
        f"pip install '.[{tracker}]'"
      )


def open_trackers(
  names, workdir: str | os.PathLike, *, name: str, config: dict
) -> list:
  """Opens trackers; each has `log(step, values)` and `close()`.

  Args:
    names: names of `TRACKERS`.
    workdir: they write below it.
    name: the name of the run.
    config: what to show as its settings.

  Raises:
    ValueError: an unknown name.
    ModuleNotFoundError: its package is not installed; says how to get it.
  """
  check(names)
  makers = {'tensorboard': _TensorBoard, 'wandb': _Wandb}
  return [makers[t](pathlib.Path(workdir), name, config) for t in names]


class _TensorBoard:
  """Event files in WORKDIR/tensorboard; a resumed run adds one more."""

  def __init__(self, workdir, name, config):
    from tensorboard import summary

    del name, config
    self._writer = summary.Writer(str(workdir / 'tensorboard'))

  def log(self, step, values):
    for key, value in values.items():
      self._writer.add_scalar(key, value, step)
    self._writer.flush()

  def close(self):
    self._writer.close()


class _Wandb:
  """A W&B run, the same one after a resume; WANDB_* variables rule the rest."""

  def __init__(self, workdir, name, config):
    import wandb

    path = workdir / 'wandb.json'
    known = files.read_json(path) or {'id': secrets.token_hex(4)}
    files.write_json(path, known)
    self._run = wandb.init(
      id=known['id'],
      resume='allow',
      dir=str(workdir),
      name=name or None,
      project=os.environ.get('WANDB_PROJECT', 'qaq_jax'),
      config=config,
    )

  def log(self, step, values):
    self._run.log(values, step=step)

  def close(self):
    self._run.finish()
