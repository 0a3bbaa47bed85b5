"""The demo models' training corpus: mined pairs -> tokenizer and examples."""

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Sequence

import numpy as np
import tokenizers

from qaq_jax.demo import mining, separation
from qaq_jax.demo import tokenizer as tokenizer_lib
from qaq_jax.encoding.examples import Example
from qaq_jax.runtime import console
from qaq_jax.workdir import files

# Stands after the answer in the reverse text: scoring uses the same words
# (`configs/demo.py`), so training and scoring see the same token ids.
REVERSE_INSTRUCTION = '{answer}\n# doc'


@dataclasses.dataclass(frozen=True)
class CorpusOptions:
  """What to mine and how to weigh it.

  Attributes:
    packages: (import name, pip requirement, licence) to learn from.
    held_out: the same, to measure on.
    site: site-packages folder that holds them; '' is the running environment.
    excluded: import names of the running environment whose pairs are left
      out, should they be in the corpus too.
    max_answer: characters.
    vocab_size: the size of its vocabulary.
    forward_share: share of pairs that are also trained query first.
    query_weight: weight of a query token's loss; others have 1.
    max_held_out: pairs to measure on, evenly picked.
  """

  packages: tuple[tuple[str, str, str], ...]
  held_out: tuple[tuple[str, str, str], ...]
  site: str = ''
  excluded: tuple[str, ...] = mining.DEMO_PACKAGES
  max_answer: int = 600
  vocab_size: int = 4096
  forward_share: float = 0.4
  query_weight: float = 3.0
  max_held_out: int = 400


def mine_corpus(
  options: CorpusOptions,
) -> tuple[list[mining.Pair], list[mining.Pair]]:
  """Training and held-out pairs; none equals a pair of the demo's packages.

  Raises:
    ModuleNotFoundError: Packages are missing; says how to install them.
  """
  _check_installed(options)
  limits = mining.Limits(
    min_query=16, min_words=4, max_answer=options.max_answer
  )
  site = options.site or None
  held_out_names = tuple(name for name, *_ in options.held_out)
  names = held_out_names + tuple(name for name, *_ in options.packages)
  found = mining.mine(names, site=site, limits=limits)
  demo = mining.mine(options.excluded, limits=limits)
  codes = {mining.normalised_code(p.answer) for p in demo}
  queries = {mining.normalised_query(p.query) for p in demo}
  kept = [
    p
    for p in found
    if mining.normalised_code(p.answer) not in codes
    and mining.normalised_query(p.query) not in queries
  ]
  console.say(
    f'{mining.describe(kept, site)}; left out {len(found) - len(kept)} that '
    'the demo has too'
  )
  held_out = [p for p in kept if p.package in held_out_names]
  return [p for p in kept if p.package not in held_out_names], held_out


def _check_installed(options):
  missing = []
  for name, requirement, _ in options.packages + options.held_out:
    try:
      mining.package_folder(name, options.site or None)
    except ModuleNotFoundError:
      missing.append(requirement)
  if missing:
    where = options.site or 'SITE_PACKAGES'
    raise ModuleNotFoundError(
      f'{len(missing)} packages of the corpus are not installed in '
      f'{options.site or "the running environment"}. Install them with\n'
      f'  pip install --no-deps --target={where} {" ".join(missing)}\n'
      f'and give --config.corpus.site={where}'
    )


def load_or_mine(
  options: CorpusOptions, workdir: str | os.PathLike
) -> tuple[list[mining.Pair], list[mining.Pair]]:
  """`mine_corpus`, kept in WORKDIR/{train,held_out}.jsonl for the next time."""
  kept = [pathlib.Path(workdir, f'{n}.jsonl') for n in ('train', 'held_out')]
  if not all(file.exists() for file in kept):
    for file, pairs in zip(kept, mine_corpus(options), strict=True):
      lines = [json.dumps(dataclasses.asdict(p)) + '\n' for p in pairs]
      files.write_atomic(file, ''.join(lines).encode())
  train, held_out = (
    [mining.Pair(**json.loads(line)) for line in f.open(encoding='utf-8')]
    for f in kept
  )
  return train, held_out


def encode(
  tokenizer: tokenizers.Tokenizer, pairs: Sequence[mining.Pair]
) -> list[separation.Tokens]:
  """Ids of each pair's query and answer, encoded separately as in scoring."""
  queries = tokenizer.encode_batch([p.query for p in pairs])
  answers = tokenizer.encode_batch([p.answer for p in pairs])
  return [
    separation.Tokens(tuple(q.ids), tuple(a.ids))
    for q, a in zip(queries, answers, strict=True)
  ]


def pieces(tokenizer: tokenizers.Tokenizer) -> dict[str, tuple[int, ...]]:
  """Ids of the text between the parts: `newline`, `before_query`; `bos`."""
  newline = tuple(tokenizer.encode('\n').ids)
  after = REVERSE_INSTRUCTION.removeprefix('{answer}')
  return {
    'bos': tokenizer_lib.marker(tokenizer, tokenizer_lib.BOS),
    'eos': tokenizer_lib.marker(tokenizer, tokenizer_lib.EOS),
    'newline': newline,
    'before_query': (*tokenizer.encode(after).ids, *newline),
  }


def make_examples(
  tokenizer: tokenizers.Tokenizer,
  pairs: Sequence[mining.Pair],
  *,
  forward_share: float,
  query_weight: float,
) -> list[Example]:
  """Every pair answer first, and a fixed share of them also query first."""
  part = pieces(tokenizer)
  examples = []

  def add(row, *spans):
    ids = [i for ids, _ in spans for i in ids]
    weights = [w for ids, w in spans for _ in ids]
    examples.append(
      Example(np.array(ids, np.int32), np.array(weights, np.float32), row)
    )

  encoded = encode(tokenizer, pairs)
  for row, (pair, ids) in enumerate(zip(pairs, encoded, strict=True)):
    add(
      row,
      (part['bos'], 0),
      (ids.answer, 1),
      (part['before_query'], 0),
      (ids.query, query_weight),
      (part['eos'], 1),
    )
    digest = hashlib.sha256(pair.query.encode()).digest()
    if int.from_bytes(digest[:4], 'big') < forward_share * 2**32:
      add(
        row,
        (part['bos'], 0),
        (ids.query, query_weight),
        (part['newline'], 1),
        (ids.answer, 1),
        (part['eos'], 1),
      )
  return examples
