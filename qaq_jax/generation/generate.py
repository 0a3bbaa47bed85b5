"""Batched generation with a cache of keys and values.

Rows are padded on the left to one of a few prompt lengths. One program per such
length reads the prompts (prefill), one per size of the cache writes tokens
(decode): a loop on the device that hands back a chunk of tokens at a time, so
that the host, which knows the texts, can stop rows at strings. The cache starts
small and grows with what was written, since every step reads all of it.

A finished row waits for the others of its batch and writes nothing.

Letters of dimensions: see `models/decoder.py`; C is the tokens of a chunk.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from qaq_jax.encoding.tokenization import Tokenizer
from qaq_jax.generation import sampling, stopping
from qaq_jax.generation import steps as steps_lib
from qaq_jax.generation.options import GeneratorOptions, Sampling
from qaq_jax.models.decoder import Decoder
from qaq_jax.models.unrolled import unrolled

__all__ = [
  'GREEDY',
  'Generation',
  'Generator',
  'GeneratorOptions',
  'Sampling',
]

GREEDY = Sampling()
_DEFAULTS = GeneratorOptions()
_SMALLEST_PROMPT = 64
_SMALLEST_CACHE = 256


@dataclasses.dataclass(frozen=True)
class Generation:
  """What was written after one prompt.

  Attributes:
    ids: tokens, up to and with the one that stopped it.
    text: the text of the ids without special tokens, cut where a stop string
      begins; empty when the generator has no tokenizer.
    finish_reason: 'stop' (a stop token or string) or 'length'.
  """

  ids: np.ndarray
  text: str
  finish_reason: str


class Generator:
  """Writes after prompts with one model; see the module's docstring."""

  def __init__(
    self,
    model: Decoder,
    tokenizer: Tokenizer | None = None,
    options: GeneratorOptions = _DEFAULTS,
    *,
    prompt_lengths: Sequence[int] | None = None,
    chunk: int = 32,
    mesh: jax.sharding.Mesh | None = None,
    **changes,
  ):
    """Lays the model out for steps of one token; compiles nothing yet.

    The layout is a copy unless the model is `unrolled` already: drop the
    model where memory is short.

    Args:
      model: a decoder. A tensor axis splits the reading of the weights; an fsdp
        axis gathers them for each step, which costs more than it saves.
      tokenizer: gives texts and finds stop strings; None: ids alone.
      options: tokens of a text, and prompts at a time.
      prompt_lengths: tokens that prompts are padded to; None: powers of two
        from 64.
      chunk: tokens written before the host looks for stop strings.
      mesh: the mesh that the model lives on.
      **changes: fields of the options with other values.

    Raises:
      ValueError: a number below one.
    """
    options = dataclasses.replace(options, **changes)
    if chunk < 1:
      raise ValueError(f'chunk={chunk}: must be at least 1')
    self._graphdef, self._params = nnx.split(unrolled(model))
    self._config, self._rules = model.config, model.rules
    self._tokenizer, self._mesh = tokenizer, mesh
    self._max_new, self._chunk = options.max_new_tokens, chunk
    axes = model.rules.batch if mesh is not None else None
    self._shards = model.rules.batch_shards(mesh)
    self._batch_size = options.batch_size
    self._batch_axes = axes
    limit = model.config.max_positions
    lengths = prompt_lengths or [
      _SMALLEST_PROMPT << i for i in range(limit.bit_length())
    ]
    # Two at least: one token is a step, not a prompt.
    self._lengths = sorted({max(2, min(n, limit)) for n in (*lengths, limit)})

  def generate(
    self,
    prompts: Sequence[np.ndarray],
    options: Sampling = GREEDY,
    *,
    stop_ids: Sequence[int] = (),
    stop_strings: Sequence[str] = (),
    seeds: Sequence[int] | None = None,
  ) -> list[Generation]:
    """Returns what was written after each prompt, in their order.

    See `stream` for the arguments.
    """
    found = dict(
      self.stream(
        prompts,
        options,
        stop_ids=stop_ids,
        stop_strings=stop_strings,
        seeds=seeds,
      )
    )
    return [found[i] for i in range(len(prompts))]

  def stream(
    self,
    prompts: Sequence[np.ndarray],
    options: Sampling = GREEDY,
    *,
    stop_ids: Sequence[int] = (),
    stop_strings: Sequence[str] = (),
    seeds: Sequence[int] | None = None,
  ) -> Iterator[tuple[int, Generation]]:
    """Yields (number of the prompt, what was written) as batches finish.

    Several processes: all call it with the same arguments and get the same.

    Args:
      prompts: ids of each, int32, see `prompts.py`.
      options: how tokens are chosen.
      stop_ids: a row ends with any of them, see `stopping.stop_ids`.
      stop_strings: a row ends when its text has any of them; the text is cut
        before it.
      seeds: the seed of each row; equal seeds after equal prompts give equal
        texts, in any batch, as far as rounding lets them (shapes differ between
        batches of different lengths). None: the prompts' numbers.

    Raises:
      ValueError: a prompt that is empty, has an id that the model lacks, or
        fills all positions; names its number.
    """
    prompts = [np.asarray(p, np.int32) for p in prompts]
    for i, prompt in enumerate(prompts):
      self._check(i, prompt)
    if seeds is None:
      seeds = range(len(prompts))
    if len(seeds) != len(prompts):
      raise ValueError(f'{len(seeds)} seeds for {len(prompts)} prompts')
    if stop_strings:
      if self._tokenizer is None:
        raise ValueError('stop_strings need a tokenizer')
      more, stop_strings = stopping.split_markers(self._tokenizer, stop_strings)
      stop_ids = (*stop_ids, *more)
    job = _Job(options, frozenset(map(int, stop_ids)), tuple(stop_strings))
    rows = self._rows(len(prompts))
    # The longest first: if memory is short, it shows at once.
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    for at in range(0, len(order), rows):
      group = order[at : at + rows]
      texts = self._write(
        [prompts[i] for i in group], [seeds[i] for i in group], rows, job
      )
      yield from zip(group, texts, strict=True)

  def _check(self, number, prompt):
    limit, vocab = self._config.max_positions, self._config.vocab_size
    if not len(prompt):
      raise ValueError(f'prompt {number} has no tokens')
    if len(prompt) >= limit:
      raise ValueError(
        f'prompt {number} has {len(prompt)} tokens, but the model has {limit}'
        ' positions for prompt and answer together: shorten the prompt'
      )
    if prompt.min() < 0 or prompt.max() >= vocab:
      wrong = prompt[(prompt < 0) | (prompt >= vocab)][0]
      raise ValueError(
        f'prompt {number} has the id {wrong}, but the vocabulary has'
        f' {vocab}: is the tokenizer that of this model?'
      )

  def _rows(self, prompts: int) -> int:
    """Rows of a batch: few prompts don't pay for a full one."""
    few = 1 << max(prompts - 1, 0).bit_length()
    return -(-min(self._batch_size, few) // self._shards) * self._shards

  def _slots(self, needed: int) -> int:
    """Size of the cache for `needed` tokens: one of few, for all prompts."""
    slots = _SMALLEST_CACHE
    while slots < needed:
      slots *= 2
    return min(slots, self._lengths[-1] + self._max_new)

  def _write(self, prompts, seeds, rows, job) -> list[Generation]:
    """Runs one batch."""
    count = len(prompts)
    longest = max(map(len, prompts))
    length = next(n for n in self._lengths if n >= longest)
    tokens_BT = np.zeros((rows, length), np.int32)
    segments_BT = np.zeros((rows, length), np.int32)
    seeds_B = np.zeros(rows, np.uint32)
    limits_B = np.zeros(rows, np.int32)  # tokens to write; none: no such row
    for i, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
      tokens_BT[i, length - len(prompt) :] = prompt
      segments_BT[i, length - len(prompt) :] = 1
      seeds_B[i] = seed % 2**32
      limits_B[i] = min(self._max_new, self._config.max_positions - len(prompt))
    # A row without a token would attend to nothing.
    segments_BT[count:, -1] = 1
    texts = [_Text(self._tokenizer, job, limit) for limit in limits_B[:count]]
    seed = np.uint32(job.sampling.seed % 2**32)
    stop_S = np.full(-(-(len(job.stop_ids) or 1) // 8) * 8, -1, np.int32)
    stop_S[: len(job.stop_ids)] = sorted(job.stop_ids)
    plan = steps_lib.Plan(
      numbers=job.sampling.numbers(),
      stop_S=stop_S,
      limits_B=self._put(limits_B, 0),
    )
    mode = job.sampling.mode
    most = int(limits_B.max())

    def draws(first, count):  # of tokens first, first + 1, ...
      if not mode[0]:
        return self._put(np.zeros((rows, count), np.float32), 0)
      return self._put(
        np.asarray(
          sampling.uniforms(seed, seeds_B, np.int32(first), count=count)
        ),
        0,
      )

    with self._context():
      state = steps_lib.prefill(
        self._graphdef,
        self._params,
        self._put(tokens_BT, 0),
        self._put(segments_BT, 0),
        draws(0, 1),
        plan,
        slots=self._slots(length + min(self._chunk, most)),
        mode=mode,
      )
      written = 0
      while True:
        steps = min(self._chunk, most - written)
        slots = self._slots(length + written + steps)
        if slots > state.cache.slots:
          state = steps_lib.grow(state, slots=slots)
        stopped_B = np.ones(rows, bool)
        stopped_B[:count] = [t.finish_reason is not None for t in texts]
        state, tokens_BC = steps_lib.decode(
          self._graphdef,
          self._params,
          state,
          self._put(stopped_B, 0),
          draws(written + 1, self._chunk),
          plan,
          np.int32(steps),
          mode=mode,
        )
        tokens_BC = np.asarray(tokens_BC)
        written += steps
        for text, ids in zip(texts, tokens_BC, strict=False):
          text.add(ids[:steps])
        if all(t.finish_reason for t in texts):
          return [t.generation() for t in texts]

  def _put(self, array, batch_axis):
    """Puts an array with rows on the devices that hold them."""
    if self._mesh is None:
      return jnp.asarray(array)
    spec: list = [None] * array.ndim
    spec[batch_axis] = self._batch_axes
    return jax.device_put(
      array, NamedSharding(self._mesh, PartitionSpec(*spec))
    )

  def _context(self):
    if self._mesh is None:
      return contextlib.nullcontext()
    return jax.set_mesh(self._mesh)


@dataclasses.dataclass(frozen=True)
class _Job:
  sampling: Sampling
  stop_ids: frozenset[int]
  stop_strings: tuple[str, ...]


class _Text:
  """A row as the host sees it."""

  def __init__(self, tokenizer, job: _Job, limit: int):
    self._tokenizer, self._job, self._limit = tokenizer, job, limit
    self._ids: list[int] = []
    self._text: str | None = None
    self.finish_reason: str | None = None

  def add(self, ids) -> None:
    """Takes the next tokens; those after the end are not looked at."""
    if self.finish_reason is not None:
      return
    checked = len(self._ids)
    for token in ids.tolist():
      self._ids.append(token)
      if token in self._job.stop_ids:
        self.finish_reason = 'stop'
      elif len(self._ids) == self._limit:
        self.finish_reason = 'length'
      if self.finish_reason is not None:
        break
    if not self._job.stop_strings:
      return
    found = stopping.cut(
      self._tokenizer, self._ids, self._job.stop_strings, checked
    )
    if found is not None:
      number, self._text = found
      self._ids = self._ids[:number]
      self.finish_reason = 'stop'

  def generation(self) -> Generation:
    """What was written."""
    ids = np.array(self._ids, np.int32)
    text = self._text
    if text is None and self._tokenizer is not None:
      ended = self._ids[-1] in self._job.stop_ids
      shown = self._ids[:-1] if ended else self._ids
      text = stopping.text_of(self._tokenizer, shown)
    assert self.finish_reason is not None, 'asked before the row ended'
    return Generation(ids, text or '', self.finish_reason)
