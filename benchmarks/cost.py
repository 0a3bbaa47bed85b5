"""What part of the strong model's work QAQ could do without.

  python benchmarks/cost.py WORKDIR/scores.parquet [...]
  python benchmarks/cost.py --synthetic=300000 --correlation=0.1
  python benchmarks/cost.py FULL/scores.parquet --cheap=SHORT/scores.parquet \
      --window=128
  python benchmarks/cost.py FULL/scores.parquet --cheap=INT8/scores.parquet \
      --rate=2

Simulated on finished tables of both models: a strategy sees the weak model's
scores of all rows, and of the strong model's only those that it pays for. Its
choice (diff_high) is compared with the one from all scores.

Work is counted in tokens of the strong model's sequences, templates apart: the
query alone costs n_q, the query after the answer n_a + n_q, the answer after
the query another n_a. Printed for each table and share of rows chosen:

  skipped    share of the rows whose RMI is not computed: those with the
             highest weak rank, which could only be chosen with a strong rank
             above it. Their PPL(Q) is computed, since strata need it, and so
             is the RMI of a random tenth of them, to estimate how many of them
             rank below a row
  saved      of the tokens that all four terms cost
  overlap    of the choice with the full one; mean and lowest of the seeds
  certain    share of the chosen rows that are certain whatever the skipped
             ones are: their lowest possible diff is above the line that the
             highest possible diffs of the others leave

`--synthetic` makes a table of so many rows: normal RMIs whose ranks correlate
as said, log-normal PPL(Q), lengths drawn from benchmarks/lengths.json. It says
what the number of rows does, nothing of real models.

`--cheap` is a table of the same rows whose strong model was scored in a cheaper
way: with a shorter window (`score.max_length`, `on_long='truncate_context'`;
`--window` counts its tokens) or faster (int8_dynamic; `--rate` says how much, 2
is what a chip's data sheet allows at most). Printed: the choice from it alone,
and from two stages, where the share `again` of the rows get their full RMI and
the others keep the cheap one: those of the largest diff by the cheap table, or
for `near` those whose diff is nearest to the line. `saved` is of the tokens of
Q alone and Q after A; the weak model's scores are full.
"""

import argparse
import json
import pathlib

import numpy as np

from qaq_jax.selection import budget, columns, strata

SKIPPED = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4)
SAMPLED = 0.1  # of the skipped rows


def ranks_from_some(rmi, stratum, paid, weight):
  """Ranks in strata where the unpaid rows are known by a sample alone.

  Args:
    rmi: of all rows; read only where `paid`.
    stratum: of all rows.
    paid: mask of the rows whose RMI is computed.
    weight: rows that each paid row stands for.

  Returns:
    Estimated rank in [0, 1] of each paid row, NaN elsewhere.
  """
  rank = np.full(len(rmi), np.nan)
  for k in range(stratum.max() + 1):
    rows = np.flatnonzero(paid & (stratum == k))
    if not len(rows):
      continue
    order = rows[np.argsort(rmi[rows], kind='stable')]
    below = np.cumsum(weight[order]) - weight[order]
    size = weight[rows].sum()
    rank[order] = below / max(size - 1, 1)
  return np.clip(rank, 0, 1)


def choose(score, rows, limit):
  candidate = np.isfinite(score)
  return budget.take(
    np.where(candidate, score, -9.0), candidate, rows, limit=limit
  ).index


def certain(rmi, stratum, weak, paid, limit):
  """Share of the choice that no value of the unpaid rows can change."""
  low = np.full(len(rmi), -np.inf)
  high = np.full(len(rmi), -np.inf)
  for k in range(stratum.max() + 1):
    here = stratum == k
    size, unknown = here.sum(), (here & ~paid).sum()
    rows = np.flatnonzero(here & paid)
    order = rows[np.argsort(rmi[rows], kind='stable')]
    below = np.arange(len(order))
    low[order] = below / max(size - 1, 1) - weak[order]
    high[order] = (below + unknown) / max(size - 1, 1) - weak[order]
    rest = np.flatnonzero(here & ~paid)
    high[rest] = 1 - weak[rest]
  # A row is certain if fewer than `limit` rows could be above it.
  ordered = np.sort(high[np.isfinite(high)])
  above = len(ordered) - np.searchsorted(ordered, low, side='left')
  # It counts itself: its own highest is not below its lowest.
  return float((above[np.isfinite(low)] <= limit).sum() / max(limit, 1))


def synthetic(number, correlation):
  """A score table of made-up rows."""
  rng = np.random.default_rng(0)
  shape = json.loads(
    (pathlib.Path(__file__).parent / 'lengths.json').read_text()
  )
  pick = rng.integers(0, len(shape['n_q']), number)
  n_q, n_a = (np.array(shape[n])[pick] for n in ('n_q', 'n_a'))
  shared = rng.normal(size=number)
  table = {'row': np.arange(number)}
  for model in ('strong', 'weak'):
    own = rng.normal(size=number)
    rmi = correlation**0.5 * shared + (1 - correlation) ** 0.5 * own
    log_ppl = np.exp(rng.normal(1, 0.4, number))
    table |= {
      f'nll_q_{model}': log_ppl * n_q,
      f'nll_q_given_a_{model}': (log_ppl - 0.3 * rmi) * n_q,
      f'n_q_{model}': n_q,
      f'n_q_given_a_{model}': n_q,
      f'n_a_{model}': n_a,
      f'status_{model}': np.full(number, 'ok'),
    }
  return table


