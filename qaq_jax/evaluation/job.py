"""Evaluation with plain arguments: a model to programs, programs to pass@k.

FOLDER/BENCHMARK holds `generations.jsonl` (what the model wrote; a killed run
goes on from it), `samples.jsonl` (the programs in it, in EvalPlus's format),
`samples.raw.jsonl` (before they were cut out) and `verdicts.jsonl`.
FOLDER/results.json holds the figures.
"""

import contextlib
import dataclasses
import functools
import os
import pathlib
import zlib
from collections.abc import Sequence

import jax
import tqdm

from qaq_jax.encoding import prompts
from qaq_jax.encoding.options import EncoderOptions
from qaq_jax.evaluation import benchmarks as benchmarks_lib
from qaq_jax.evaluation import harness, postprocess, programs
from qaq_jax.evaluation.options import EvaluateOptions
from qaq_jax.generation import generate, stopping
from qaq_jax.models import sharding
from qaq_jax.runtime import console, processes
from qaq_jax.workdir import files
from qaq_jax.workdir import journal as journal_lib

_DEFAULTS = EvaluateOptions()
_VERSION = 1  # of what a model is asked


def evaluate(
  model,
  benchmarks: Sequence[benchmarks_lib.Benchmark],
  folder: str | os.PathLike,
  options: EvaluateOptions = _DEFAULTS,
  *,
  mesh: jax.sharding.Mesh | None = None,
  template: str = EncoderOptions.template,
  system_prompt: str = EncoderOptions.system_prompt,
  date_string: str = EncoderOptions.date_string,
) -> dict:
  """Generates programs for every benchmark; runs them where that is allowed.

  Args:
    model: the model from `stages.model.open_model`.
    benchmarks: the benchmarks from `benchmarks.read`.
    folder: the folder of the results; what is in it is not made again.
    options: how; programs are run with `allow_code_execution` alone.
    mesh: the mesh to generate on; None: every device has a copy.
    template: see `EncoderOptions`; for chat prompts.
    system_prompt: see `EncoderOptions`; for chat prompts.
    date_string: see `EncoderOptions`; for chat prompts.

  Returns:
    'executed'; and 'samples', benchmark -> number, or where the programs were
    run 'prompt' and 'scores', name -> 'pass@k' -> value and interval. Empty
    but in the first process.

  Raises:
    ValueError: the model or its template cannot be used, or what is in the
      folder was made with other settings; says what to do.
    TypeError: a benchmark is not one that was read.
    Refused: programs cannot be contained on this machine.
  """
  for benchmark in benchmarks:
    if not isinstance(benchmark, benchmarks_lib.Benchmark):
      raise TypeError(
        f'benchmarks holds {benchmark!r}; each is from '
        'evaluation.benchmarks.read(name, path)'
      )
  folder = pathlib.Path(folder)
  encoding = {
    'template': template,
    'system_prompt': system_prompt,
    'date_string': date_string,
  }
  writer = _Writer(model, options, mesh, encoding)
  made = {b.name: writer.samples(b, folder / b.name) for b in benchmarks}

  def work():
    if not options.allow_code_execution:
      paths = [folder / name / 'samples.jsonl' for name in made]
      console.say(
        _HOW_TO_GO_ON.format(paths='\n'.join(f'  {path}' for path in paths))
      )
      return {
        'executed': False,
        'samples': {name: len(found) for name, found in made.items()},
      }
    results = {
      b.name: harness.run(
        b,
        made[b.name],
        folder / b.name / 'verdicts.jsonl',
        options.execution,
      )
      for b in benchmarks
    }
    scores: dict[str, dict] = {}
    for result in results.values():
      scores |= result['scores']
    files.write_json(
      folder / 'results.json',
      {
        'model': model.source.path,
        'model_files': model.hashes,
        'prompt': options.prompt,
        'scores': scores,
        'benchmarks': results,
      },
    )
    console.say(f'{model.source.path}\n{harness.table(scores, options.prompt)}')
    return {'executed': True, 'prompt': options.prompt, 'scores': scores}

  return processes.by_the_first(work, 'evaluate: programs were run') or {}


