"""The scoring stage: samples of a work directory to the parts of one model.

Two passes over the rows in constant memory. The first counts lengths, from
which the shapes of the batches are planned. The second scores window by
window: a thread reads, tokenizes and batches the next window, the device
computes, and results are fetched one batch late. Nothing else reads device
values in the loop.

With several processes every process makes the same batches, the results are
replicated, and process i writes the windows w with `w % processes == i`.
"""

import time
from collections.abc import Mapping

import jax
from flax import nnx

from qaq_jax.runtime import console, processes, progress
from qaq_jax.scoring import kinds as kinds_lib
from qaq_jax.scoring import loop, planning, store
from qaq_jax.scoring import programs as programs_lib
from qaq_jax.scoring import rows as rows_lib
from qaq_jax.scoring.options import ScoreOptions
from qaq_jax.scoring.window import Window

# Part of every fingerprint: raise it when a change here moves a number.
VERSION = 1

_DEFAULTS = ScoreOptions()


def score(
  samples,
  encoder,
  model,
  *,
  name: str,
  out_dir,
  fingerprint: Mapping,
  options: ScoreOptions = _DEFAULTS,
  mesh: jax.sharding.Mesh | None = None,
  mirror=None,
) -> dict:
  """Scores every row with one model, continuing what is in `out_dir`.

  Args:
    samples: a `SampleStore`.
    encoder: an `Encoder` for the model.
    model: a `Decoder`, or a function that returns it, called only if there
      is something left to score.
    name: the `<m>` of the columns.
    out_dir: folder of the parts, `WORKDIR/scores/<name>`.
    fingerprint: JSON-serialisable; everything that can change a number: input
      content, model files, `encoder.fingerprint()`, dtype, attention.
    options: how to score.
    mesh: the mesh that the model lives on; None is one device.
    mirror: the mirror of the work directory, where that is in an object store.

  Returns:
    A JSON-serialisable summary: `rows`, `statuses`, `sequences`, `tokens`,
    `merge_rate`, `windows`, `windows_reused`; and of this run, None where
    nothing was left to score, `seconds`, `scoring_seconds` (without loading
    and compiling), `scoring_cpu_seconds` (of all threads), `wait_seconds` (for
    tokenized windows, the device idle at most so long), `tokens_scored`,
    `tokens_per_second`, `padding_waste`, `compile_seconds`, `programs`,
    `tokens_per_batch`.

  Raises:
    StoreError: `out_dir` is in use, damaged, or of another fingerprint; the
      message names the difference and what to do.
    OutOfMemory: one row per device does not fit; names the row.
  """
  kinds = kinds_lib.wanted(
    encoder.options, options.terms, store.begun_terms(out_dir)
  )
  with store.ScoreStore(
    out_dir,
    model=name,
    fingerprint={
      **fingerprint,
      'scoring_version': VERSION,
      **kinds_lib.fingerprint(kinds),
    },
    num_rows=samples.num_rows,
    kinds=kinds_lib.stored(encoder.options, kinds),
    exclusive=jax.process_index() == 0,
    mirror=mirror,
  ) as parts:
    names = [k.name for k in kinds if k.column]
    if not options.terms and kinds != kinds_lib.offered(encoder.options):
      parts.notes.append(
        f'goes on with the terms that {out_dir} was begun with: '
        + ', '.join(names)
      )
    source = rows_lib.Source(samples, encoder, kinds)
    return _Run(source, kinds, model, parts, options, mesh).run()


def plan(
  samples,
  encoder,
  *,
  name: str,
  options: ScoreOptions = _DEFAULTS,
  shards: int = 1,
  platform: str | None = None,
) -> dict:
  """Surveys the rows and prints the plan, without a model.

  Args:
    samples: a `SampleStore`.
    encoder: an `Encoder`.
    name: the name of the model, for the text.
    options: how to score. A batch size of 0 is the platform's first choice,
      not yet checked against the compiled program's memory.
    shards: devices that a batch is split over.
    platform: 'cpu', 'gpu' or 'tpu'; None is this machine's.

  Returns:
    The survey, with the shapes under `batches`.
  """
  platform = platform or jax.default_backend()
  source = rows_lib.Source(
    samples, encoder, kinds_lib.wanted(encoder.options, options.terms)
  )
  survey = planning.survey(source.all())
  tokens = shards * (
    options.tokens_per_batch or programs_lib.default_tokens(platform)
  )
  batches = planning.plan_batches(survey, options, tokens, shards, platform)
  for line in planning.describe(name, survey, batches, tokens):
    console.say(line)
  return {**survey, 'batches': batches.to_json()}


