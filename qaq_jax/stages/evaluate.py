"""The evaluate stage: a model to programs, and programs to pass@k.

WORKDIR/evaluate/BENCHMARK holds `generations.jsonl` (what the model wrote; a
killed run goes on from it), `samples.jsonl` (the programs in it, in EvalPlus's
format), `samples.raw.jsonl` (before they were cut out) and `verdicts.jsonl`.
WORKDIR/evaluate/results.json holds the figures.
"""

import functools
import pathlib
import zlib

import jax
import ml_collections
import tqdm

from qaq_jax.encoding import chat, prompts
from qaq_jax.evaluation import benchmarks, harness, judge, postprocess, programs
from qaq_jax.generation import generate, stopping
from qaq_jax.models import sharding
from qaq_jax.runtime import console, processes
from qaq_jax.sandbox.process import Limits
from qaq_jax.stages import model as model_lib
from qaq_jax.workdir import files
from qaq_jax.workdir import journal as journal_lib
from qaq_jax.workdir.layout import WorkDir

_VERSION = 1  # of what a model is asked


def run(config: ml_collections.ConfigDict, workdir: WorkDir) -> dict:
  """Generates programs for every benchmark; runs them where that is allowed.

  Args:
    config: the resolved config; `config.evaluate` above all.
    workdir: with a fine-tuned model, unless the config names another.

  Returns:
    Summary for the run log.

  Raises:
    ValueError: a file, the model or an option cannot be used, or what is in
      the work directory was made with other settings; says what to do.
    Refused: programs cannot be contained on this machine.
  """
  c = config.evaluate
  read = [_read(c, workdir, name) for name in c.benchmarks]
  if not read:
    raise ValueError('config.evaluate.benchmarks names none')
  job = _Job(config, workdir)
  made = {}
  for benchmark in read:
    folder = workdir.evaluate / benchmark.name
    made[benchmark.name] = job.samples(benchmark, folder)

  def work():
    return _execute(c, workdir, job, read, made)

  return processes.by_the_first(work, 'evaluate: programs were run') or {}


def _execute(c, workdir, job, read, made):
  """Runs the programs, where that is allowed; returns the summary."""
  if not c.allow_code_execution:
    console.say(_how_to_go_on(workdir, read))
    return {'executed': False, 'samples': _counts(made)}
  results = {}
  for benchmark in read:
    folder = workdir.evaluate / benchmark.name
    results[benchmark.name] = harness.run(
      benchmark,
      made[benchmark.name],
      folder / 'verdicts.jsonl',
      _options(c),
    )
  scores = {}
  for result in results.values():
    scores |= result['scores']
  files.write_json(
    workdir.evaluate / 'results.json',
    {
      'model': job.name,
      'model_files': job.model_print,
      'prompt': c.prompt,
      'scores': scores,
      'benchmarks': results,
    },
  )
  console.say(f'{job.name}\n{harness.table(scores, c.prompt)}')
  return {'executed': True, 'prompt': c.prompt, 'scores': scores}


def _read(c, workdir, name):
  if name not in benchmarks.NAMES:
    raise ValueError(
      f'config.evaluate.benchmarks: there is no {name!r}; there are: '
      + ', '.join(benchmarks.NAMES)
    )
  field = name.removesuffix('_plus')
  path = c.files[field]
  if not path:
    raise ValueError(
      f'config.evaluate.files.{field} is empty; {name} is read from a '
      f'published file: {benchmarks.PUBLISHED[name]}'
    )
  return benchmarks.read(name, workdir.filled(path), limit=c.limit)


def _options(c):
  return harness.Options(
    workers=c.workers,
    all_tests=c.all_tests,
    timing=judge.Timing(floor=c.test_seconds, factor=c.test_factor),
    limits=Limits(memory_mb=c.memory_mb),
    allow_uncontained=c.allow_uncontained,
  )


def _counts(made):
  return {name: len(found) for name, found in made.items()}


def _how_to_go_on(workdir, read):
  lines = ['nothing was executed. The samples are in']
  for benchmark in read:
    lines.append(f'  {workdir.evaluate / benchmark.name / "samples.jsonl"}')
  lines.append(
    'to run them contained on this machine, the same command with '
    '--allow-code-execution (read docs/evaluation.md before); to run them '
    'elsewhere: evalplus.evaluate --dataset humaneval --samples FILE, or '
    'python -m qaq_jax.evaluation.harness --help'
  )
  return '\n'.join(lines)


