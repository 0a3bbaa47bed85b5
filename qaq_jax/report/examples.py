"""Samples to read, as text and never as HTML."""

import numpy as np

from qaq_jax.report import markup
from qaq_jax.selection.columns import MissingColumn

_LEAD = 110  # characters of the query on the closed line

_ENDS = (
  (
    'Lowest RMI',
    'Look here for queries that the answer does not belong to, or that make '
    'no sense.',
  ),
  (
    'Highest RMI',
    'Look here for answers that repeat the query, echo its key words or fill '
    'a template.',
  ),
)


def examples(columns, chosen, samples, count, max_characters) -> str:
  """The samples of lowest and highest RMI under the strong model."""
  models = markup.models_of(columns)
  if samples is None or not models:
    return ''
  scores = {}
  for model in models:
    try:
      scores[model] = columns.rmi(model)
    except MissingColumn:
      continue
  if models[0] not in scores:
    return ''
  rmi = scores[models[0]]
  used = np.flatnonzero(np.isfinite(rmi))
  order = used[np.lexsort((columns.row[used], rmi[used]))]
  count = min(count, len(order) // 2)
  if not count:
    return ''
  out = [
    '<h2>Samples at the ends</h2><p>RMI under '
    f'{markup.role_name(columns, models[0])}. Read some before you trust a '
    'rule.</p>'
  ]
  for (title, hint), index in zip(
    _ENDS, (order[:count], order[::-1][:count]), strict=True
  ):
    out.append(f'<h3>{title}</h3><p class="soft">{hint}</p>')
    for i in index:
      row = int(columns.row[i])
      (sample,) = samples.iter_rows(row, row + 1)
      facts = [f'row {row}', f'RMI {markup.number(float(rmi[i]))}']
      facts += [
        f'{markup.escape(model)} {markup.number(float(values[i]))}'
        for model, values in scores.items()
        if model != models[0]
      ]
      log_ppl = columns.log_ppl_q(models[0])[i]
      facts.append(f'log PPL(Q) {markup.number(float(log_ppl))}')
      out.append(_example(sample, facts, bool(chosen[i]), max_characters))
  return ''.join(out)


def _example(sample, facts, is_chosen, max_characters) -> str:
  lead = ' '.join(sample.query[: 2 * _LEAD].split())
  if len(lead) > _LEAD:
    lead = lead[:_LEAD] + '\u2026'
  tag = '<span class="tag">chosen</span>' if is_chosen else ''
  return (
    f'<details><summary><span class="soft">{" &middot; ".join(facts)}</span>'
    f'{tag}<br>{markup.escape(lead)}</summary>'
    f'<b>Query</b>{_block(sample.query, max_characters)}'
    f'<b>Answer</b>{_block(sample.answer, max_characters)}</details>'
  )


def _block(content, max_characters) -> str:
  cut = ''
  if len(content) > max_characters:
    cut = (
      f'<p class="soft">{len(content) - max_characters:,} more characters are '
      'not shown.</p>'
    )
  # A browser drops one line feed after <pre>; this one, not the sample's.
  return f'<pre>\n{markup.escape(content[:max_characters])}</pre>{cut}'