class _Run:
  """One call of `score`, with its folder open."""

  def __init__(self, source, kinds, model, parts, options, mesh):
    self._source, self._kinds, self._model = source, kinds, model
    self._parts, self._options, self._mesh = parts, options, mesh
    self._name = parts.model
    self._left = []  # windows to score

  def _say(self, line):
    if self._options.progress:
      console.say(line)

  def run(self) -> dict:
    for note in self._parts.notes:
      self._say(f'{self._name}: {note}')
    survey = self._parts.plan.get('survey') or planning.survey(
      self._source.all()
    )
    done = self._parts.done()
    if self._parts.rows_per_part and len(done) == self._parts.num_windows:
      self._say(f'{self._name}: all {survey["rows"]:,} rows were scored before')
      return self._summary(survey, done, {})
    started = time.perf_counter()
    model = self._model
    if not isinstance(model, nnx.Module):
      model = model()
    self._hidden_size = model.config.hidden_size
    programs = programs_lib.Programs(model, self._mesh, kinds=self._kinds)
    del model  # `programs` holds its arrays
    current = planning.choose(self._parts, programs, self._options, survey)
    self._print_plan(survey, current, programs, done)
    self._left = [w for w in range(self._parts.num_windows) if w not in done]
    bar = progress.Progress(
      self._name,
      tokens=int(
        survey['tokens'] * len(self._left) / max(self._parts.num_windows, 1)
      ),
      rows=survey['rows'],
      rows_done=sum(len(self._parts.window(w)) for w in done),
      show=self._options.progress,
    )
    try:
      while self._left:
        try:
          loop.run_windows(
            loop.make_windows(
              self._source.encode,
              self._parts,
              current.batches,
              list(self._left),
              self._kinds,
            ),
            programs,
            self._finish,
            bar,
          )
        except loop.BatchOutOfMemory as e:
          current = self._shrink(e, current, programs, survey)
    finally:
      bar.close()
    processes.barrier(f'scored with {self._name}')  # every part is written
    self._parts.refresh()
    return self._summary(
      survey,
      done,
      {
        'seconds': time.perf_counter() - started,
        'scoring_seconds': bar.seconds,
        'scoring_cpu_seconds': bar.cpu_seconds,
        'wait_seconds': bar.wait_seconds,
        'tokens_scored': bar.tokens,
        'tokens_per_second': bar.tokens / max(bar.seconds, 1e-9),
        'padding_waste': bar.waste,
        'compile_seconds': programs.compile_seconds,
        'programs': len(programs),
        'tokens_per_batch': current.tokens,
      },
    )

  def _finish(self, window: Window) -> None:
    """Writes a window, if it is this process's to write."""
    if window.index % jax.process_count() == jax.process_index():
      columns, status, reason = window.columns(self._name, self._parts.kinds)
      embeddings = None
      if self._parts.embeddings:
        embeddings = window.embeddings(self._hidden_size)
      self._parts.write(window.index, columns, status, reason, embeddings)
    self._left.remove(window.index)

  def _shrink(self, error, current, programs, survey):
    rows, length = error.shape
    where = f'{rows} rows of {length} tokens (longest: row {error.longest_row})'
    if jax.process_count() > 1:
      raise programs_lib.OutOfMemory(
        f'{self._name}: out of memory with {where}; lower '
        'score.tokens_per_batch'
      ) from error
    try:
      smaller = planning.halve(
        self._parts, programs, self._options, survey, current, error.shape
      )
    except programs_lib.OutOfMemory as e:
      raise programs_lib.OutOfMemory(
        f'{self._name}: out of memory with {where}: {e}. Lower '
        'score.max_length, or split the model over more devices'
      ) from error
    self._say(
      f'{self._name}: out of memory with {where}; going on with '
      f'{smaller.tokens:,} tokens per batch'
    )
    return smaller

  def _print_plan(self, survey, current, programs, done):
    lines = planning.describe(
      self._name, survey, current.batches, current.tokens
    )
    lines.append(
      f'{self._name}: {len(programs)} programs compiled in '
      f'{programs.compile_seconds:.1f} s; the largest needs '
      f'{current.memory / 2**20:,.0f} MiB per device'
    )
    if done:
      lines.append(
        f'{self._name}: continuing, {len(done)} of '
        f'{self._parts.num_windows} parts are there'
      )
    for line in lines:
      self._say(line)

  def _summary(self, survey, done, run) -> dict:
    """What `score` returns."""
    names = (
      'seconds',
      'scoring_seconds',
      'scoring_cpu_seconds',
      'wait_seconds',
      'tokens_scored',
      'tokens_per_second',
      'padding_waste',
      'compile_seconds',
      'programs',
      'tokens_per_batch',
    )
    return {
      'rows': survey['rows'],
      'statuses': self._parts.count_statuses(),
      'sequences': survey['sequences'],
      'tokens': survey['tokens'],
      'merge_rate': survey['merge_rate'],
      'windows': self._parts.num_windows if self._parts.rows_per_part else 0,
      'windows_reused': len(done),
      **{name: run.get(name) for name in names},
    }
