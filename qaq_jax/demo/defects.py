"""Known defects planted in a known share of the demo's rows.

Each defect is one that real synthetic instruction data has. The name of a
row's defect stays in its raw record, so that a selection can be judged
afterwards (`selection/audit.py`); scoring reads query and answer only.
"""

import json
import os
import pathlib
import random
import re
from collections.abc import Iterable, Mapping, Sequence

from qaq_jax.demo import mining
from qaq_jax.workdir import checksums

CLEAN = 'none'
DEFECTS = {
  'swapped': 'the answer belongs to another query of similar answer length',
  'nonsense': 'half of the words of the query are invented',
  'echo': 'the answer only repeats the query',
  'cut_off': 'the answer stops early',
  'boilerplate': 'the answer is an empty frame that would fit any query',
}

# Short answers: a few thousand rows are scored in under a minute, and the
# models were trained on answers of this length.
DEMO_LIMITS = mining.Limits(max_answer=600)

# Parts of invented words: pronounceable, and words of nothing.
_ONSETS = (
  'b',
  'bl',
  'd',
  'dr',
  'f',
  'gl',
  'gr',
  'k',
  'l',
  'm',
  'n',
  'pl',
  'qu',
  'r',
  'sk',
  'sn',
  't',
  'tr',
  'v',
  'w',
  'z',
)
_NUCLEI = ('a', 'e', 'i', 'o', 'u', 'ai', 'ee', 'oo')
_CODAS = (
  'b',
  'd',
  'g',
  'lk',
  'm',
  'mp',
  'n',
  'nd',
  'p',
  'rf',
  'sh',
  't',
  'x',
  'zz',
)
_ECHOES = (
  'def main():\n    print({query!r})',
  '# {query}\ndef solution():\n    # {query}\n    pass',
  'def function():\n    text = {query!r}\n    return text',
)
_BOILERPLATE = (
  'def solution(*args, **kwargs):\n'
  '    # TODO: add the implementation here\n'
  '    result = None\n'
  '    return result',
  'class Solution:\n'
  '    def __init__(self):\n'
  '        self.data = None\n'
  '    def run(self):\n'
  '        return self.data',
  'def main():\n'
  '    # Your code goes here\n'
  '    pass\n'
  '\n'
  "if __name__ == '__main__':\n"
  '    main()',
  'import os\nimport sys\n\ndef process(data):\n'
  '    try:\n'
  '        return data\n'
  '    except Exception as e:\n'
  '        print(e)\n'
  '        return None',
)


def _word(rng: random.Random) -> str:
  return ''.join(
    rng.choice(_ONSETS) + rng.choice(_NUCLEI) + rng.choice(_CODAS)
    for _ in range(rng.choice((1, 2, 2)))
  )


