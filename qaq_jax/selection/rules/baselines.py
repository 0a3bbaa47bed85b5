"""The baselines that QAQ is measured against; sources in each rule.

Loss-ratio and perplexity-ratio forms of IFD order samples differently, so
each is a rule of its own.
"""

import numpy as np

from qaq_jax.selection import budget as budget_lib
from qaq_jax.selection.rules import eligible, rule
from qaq_jax.selection.rules.rule import Candidates, register

_LENGTH_BINS = 50
LENGTH_CONTROL = 'length_matched'  # what to compare with where lengths differ

_MODEL_SCORED = (
  'auto',
  'whose score: a role or a model name; auto = the one model that has it, '
  'else the strong one',
)


@register(
  'length_long',
  keeps='the longest answers, in tokens of the strong model',
  source='arXiv 2402.04833; see also 2410.09335',
  needs=('n_a_{model}',),
  score='answer tokens',
  models=eligible.present_roles,
  options={'model': ('strong', 'whose tokens: a role or a model name')},
)
def _length_long(columns, options, context):
  (model,) = eligible.chosen_model(columns, options)
  return Candidates(columns.length(model))


@register(
  LENGTH_CONTROL,
  keeps='a random draw with the answer lengths of another rule',
  source='arXiv 2410.09335 (length is a hard control to beat)',
  needs=('n_a_{model}', 'those of select.reference'),
  score='answer tokens',
  models=eligible.present_roles,
  options={
    'model': ('strong', 'whose tokens: a role or a model name'),
    'reference': ('diff_high', 'the rule whose lengths are matched'),
    'num_bins': (_LENGTH_BINS, 'equal-count bins of length, ties together'),
  },
  threshold=False,
  stream=3,
)
def _length_matched(columns, options, context):
  rule.get_rule(options['reference'], 'select.reference')
  if options['reference'] == LENGTH_CONTROL:
    raise ValueError('select.reference: length_matched cannot match itself.')
  (model,) = eligible.chosen_model(columns, options)
  length = columns.length(model)
  pool = context.eligible_N & np.isfinite(length)
  reference = context.select(options['reference'])
  unusable = reference[~pool[reference]]
  reference = reference[pool[reference]]
  notes = [
    f'lengths of the {len(reference):,} rows that {options["reference"]} keeps '
    'under the same budget'
  ]
  if len(unusable):
    notes.append(
      f'{len(unusable):,} of them are not eligible here and are not matched'
    )
  edges = (
    np.unique(
      np.quantile(
        length[pool],
        np.linspace(0, 1, int(options['num_bins']) + 1)[1:-1],
        method='lower',
      )
    )
    if pool.any()
    else np.zeros(0)
  )
  wanted = np.bincount(
    np.searchsorted(edges, length[reference], side='left'),
    minlength=len(edges) + 1,
  )
  index = np.flatnonzero(pool)
  bin_of = np.searchsorted(edges, length[index], side='left')
  row = columns.row[index]
  hashes = budget_lib.row_hash(row, context.seed, context.stream)
  order = np.lexsort((row, hashes, bin_of))
  size = np.bincount(bin_of, minlength=len(wanted))
  place = np.arange(len(index)) - np.repeat(np.cumsum(size) - size, size)
  taken = order[place < np.repeat(wanted, size)]
  # Round robin over the bins would serve no one: best first = by hash.
  picks = index[taken[np.lexsort((row[taken], hashes[taken]))]]
  return Candidates(length, picks=picks, notes=notes)


@register(
  'ppl_window',
  keeps='the middle of PPL(A given Q) or PPL(Q): nearest to the median rank',
  source='idea of arXiv 2309.04564',
  needs=('nll_a_given_q_{model}, n_a_{model}, or nll_q_{model}, n_q_{model}',),
  score='log PPL',
  models=eligible.chosen_model,
  options={
    'model': eligible.MODEL,
    'of': ('a_given_q', "whose perplexity: 'a_given_q' or 'q'"),
  },
  threshold=False,
)
def _ppl_window(columns, options, context):
  (model,) = eligible.chosen_model(columns, options)
  terms = {'a_given_q': columns.log_ppl_a_given_q, 'q': columns.log_ppl_q}
  if options['of'] not in terms:
    raise ValueError(
      f"select.of is {options['of']!r}; it is 'a_given_q' or 'q'."
    )
  log_ppl = terms[options['of']](model)
  # Distance to the middle in twice the average rank: an exact integer, so
  # that a row above and a row below the median tie.
  index = np.flatnonzero(context.eligible_N & np.isfinite(log_ppl))
  order = np.full(len(log_ppl), np.nan)
  if len(index):
    values, inverse, count = np.unique(
      log_ppl[index], return_inverse=True, return_counts=True
    )
    del values
    twice = 2 * np.cumsum(count) - count + 1
    order[index] = -np.abs(twice[inverse] - (len(index) + 1))
  return Candidates(log_ppl, order_N=order)


@register(
  'ifd',
  keeps='highest log PPL(A given Q) / log PPL(A) <= 1 (ratio of losses)',
  source='idea of arXiv 2308.12032, shared sequences',
  needs=('nll_a_given_q_{model}, nll_a_{model}, n_a_{model}',),
  score='ratio of losses',
  models=eligible.chosen_model,
  options={'model': eligible.MODEL},
)
def _ifd(columns, options, context):
  (model,) = eligible.chosen_model(columns, options)
  score = columns.ifd(model)
  return Candidates(score, dropped={'ratio > 1': score > 1})


def _published_model(form):
  """Eligibility for a published IFD: the model that was scored for it."""

  def models(columns, options):
    if options['model'] != 'auto':
      return eligible.chosen_model(columns, options)
    having = columns.with_column(form)
    return (having[0],) if len(having) == 1 else (columns.model('strong'),)

  return models


@register(
  'ifd_cherry',
  keeps='highest published IFD <= 1 (ratio of mean losses, Alpaca prompt)',
  source='arXiv 2308.12032',
  needs=('ifd_cherry_{model}',),
  score='ratio of losses',
  models=_published_model('ifd_cherry'),
  options={'model': _MODEL_SCORED},
)
def _ifd_cherry(columns, options, context):
  (model,) = _published_model('ifd_cherry')(columns, options)
  score = columns.published_ifd('ifd_cherry', model)
  return Candidates(score, dropped={'ratio > 1': score > 1})


@register(
  'ifd_superfilter',
  keeps='highest Superfiltering IFD < 1 (ratio of perplexities)',
  source='arXiv 2402.00530',
  needs=('ifd_superfilter_{model}',),
  score='ratio of PPLs',
  models=_published_model('ifd_superfilter'),
  options={'model': _MODEL_SCORED},
)
def _ifd_superfilter(columns, options, context):
  (model,) = _published_model('ifd_superfilter')(columns, options)
  score = columns.published_ifd('ifd_superfilter', model)
  return Candidates(score, dropped={'ratio >= 1': score >= 1})


@register(
  'r_ifd',
  keeps='lowest PPL(Q given A) / PPL(Q) = exp(-RMI), no strata',
  source='ACL Findings 2024.958',
  needs=(
    'nll_q_{model}, n_q_{model}, nll_q_given_a_{model}, n_q_given_a_{model}',
  ),
  score='ratio of PPLs',
  models=eligible.chosen_model,
  options={'model': eligible.MODEL},
  highest=False,
)
def _r_ifd(columns, options, context):
  (model,) = eligible.chosen_model(columns, options)
  # Ordered by RMI: exp(-RMI) merges or overflows what RMI tells apart.
  return Candidates(columns.r_ifd(model), order_N=columns.rmi(model))
