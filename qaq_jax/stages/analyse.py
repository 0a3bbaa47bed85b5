"""The analyse stage: correlations of scores, overlaps of rules."""

import ml_collections

from qaq_jax.runtime import console
from qaq_jax.selection import analyses
from qaq_jax.stages import artifacts
from qaq_jax.workdir import files
from qaq_jax.workdir.layout import WorkDir


def run(config: ml_collections.ConfigDict, workdir: WorkDir) -> dict:
  """Rank correlations of scores and overlaps of rules."""
  table = artifacts.score_columns(config, workdir)
  correlations = analyses.correlations(table)
  console.say('Spearman rank correlations:')
  for c in correlations:
    console.say(
      f'  RMI ({c["model"]}) with {c["score"]} ({c["other"]}): '
      f'{c["spearman"]:+.4f}'
    )
  share = config.analyse.share
  found, left_out = analyses.select_all(
    table,
    budget={'share': share},
    seed=config.seed,
    options=lambda name: artifacts.rule_options(config, workdir, name),
  )
  rows = {name: selection.rows for name, selection in found.items()}
  shared = analyses.overlap(rows, of='first')
  console.say(
    f'Overlap at {share:.0%}: of the rows that the rule on the left keeps, '
    'those that the rule above keeps too:'
  )
  console.say(analyses.format_overlap(list(rows), shared))
  result = {
    'spearman': correlations,
    'overlap': {
      'share': share,
      'of': 'rows of the first rule',
      'rules': list(rows),
      'matrix': [[round(float(x), 6) for x in line] for line in shared],
      'left_out': left_out,
    },
  }
  files.write_json(workdir.analyses, result)
  console.say(f'wrote {workdir.analyses}')
  return {'spearman': correlations}
