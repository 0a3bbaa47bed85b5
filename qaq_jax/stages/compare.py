"""The compare stage: fine-tune on the choice of every rule, judge, tabulate.

A cell (rule, budget, seed) is trained in a folder named by the fingerprint of
all that its result depends on, so nothing is computed twice: two rules that
choose the same rows share a cell, and a killed comparison goes on where it was.
"""

import hashlib
import pathlib
import shutil

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from qaq_jax.evaluation import comparison
from qaq_jax.finetune import identity
from qaq_jax.runtime import console
from qaq_jax.scoring import parts, scorer
from qaq_jax.scoring.options import ScoreOptions
from qaq_jax.selection import budget as budget_lib
from qaq_jax.selection import select as select_lib
from qaq_jax.selection.rules import rule
from qaq_jax.stages import artifacts, evaluate, finetune, training_data
from qaq_jax.workdir import files
from qaq_jax.workdir import fingerprint as fingerprint_lib
from qaq_jax.workdir.layout import WorkDir

# Part of every cell's fingerprint: raise it when a change here moves a result.
VERSION = 1
_TERM = 'a_given_q'
# Fields of config.finetune that change no cell's result, or stand elsewhere in
# its fingerprint.
_FREE = (
  'folder',
  'data',
  'model',
  'path',
  'revision',
  'validation',
  'validation_rows',
  'eval_every',
  'save_every',
  'keep',
  'log_every',
  'trackers',
  'looks',
  'export_dtype',
)


def check(config: ml_collections.ConfigDict) -> None:
  """Refuses a table, rules, training or judging that cannot be."""
  lines = comparison.parse_table(config.compare.table)
  if not lines:
    raise ValueError(
      'config.compare.table is empty: list what to compare, as '
      'configs/compare.py does'
    )
  for line in lines:
    rule.get_rule(line.rule, 'config.compare.table')
  if not config.compare.held_out:
    raise ValueError(
      'config.compare.held_out is empty: name a file of samples to judge '
      'by, none of which is in the training data'
    )
  finetune.check(config)
  if not config.compare.evaluate:
    return
  if not config.evaluate.allow_code_execution:
    raise ValueError(
      'config.compare.evaluate runs programs that the models wrote: read '
      'docs/evaluation.md and add --allow-code-execution, or set it to False'
    )
  evaluate.check(config)


def run(config: ml_collections.ConfigDict, workdir: WorkDir) -> dict:
  """Makes every cell of `config.compare.table` and the table of results.

  Args:
    config: the resolved config; `compare` says what, `finetune` how.
    workdir: the work directory with a score table.

  Returns:
    The records of the table, for the run log.

  Raises:
    ValueError: the table, a rule or the held-out samples cannot be used.
  """
  if jax.process_count() > 1:
    raise ValueError(
      'a comparison runs in one process, on all of its devices: start it on '
      'one host'
    )
  lines = comparison.parse_table(config.compare.table)
  cells = _Cells(config, workdir)
  total = sum(line.seeds for line in lines)
  console.say(
    f'{total} cells of {len(lines)} lines; '
    f'start {cells.job.model.source.path}; '
    f'judged by {len(cells.tokens):,} held-out answers, '
    f'{int(cells.tokens.sum()):,} tokens'
  )
  start = comparison.Loss(cells.loss_of_start()[None], cells.tokens)
  losses, facts, number = {}, {}, 0
  for line in lines:
    made = []
    for seed in range(line.seeds):
      number += 1
      made.append(cells.make(line, seed, f'{number}/{total}'))
    losses[line] = comparison.Loss(
      np.array([cell['nll'] for cell in made]), cells.tokens
    )
    facts[line] = {
      key: float(np.mean([cell[key] for cell in made]))
      for key in ('rows', 'tokens', 'steps', 'seconds')
    }
    facts[line]['scores'] = _mean_scores([cell['scores'] for cell in made])
  records = comparison.summarise(losses, facts, config.compare.baseline)
  table = comparison.format_table(records, config.compare.baseline, start)
  path = workdir.compare / 'results.json'
  files.write_json(
    path,
    {
      'start': float(start.by_seed.mean()),
      'held_out': {
        'rows': len(cells.tokens),
        'tokens': int(cells.tokens.sum()),
      },
      'lines': records,
    },
  )
  files.write_atomic(workdir.compare / 'results.md', f'{table}\n'.encode())
  console.say(table)
  console.say(f'wrote {path} and {path.with_suffix(".md")}')
  return {'start': float(start.by_seed.mean()), 'lines': records}


