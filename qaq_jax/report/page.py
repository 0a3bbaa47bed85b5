"""Writes the report page of a finished run."""

import html
from collections.abc import Mapping

import numpy as np
from etils import epath

from qaq_jax.report import examples, figures, tables
from qaq_jax.report.style import STYLE
from qaq_jax.selection import columns as columns_lib
from qaq_jax.selection.select import Selection
from qaq_jax.workdir import files

# Nothing is loaded and nothing runs, whatever a sample's text contains.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def write_report(
  path,
  table,
  selection: Selection,
  samples=None,
  *,
  title: str = 'QAQ report',
  info: Mapping[str, str] | None = None,
  num_examples: int = 10,
  max_characters: int = 4000,
  overlap_budget=None,
) -> None:
  """Writes one self-contained HTML page: no script, no network.

  Args:
    path: the page, `WORKDIR/report/index.html`; its folder is made.
    table: `scores.parquet` (path), a pyarrow Table, a mapping of columns or
      ScoreColumns. Roles and strata are the selection's.
    selection: a selection from `qaq_jax.selection.select.select`.
    samples: the samples with `iter_rows(start, stop)` giving records with
      `query` and `answer`; None leaves the examples out.
    title: the title of the page.
    info: name -> value, printed at the end (fingerprints, versions, ...).
    num_examples: samples shown at each end of RMI.
    max_characters: the most characters of a query or answer; longer ones are
      cut, said so.
    overlap_budget: the budget at which the rules are compared; None = the
      selection's, where that counts rows or a share, else a share of 0.25.
  """
  report = selection.report
  if isinstance(table, columns_lib.ScoreColumns):
    columns = table
  else:
    columns = columns_lib.ScoreColumns(
      table,
      roles=report['roles'],
      num_strata=report['strata']['num_strata'],
      by=report['strata']['by'],
      include_truncated=report['include_truncated'],
    )
  chosen = np.isin(columns.row, selection.rows)
  if overlap_budget is None:
    overlap_budget = {
      name: value
      for name, value in report['budget'].items()
      if name in ('share', 'rows')
    } or {'share': 0.25}
  sections = [
    tables.head(title, report),
    tables.status(columns),
    figures.histograms(columns, chosen),
    figures.maps(columns, chosen),
    tables.strata(report),
    tables.correlations(columns),
    tables.overlaps(columns, overlap_budget, report['seed']),
    examples.examples(columns, chosen, samples, num_examples, max_characters),
    tables.run_info(report, info or {}),
  ]
  page = (
    '<!doctype html><html lang="en"><head><meta charset="utf-8">'
    f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
    '<meta name="viewport" content="width=device-width, initial-scale=1">'
    f'<title>{html.escape(title)}</title><style>{STYLE}</style></head><body>'
    f'<main>{"".join(filter(None, sections))}</main></body></html>\n'
  )
  path = epath.Path(path)
  # Bytes of the input that are not UTF-8 arrive as lone surrogates.
  files.write_atomic(path, page.encode('utf-8', 'backslashreplace'))