def nonsense_query(query: str, rng: random.Random) -> str:
  """The query with at least half of its longer words invented."""
  words = list(re.finditer(r'[A-Za-z_]{4,}', query))
  if not words:
    return f'{query} {_word(rng)} {_word(rng)}'
  chosen = rng.sample(words, (len(words) + 1) // 2)
  for match in sorted(chosen, key=lambda m: m.start(), reverse=True):
    word = _word(rng)
    if match[0][0].isupper():
      word = word.capitalize()
    query = query[: match.start()] + word + query[match.end() :]
  return query


def echo_answer(query: str, rng: random.Random) -> str:
  """An answer that says nothing but the query."""
  return rng.choice(_ECHOES).format(query=query)


def cut_answer(answer: str, rng: random.Random) -> str:
  """The first 25 to 50% of the answer, cut within a line."""
  return answer[: int(len(answer) * rng.uniform(0.25, 0.5))].rstrip()


def boilerplate_answer(rng: random.Random) -> str:
  """A frame without content."""
  return rng.choice(_BOILERPLATE)


def _swap(records: list[dict], rows: Sequence[int]) -> None:
  """Gives each row the answer of its neighbour in length; none keeps its own.

  Rows are sorted by answer length and their answers rotate within groups of
  two (the last group of three when the number is odd).
  """
  order = sorted(rows, key=lambda r: (len(records[r]['output']), r))
  groups = [order[i : i + 2] for i in range(0, len(order) - 1, 2)]
  if len(order) % 2 and groups:
    groups[-1].append(order[-1])
  for group in groups:
    answers = [records[r]['output'] for r in group]
    for row, answer in zip(group, answers[1:] + answers[:1], strict=True):
      records[row]['output'] = answer


def plant(
  pairs: Sequence[mining.Pair],
  *,
  shares: Mapping[str, float],
  seed: int = 0,
) -> list[dict]:
  """Records in the Alpaca schema with `id` and `defect`, defects planted.

  Args:
    pairs: clean pairs, one record each, in this order.
    shares: defect -> share of the rows, together at most 1.
    seed: decides rows and contents.

  Raises:
    ValueError: An unknown defect, or shares that do not fit.
  """
  unknown = sorted(set(shares) - set(DEFECTS))
  if unknown:
    raise ValueError(f'unknown defects {unknown}; known: {list(DEFECTS)}')
  counts = {name: round(share * len(pairs)) for name, share in shares.items()}
  if min(counts.values(), default=0) < 0 or sum(counts.values()) > len(pairs):
    raise ValueError(
      f'shares {dict(shares)} of {len(pairs)} rows: each at least 0 and '
      'together at most 1'
    )
  if counts.get('swapped') == 1:
    raise ValueError(
      f'a swap needs two rows; raise the share of swapped or the '
      f'number of rows ({len(pairs)})'
    )
  rng = random.Random(f'planted defects {seed}')
  records = [
    {
      'id': f'{pair.package}/{pair.module}:{pair.name}',
      'instruction': pair.query,
      'output': pair.answer,
      'defect': CLEAN,
    }
    for pair in pairs
  ]
  rows = rng.sample(range(len(records)), sum(counts.values()))
  # A cut-off or nonsense row keeps its own pair, so swapping touches only
  # rows that are marked for it.
  for name, count in counts.items():
    chosen, rows = rows[:count], rows[count:]
    for row in chosen:
      record = records[row]
      record['defect'] = name
      if name == 'nonsense':
        record['instruction'] = nonsense_query(record['instruction'], rng)
      elif name == 'echo':
        record['output'] = echo_answer(record['instruction'], rng)
      elif name == 'cut_off':
        record['output'] = cut_answer(record['output'], rng)
      elif name == 'boilerplate':
        record['output'] = boilerplate_answer(rng)
    if name == 'swapped':
      _swap(records, chosen)
  return records


def write_demo_data(
  path: str | os.PathLike,
  *,
  rows: int,
  shares: Mapping[str, float],
  seed: int = 0,
  packages: Sequence[str] = mining.DEMO_PACKAGES,
  limits: mining.Limits = DEMO_LIMITS,
  held_out: int = 0,
  held_out_path: str | os.PathLike | None = None,
) -> dict:
  """Mines, plants defects and writes the demo's JSONL, atomically.

  Args:
    path: the file to write.
    rows: number of pairs, drawn evenly by content; all when there are fewer.
    shares: defect -> share of the rows.
    seed: the seed of the defects.
    packages: where to mine, see `mining.mine`.
    limits: see `mining.Limits`.
    held_out: clean pairs to write besides, none of them among the rows.
    held_out_path: where to.

  Returns:
    `rows`, `held_out`, `defects` (name -> rows), `source` (one line: counts,
    versions and content hash of the mined pairs), `content_hash` of the drawn
    pairs.
  """
  mined = mining.mine(packages, limits=limits)
  drawn = mining.draw(mined, rows)
  records = plant(drawn, shares=shares, seed=seed)
  _write_lines(path, records)
  rest = []
  if held_out:
    used = {(pair.query, pair.answer) for pair in drawn}
    left = [pair for pair in mined if (pair.query, pair.answer) not in used]
    rest = plant(mining.draw(left, held_out), shares={})
    _write_lines(held_out_path, rest)
  counts = count_defects(record['defect'] for record in records)
  return {
    'rows': len(records),
    'held_out': len(rest),
    'defects': counts,
    'source': mining.describe(mined),
    'content_hash': mining.content_hash(drawn),
  }


def _write_lines(path, records) -> None:
  path = pathlib.Path(path)
  lines = (json.dumps(record) + '\n' for record in records)
  with checksums.atomic_file(path) as file:
    file.write(''.join(lines).encode())


def count_defects(defects: Iterable[str]) -> dict[str, int]:
  """Rows of each kind, clean rows first, in a fixed order."""
  counts = dict.fromkeys((CLEAN, *DEFECTS), 0)
  for name in defects:
    counts[name] += 1
  return counts