class _Cells:
  """Makes cells, or finds them made."""

  def __init__(self, config, workdir):
    self._config, self._folder = config, workdir.compare
    self._workdir = workdir
    self._store = artifacts.open_samples(config, workdir)
    self._table = artifacts.score_columns(config, workdir)
    self.job = finetune.make_job(config, workdir)
    self._held_out = training_data.prepared(
      config, workdir, config.compare.held_out, self._folder / 'held_out'
    )
    for _ in training_data.apart(
      self._store.iter_rows(),
      self._held_out.iter_rows(),
      config.compare.held_out,
    ):
      pass  # before the first cell, not at the one that has chosen the row
    self._rows, self.tokens = self._usable()
    self._benchmarks = (
      evaluate.read_benchmarks(config, workdir)
      if config.compare.evaluate
      else []
    )

  def _usable(self):
    """Rows of the held-out samples that can be judged, and their tokens."""
    encoded = self.job.encoder.encode(list(self._held_out.iter_rows()))
    found = {}
    for one in encoded:
      for sequence in one.sequences:
        for term, begin, end in sequence.spans:
          if term == _TERM:
            found[one.row] = end - begin
    if not found:
      raise ValueError(
        f'{self._config.compare.held_out}: none of the '
        f'{self._held_out.num_rows} samples can be judged; the first is '
        f'{encoded[0].status} ({encoded[0].reason})'
      )
    rows = np.array(sorted(found))
    return rows, np.array([found[row] for row in rows.tolist()])

  def loss_of_start(self) -> np.ndarray:
    """Held-out losses before any training, nats [R]."""
    fingerprint = self._judged(self.job.fingerprint['model'])
    folder = self._folder / 'start' / _name(fingerprint)

    def model():
      return self.job.model.load(mesh=self.job.mesh, dtype=jnp.float32)

    return self._judge(model, folder, fingerprint)

  def _judged(self, model) -> dict:
    """What a held-out loss of a model depends on."""
    return {
      'model': model,
      'held_out': self._held_out.content_hash,
      'encoder': self.job.encoder.fingerprint(),
      'scoring': scorer.VERSION,
    }

  def make(self, line: comparison.Line, seed: int, number: str) -> dict:
    """One cell's result, computed if it is not there."""
    rows = self._select(line, seed)
    chosen = list(training_data.chosen(self._store, rows))
    fingerprint = self._fingerprint(rows, seed)
    name = _name(fingerprint)
    folder = self._folder / 'cells' / name
    result = files.read_json(
      folder / 'result.json', 'delete it, and its cell is made again'
    )
    label = f'[{number}] {line.rule}, {line.budget}, seed {seed}'
    if result is None:
      result = self._train(chosen, seed, folder, label, fingerprint)
      files.write_json(folder / 'result.json', files.seal(result))
      files.write_json(folder / 'fingerprint.json', fingerprint)
      shutil.rmtree(folder / 'checkpoints', ignore_errors=True)
    loss = sum(result['nll']) / self.tokens.sum()
    console.say(
      f'{label}: {result["rows"]:,} rows, {result["steps"]:,} updates, '
      f'{result["seconds"]:.0f} s, held-out loss {loss:.4f}  ({name})',
    )
    return result | {'scores': self._evaluate(folder)}

  def _evaluate(self, folder) -> dict:
    """Benchmark -> its pass@1 record, of the cell's model."""
    if not self._config.compare.evaluate:
      return {}
    scores = evaluate.of_model(
      self._config,
      str(folder / 'model'),
      '',
      self._benchmarks,
      folder / 'evaluate',
    )['scores']
    return {name: found['pass@1'] for name, found in scores.items()}

  def _select(self, line, seed) -> np.ndarray:
    tokens = self._eligible_tokens() if line.kind == 'token_share' else 0
    return select_lib.select(
      self._table,
      rule=line.rule,
      budget=budget_lib.Budget.of(line.selection_budget(tokens)),
      seed=self._config.seed + seed,
      **artifacts.rule_options(self._config, self._workdir, line.rule),
    ).rows

  def _eligible_tokens(self) -> int:
    """Query and answer tokens of the rows usable under every role's model."""
    table = self._table
    usable = table.usable_under(list(table.roles.values()))
    return int(table.tokens(table.token_model())[usable].sum())

  def _fingerprint(self, rows, seed) -> dict:
    c = self._config
    options = c.finetune.to_dict()
    for free in _FREE:
      options.pop(free)
    exported = c.compare.keep_models or c.compare.evaluate
    return {
      **self._judged(self.job.fingerprint),
      'version': VERSION,
      'training': identity.VERSION,
      'samples': self._store.content_hash,
      'rows': hashlib.sha256(rows.astype('<i8').tobytes()).hexdigest(),
      'finetune': options,
      'exported': c.finetune.export_dtype if exported else '',
      'seed': seed,
      'base_seed': self._config.seed,
    }

  def _train(self, chosen, seed, folder, label, fingerprint) -> dict:
    console.say(f'{label}: training')
    examples = self.job.examples(chosen, 'training')
    seed += self._config.seed
    trainer, state = self.job.start(seed)
    result = self.job.fit(
      trainer, state, examples, folder, seed=seed, quiet=True
    )
    if fingerprint['exported']:
      self.job.export(trainer, result.state, folder)
    nll = self._judge(
      lambda: _exact(trainer.model(result.state)), folder, fingerprint
    )
    return {
      'rows': len(examples),
      'tokens': sum(len(e.ids) for e in examples),
      'steps': result.steps,
      'trained_tokens': result.tokens,
      'seconds': round(result.seconds, 2),
      'nll': nll.tolist(),
    }

  def _judge(
    self, model, folder: pathlib.Path, fingerprint: dict
  ) -> np.ndarray:
    """Sum of -log p of each held-out answer given its query, nats [R]."""
    scorer.score(
      self._held_out,
      self.job.encoder,
      model,
      name='cell',
      out_dir=folder / 'held_out',
      fingerprint=fingerprint,
      options=ScoreOptions(terms=(_TERM,), max_shapes=6, progress=False),
      mesh=self.job.mesh,
    )
    found: dict[int, float] = {}
    for part in parts.read_parts(folder / 'held_out'):
      rows = part.column('row').to_pylist()
      values = part.column(f'nll_{_TERM}_cell').to_pylist()
      found.update(zip(rows, values, strict=True))
    return np.array([found[row] for row in self._rows.tolist()], np.float64)


def _name(fingerprint) -> str:
  kept = fingerprint_lib.written(fingerprint)
  return fingerprint_lib.digest(kept, ascii_only=True)[:16]


def _mean_scores(by_seed):
  """Benchmark -> pass@1, mean over seeds, and its number of tasks."""
  return {
    name: {
      'value': float(np.mean([found[name]['value'] for found in by_seed])),
      'tasks': by_seed[0][name]['tasks'],
    }
    for name in by_seed[0]
  }


def _exact(model):
  """The same weights, computed in float32: the start is judged so too."""
  model.dtype = jnp.dtype(jnp.float32)
  return model