class _Job:
  """Generation as a config describes it: one model, one way to ask."""

  def __init__(self, config, workdir):
    """Resolves the model and how it is asked; loads no weights yet.

    Raises:
      ValueError: the model or its template cannot be used.
    """
    c = self._c = config.evaluate
    path = workdir.filled(c.path) or str(
      workdir.path / config.finetune.folder / 'model'
    )
    if not c.path and not pathlib.Path(path).is_dir():
      raise ValueError(
        f'{path}: there is no fine-tuned model; run `qaq finetune`, or give '
        'config.evaluate.path'
      )
    if c.samples > 1 and not c.temperature:
      raise ValueError(
        f'config.evaluate.samples={c.samples} at temperature 0 would be the '
        'same program each time; set config.evaluate.temperature, 0.8 say'
      )
    self.name = path
    self._model = model_lib.open_model(
      path, c.revision, field='config.evaluate.path'
    )
    self._mesh = sharding.make_mesh(**c.mesh.to_dict())
    self._encoder = None
    if c.prompt == 'chat':
      self._encoder = self._model.encoder(
        template=c.chat_template or chat.AUTO,
        system_prompt=c.system_prompt,
        max_length=self._model.config.max_positions,
        date_string=config.score.date_string,
      )
      self._tokenizer = self._encoder.tokenizer
    else:
      self._tokenizer = self._model.tokenizer()
    self._stop_ids = stopping.stop_ids(
      self._tokenizer, self._model.config, self._model.source, self._encoder
    )
    self._sampling = generate.Sampling(
      temperature=c.temperature,
      top_p=c.top_p if c.temperature else 1.0,
      top_k=c.top_k if c.temperature else 0,
      seed=config.seed,
    )

  def samples(self, benchmark, folder: pathlib.Path) -> list[programs.Sample]:
    """Returns programs for every task, in the benchmark's order.

    Those that `folder` holds are not generated again.
    """
    c = self._c
    wanted = [
      (task_id, number)
      for task_id in benchmark.tasks
      for number in range(c.samples)
    ]
    path, fingerprint = folder / 'generations.jsonl', self._print(benchmark)
    fields = {'task_id': str, 'number': int, 'text': str}
    first = journal_lib.Journal(path, fingerprint, fields=fields, write=False)
    texts = {(r['task_id'], r['number']): r['text'] for r in first.records}
    todo = [key for key in wanted if key not in texts]
    # All have read before one writes.
    processes.barrier(f'evaluate {benchmark.name}')
    main = jax.process_index() == 0
    if main:
      journal = journal_lib.Journal(path, fingerprint, fields=fields)
    for key, generation in self._generate(benchmark, todo):
      texts[key] = generation.text
      if main:
        journal.add(
          {
            'task_id': key[0],
            'number': key[1],
            'text': generation.text,
            'tokens': len(generation.ids),
            'end': generation.finish_reason,
          }
        )
    made, raw = [], []
    for key in wanted:
      task, text = benchmark.tasks[key[0]], texts[key]
      whole = postprocess.whole_text(task, c.prompt, text)
      raw.append(programs.Sample(*key, whole))
      program = postprocess.extract(whole, task.entry_point)
      made.append(programs.Sample(*key, program))
    if main:
      journal.close()
      programs.write(folder / 'samples.raw.jsonl', raw)
      programs.write(folder / 'samples.jsonl', made)
    return made

  def _generate(self, benchmark, todo):
    """Yields (task id, number), generation as batches finish."""
    if not todo:
      return
    asked = {
      task_id: postprocess.make_prompt(
        benchmark.family, benchmark.tasks[task_id], self._c.prompt
      )
      for task_id, _ in todo
    }
    stops = next(iter(asked.values())).stops
    encoded = {task_id: self._encode(p) for task_id, p in asked.items()}
    stream = self._generator.stream(
      [encoded[task_id] for task_id, _ in todo],
      self._sampling,
      stop_ids=self._stop_ids,
      stop_strings=stops,
      # Of the sample, not of its place: a resumed run draws the same.
      seeds=[zlib.crc32(f'{t}/{n}'.encode()) for t, n in todo],
    )
    for i, generation in tqdm.tqdm(
      stream,
      total=len(todo),
      desc=f'{benchmark.name}: generation',
      unit='sample',
      disable=None,
    ):
      yield todo[i], generation

  def _encode(self, prompt):
    if self._encoder is None:
      return prompts.text_prompt(self._tokenizer, prompt.query)
    return prompts.chat_prompt(
      self._encoder, prompt.query, answer=prompt.answer
    )

  @functools.cached_property
  def _generator(self):
    """Loads the weights, if anything is left to generate."""
    c = self._c
    model = self._model.load(
      mesh=self._mesh, dtype=c.dtype, attention=c.attention
    )
    return generate.Generator(
      model,
      self._tokenizer,
      max_new_tokens=c.max_new_tokens,
      batch_size=c.batch_size,
      mesh=self._mesh,
    )

  @property
  def model_print(self) -> dict[str, str]:
    """SHA-256 of the model's files, wherever they lie."""
    return self._model.hashes

  def _print(self, benchmark):
    """What a generated text depends on, not how many there are."""
    c = self._c
    return {
      'version': _VERSION,
      'model': self.model_print,
      'dtype': c.dtype,
      'attention': c.attention,
      'encoder': (
        self._encoder.fingerprint()
        if self._encoder
        else dict(self._tokenizer.files)
      ),
      'prompt': c.prompt,
      'md5': benchmark.digest,
      # generation_config.json names some, and is no part of `model`.
      'stop_ids': list(self._stop_ids),
      'temperature': self._sampling.temperature,
      'top_p': self._sampling.top_p,
      'top_k': self._sampling.top_k,
      'seed': self._sampling.seed,
      'max_new_tokens': c.max_new_tokens,
    }
