"""The layout of a work directory: where each artifact lies."""

import pathlib

from qaq_jax.workdir import mirror as mirror_lib

# Metadata of the score table: content hash of the samples it was made from.
SAMPLES_KEY = 'qaq.samples'


class WorkDir:
  """Paths of a work directory's artifacts; makes the folder itself.

  Attributes:
    path: the folder.
    mirror: the mirror of the objects that the folder stands for; None is a
      folder alone.
  """

  def __init__(self, path, mirror: mirror_lib.Mirror | None = None):
    self.path, self.mirror = pathlib.Path(path), mirror
    self.path.mkdir(parents=True, exist_ok=True)

  def __str__(self):
    return self.mirror.url if self.mirror else str(self.path)

  @property
  def config(self) -> pathlib.Path:
    """The resolved config of the last command."""
    return self.path / 'config.json'

  @property
  def run_log(self) -> pathlib.Path:
    """One JSON object per line: versions, devices, stages, results."""
    return self.path / 'run.log'

  @property
  def held_out(self) -> pathlib.Path:
    """The demo's clean pairs that are not in its input."""
    return self.path / 'held_out.jsonl'

  @property
  def evaluate(self) -> pathlib.Path:
    """Programs for the benchmarks, verdicts, results."""
    return self.path / 'evaluate'

  @property
  def compare(self) -> pathlib.Path:
    """The comparison of rules: cells, results."""
    return self.path / 'compare'

  @property
  def samples(self) -> pathlib.Path:
    """Prepared samples."""
    return self.path / 'samples'

  @property
  def target_samples(self) -> pathlib.Path:
    """Prepared examples of the target tasks."""
    return self.path / 'targets' / 'samples'

  @property
  def scores(self) -> pathlib.Path:
    """The joined score table."""
    return self.path / 'scores.parquet'

  @property
  def selection(self) -> pathlib.Path:
    """What was chosen and why."""
    return self.path / 'selection.json'

  @property
  def report(self) -> pathlib.Path:
    """The report page."""
    return self.path / 'report' / 'index.html'

  @property
  def plan(self) -> pathlib.Path:
    """What a pod would need."""
    return self.path / 'plan.json'

  def parts(self, model: str, of: str = 'scores') -> pathlib.Path:
    """A model's parts, of the samples ('scores') or of the 'targets'."""
    return self.path / of / model

  def embeddings(self, model: str, of: str = 'scores') -> pathlib.Path:
    """A model's pooled embeddings: .npy, float16 [rows, D]."""
    return self.path / 'embeddings' / f'{model}.{of}.npy'

  @property
  def analyses(self) -> pathlib.Path:
    """Correlations and overlaps."""
    return self.path / 'analyses.json'

  def filled(self, path: str) -> str:
    """A path of the config with '{workdir}' filled in."""
    return path.replace('{workdir}', str(self.path))
