"""Compares verdicts of the harness with those of EvalPlus's own evaluator.

  python benchmarks/evalplus_agreement.py SAMPLES_eval_results.json \
      SAMPLES.humaneval_plus.results.jsonl

Both made from the same samples file; docs/evaluation.md has the commands.
Prints every sample on which they differ. EvalPlus's 'fail' and 'timeout' are
one here: it reports a test that ran too long as either.
"""

import collections
import json
import sys


def main():
  theirs_path, ours_path = sys.argv[1:]
  with open(theirs_path) as f:
    theirs = json.load(f)['eval']
  with open(ours_path) as f:
    records = [json.loads(line) for line in f][1:]
  ours = {(r['task_id'], r['number']): r['suites'] for r in records}
  counts = collections.Counter()
  missing = set(ours)
  for task_id, results in theirs.items():
    for number, result in enumerate(results):
      missing.discard((task_id, number))
      suites = ours.get((task_id, number))
      if suites is None:
        print(f'{task_id} {number}: no verdict of ours')
        counts['missing'] += 1
        continue
      for suite in ('base', 'plus'):
        their_status = result[f'{suite}_status']
        verdict = suites[suite]
        same = (their_status == 'pass') == (verdict['status'] == 'pass')
        counts[f'{suite}: {"same" if same else "different"}'] += 1
        counts[f'{suite}: passed by ours'] += verdict['status'] == 'pass'
        if not same:
          print(
            f'{task_id} {number} {suite}: EvalPlus {their_status}, ours '
            f'{verdict["status"]} {verdict["reason"]} {verdict["failed"]}'
          )
  for task_id, number in sorted(missing):
    print(f'{task_id} {number}: no verdict of EvalPlus')
    counts['missing'] += 1
  for name, count in sorted(counts.items()):
    print(f'{count:6} {name}')
  sys.exit(
    bool(
      counts['missing']
      + sum(count for name, count in counts.items() if 'different' in name)
    )
  )


if __name__ == '__main__':
  main()