_HOW_TO_GO_ON = """\
nothing was executed. The samples are in
{paths}
to run them contained on this machine, the same command with \
--allow-code-execution (read docs/evaluation.md before); to run them \
elsewhere: evalplus.evaluate --dataset humaneval --samples FILE, or \
python -m qaq_jax.evaluation.harness --help"""


class _Writer:
  """Generation with one model, asked in one way."""

  def __init__(self, model, options, mesh, encoding):
    self.model, self.options = model, options
    self.mesh = sharding.make_mesh() if mesh is None else mesh
    self._encoder = None
    if options.prompt == 'chat':
      self._encoder = model.encoder(
        max_length=model.config.max_positions, **encoding
      )
      self._tokenizer = self._encoder.tokenizer
    else:
      self._tokenizer = model.tokenizer()
    self._stop_ids = stopping.stop_ids(
      self._tokenizer, model.config, model.source, self._encoder
    )
    self._sampling = options.sampling
    if not self._sampling.temperature:  # what is not used makes no difference
      self._sampling = dataclasses.replace(self._sampling, top_p=1.0, top_k=0)

  def samples(self, benchmark, folder: pathlib.Path) -> list[programs.Sample]:
    """Returns programs for every task, in the benchmark's order.

    Those that `folder` holds are not generated again.
    """
    wanted = [
      (task_id, number)
      for task_id in benchmark.tasks
      for number in range(self.options.samples)
    ]
    path, fingerprint = folder / 'generations.jsonl', self._print(benchmark)
    fields = {'task_id': str, 'number': int, 'text': str}
    first = journal_lib.Journal(path, fingerprint, fields=fields, write=False)
    texts = {(r['task_id'], r['number']): r['text'] for r in first.records}
    todo = [key for key in wanted if key not in texts]
    # All have read before one writes.
    processes.barrier(f'evaluate {benchmark.name}')
    main = jax.process_index() == 0
    with contextlib.ExitStack() as stack:
      if main:
        journal = journal_lib.Journal(path, fingerprint, fields=fields)
        stack.callback(journal.close)
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
      whole = postprocess.whole_text(task, self.options.prompt, text)
      raw.append(programs.Sample(*key, whole))
      program = postprocess.extract(whole, task.entry_point)
      made.append(programs.Sample(*key, program))
    if main:
      programs.write(folder / 'samples.raw.jsonl', raw)
      programs.write(folder / 'samples.jsonl', made)
    return made

  def _generate(self, benchmark, todo):
    """Yields (task id, number), generation as batches finish."""
    if not todo:
      return
    asked = {
      task_id: postprocess.make_prompt(
        benchmark.family, benchmark.tasks[task_id], self.options.prompt
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
    model = self.model.load(
      mesh=self.mesh,
      dtype=self.options.dtype,
      attention=self.options.attention,
    )
    return generate.Generator(
      model, self._tokenizer, self.options.generator, mesh=self.mesh
    )

  def _print(self, benchmark):
    """What a generated text depends on, not how many there are."""
    options = self.options
    return {
      'version': _VERSION,
      'model': self.model.hashes,
      'dtype': options.dtype,
      'attention': options.attention,
      'encoder': (
        self._encoder.fingerprint()
        if self._encoder
        else dict(self._tokenizer.files)
      ),
      'prompt': options.prompt,
      'md5': benchmark.digest,
      # generation_config.json names some, and is no part of `model`.
      'stop_ids': list(self._stop_ids),
      'temperature': self._sampling.temperature,
      'top_p': self._sampling.top_p,
      'top_k': self._sampling.top_k,
      'seed': self._sampling.seed,
      'max_new_tokens': options.generator.max_new_tokens,
    }