def study(path, table, share, seeds):
  table = columns.ScoreColumns(table)
  both = table.usable_under([table.model('strong'), table.model('weak')])
  keep = both & np.isfinite(table.diff())
  rmi = table.rmi('strong')[keep]
  ppl = table.log_ppl_q('strong')[keep]
  n_q = table.length('strong', 'q')[keep]
  n_a = table.length('strong', 'a')[keep]
  rows = np.arange(keep.sum())
  # As one run over these rows would have them.
  stratum = strata.assign_strata(ppl, rows, table.num_strata)
  weak = strata.rank_in_strata(
    table.rmi('weak')[keep],
    strata.assign_strata(table.log_ppl_q('weak')[keep], rows, table.num_strata),
  )
  strong = strata.rank_in_strata(rmi, stratum)
  limit = int(share * len(rows))
  full = choose(strata.to_grid(strong - weak), rows, limit)
  everything = (2 * (n_q + n_a)).sum()
  line = float((strong - weak)[full].min())
  print(
    f'\n{path}: {len(rows):,} rows, {share:.0%} chosen, diff above '
    f'{line:.2f}, correlation of the ranks '
    f'{np.corrcoef(strong, weak)[0, 1]:.2f}'
  )
  print('| skipped | saved | overlap, mean | lowest | certain |')
  print('|---|---|---|---|---|')
  for skipped in SKIPPED:
    number = int(round(skipped * len(rows)))
    last = np.argsort(-weak, kind='stable')[:number]
    overlaps, saved = [], []
    for seed in range(seeds):
      rng = np.random.default_rng(seed)
      paid = np.ones(len(rows), bool)
      paid[last] = False
      sample = last[rng.random(number) < SAMPLED]
      weight = np.ones(len(rows))
      if len(sample):
        weight[sample] = number / len(sample)
      paid[sample] = True
      estimate = ranks_from_some(rmi, stratum, paid, weight)
      chosen = choose(strata.to_grid(estimate - weak), rows, limit)
      overlaps.append(len(np.intersect1d(chosen, full)) / limit)
      cost = n_q.sum() + (n_q + n_a)[paid].sum()
      saved.append(1 - cost / everything)
      if not number:
        break
    sure = certain(rmi, stratum, weak, paid, limit)
    print(
      f'| {skipped:.0%} | {np.mean(saved):.1%} | {np.mean(overlaps):.4f} | '
      f'{min(overlaps):.4f} | {sure:.1%} |'
    )


def cheaper(path, cheap_path, window, rate, share):
  full = columns.ScoreColumns(path)
  cheap = columns.ScoreColumns(cheap_path, include_truncated=True)
  if not np.array_equal(full.row, cheap.row):
    raise SystemExit(f'{path} and {cheap_path} are of different rows')
  keep = np.isfinite(full.diff()) & np.isfinite(cheap.rmi('strong'))
  n_q, n_a = (full.length('strong', of)[keep] for of in 'qa')
  rows, limit = np.arange(keep.sum()), int(share * keep.sum())

  def ranks(rmi, log_ppl):
    stratum = strata.assign_strata(log_ppl, rows, full.num_strata)
    return strata.rank_in_strata(rmi, stratum)

  weak = ranks(full.rmi('weak')[keep], full.log_ppl_q('weak')[keep])
  exact, rough = (
    (t.rmi('strong')[keep], t.log_ppl_q('strong')[keep]) for t in (full, cheap)
  )

  def diff(paid):
    mixed = [x.copy() for x in rough]
    for have, true in zip(mixed, exact, strict=True):
      have[paid] = true[paid]
    return strata.to_grid(ranks(*mixed) - weak)

  wanted = choose(diff(rows), rows, limit)
  rough_diff = diff(rows[:0])
  first = np.argsort(-rough_diff, kind='stable')
  line = rough_diff[first[limit - 1]]
  nearest = np.argsort(np.abs(rough_diff - line), kind='stable')
  length = n_q + n_a
  short = np.minimum(length, window) if window else length
  everything = (n_q + length).sum()
  cut = f', {(length > window).mean():.0%} of the rows cut' if window else ''
  print(f'\n{cheap_path}: {len(rows):,} rows, {share:.0%} chosen{cut}')
  print('| again | saved | overlap | overlap, near |')
  print('|---|---|---|---|')
  for again in (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8):
    kept = []
    for order in (first, nearest):
      paid = order[: int(again * len(rows))]
      if window:  # a row that was not cut has its full RMI already
        paid = paid[length[paid] > window]
      chosen = choose(diff(paid), rows, limit)
      kept.append(len(np.intersect1d(chosen, wanted)) / limit)
      if order is first:
        twice = length if rate == 1 else n_q + length  # Q alone, too
        cost = (n_q.sum() + short.sum()) / rate + twice[paid].sum()
    print(
      f'| {again:.0%} | {1 - cost / everything:.1%} | {kept[0]:.4f} | '
      f'{kept[1]:.4f} |'
    )


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument('tables', nargs='*')
  parser.add_argument('--synthetic', type=int, default=0)
  parser.add_argument('--correlation', type=float, default=0.1)
  parser.add_argument('--shares', default='0.1,0.25,0.5')
  parser.add_argument('--seeds', type=int, default=20)
  parser.add_argument('--cheap', default='')
  parser.add_argument('--window', type=int, default=0)
  parser.add_argument('--rate', type=float, default=1.0)
  args = parser.parse_args()
  if args.cheap:
    for share in map(float, args.shares.split(',')):
      cheaper(args.tables[0], args.cheap, args.window, args.rate, share)
    return
  tables = {path: path for path in args.tables}
  if args.synthetic:
    tables[f'synthetic, {args.correlation}'] = synthetic(
      args.synthetic, args.correlation
    )
  for path, made in tables.items():
    for share in map(float, args.shares.split(',')):
      study(path, made, share, args.seeds)


if __name__ == '__main__':
  main()
