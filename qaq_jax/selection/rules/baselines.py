"""The baselines that QAQ is measured against; sources in each rule.

Loss-ratio and perplexity-ratio forms of IFD order samples differently, so
each is a rule of its own.
"""

import numpy as np

from qaq_jax.selection import budget as budget_lib
from qaq_jax.selection import columns as columns_lib
from qaq_jax.selection.rules import external, neighbours, rule
from qaq_jax.selection.rules.rule import Candidates, register

_LENGTH_BINS = 50

_MODEL = ('strong', 'whose score: a role or a model name')
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
  models=rule.present_roles,
  options={'model': ('strong', 'whose tokens: a role or a model name')},
)
def _length_long(columns, options, context):
  (model,) = rule.chosen_model(columns, options)
  return Candidates(columns.length(model))


@register(
  'length_matched',
  keeps='a random draw with the answer lengths of another rule',
  source='arXiv 2410.09335 (length is a hard control to beat)',
  needs=('n_a_{model}', 'those of select.reference'),
  score='answer tokens',
  models=rule.present_roles,
  options={
    'model': ('strong', 'whose tokens: a role or a model name'),
    'reference': ('diff_high', 'the rule whose lengths are matched'),
    'num_bins': (_LENGTH_BINS, 'equal-count bins of length, ties together'),
  },
  threshold=False,
)
def _length_matched(columns, options, context):
  if options['reference'] == 'length_matched':
    raise ValueError('select.reference: length_matched cannot match itself.')
  (model,) = rule.chosen_model(columns, options)
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
  hashes = budget_lib.row_hash(
    columns.row[index], context.seed, budget_lib.LENGTH_MATCHED
  )
  order = np.lexsort((columns.row[index], hashes, bin_of))
  size = np.bincount(bin_of, minlength=len(wanted))
  place = np.arange(len(index)) - np.repeat(np.cumsum(size) - size, size)
  picks = index[order][place < np.repeat(wanted, size)]
  # Round robin over the bins would serve no one: best first = by hash.
  picks = picks[
    np.lexsort(
      (
        columns.row[picks],
        budget_lib.row_hash(
          columns.row[picks], context.seed, budget_lib.LENGTH_MATCHED
        ),
      )
    )
  ]
  return Candidates(length, picks=picks, notes=notes)


@register(
  'ppl_window',
  keeps='the middle of PPL(A given Q) or PPL(Q): nearest to the median rank',
  source='idea of arXiv 2309.04564',
  needs=('nll_a_given_q_{model}, n_a_{model}, or nll_q_{model}, n_q_{model}',),
  score='log PPL',
  models=rule.chosen_model,
  options={
    'model': _MODEL,
    'of': ('a_given_q', "whose perplexity: 'a_given_q' or 'q'"),
  },
  threshold=False,
)
def _ppl_window(columns, options, context):
  (model,) = rule.chosen_model(columns, options)
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
  models=rule.chosen_model,
  options={'model': _MODEL},
)
def _ifd(columns, options, context):
  (model,) = rule.chosen_model(columns, options)
  score = columns.ifd(model)
  return Candidates(score, dropped={'ratio > 1': score > 1})


def _published_model(form):
  """Eligibility for a published IFD: the model that was scored for it."""

  def models(columns, options):
    if options['model'] != 'auto':
      return rule.chosen_model(columns, options)
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
  models=rule.chosen_model,
  options={'model': _MODEL},
  highest=False,
)
def _r_ifd(columns, options, context):
  (model,) = rule.chosen_model(columns, options)
  # Ordered by RMI: exp(-RMI) merges or overflows what RMI tells apart.
  return Candidates(columns.r_ifd(model), order_N=columns.rmi(model))


@register(
  'rds_plus',
  keeps='target examples take turns picking their nearest unused sample',
  source='RDS+, arXiv 2503.01807',
  needs=('embeddings of select.model (config.score.embeddings=True)',),
  score='best cosine',
  models=rule.chosen_model,
  options={
    'model': _MODEL,
    'embeddings': (None, 'array [rows, D] or .npy path, row by row'),
    'targets': (None, 'array [T, D] or .npy path: the target examples'),
    'targets_path': (None, 'where the target examples came from'),
  },
  threshold=False,
)
def _rds_plus(columns, options, context):
  for name, how in (
    ('embeddings', 'score with `--config.score.embeddings=True`'),
    (
      'targets',
      'set `--config.select.targets_path` to a file of examples of '
      'what the model should learn',
    ),
  ):
    if options[name] is None:
      raise columns_lib.MissingColumn(f'rds_plus needs {name}: {how}.')
  embeddings = neighbours.as_embeddings(options['embeddings'], 'embeddings')
  targets = neighbours.as_embeddings(options['targets'], 'targets')
  if len(embeddings) != columns.num_rows:
    raise ValueError(
      f'rds_plus: {len(embeddings)} embeddings for {columns.num_rows} rows of '
      'the score table; they must belong to the same run.'
    )
  notes = []
  warning = neighbours.evaluation_warning(options['targets_path'])
  if warning:
    notes.append(warning)
  candidate = context.eligible_N & neighbours.finite_rows(embeddings)
  picks, cosine = neighbours.take_turns(
    embeddings,
    targets,
    candidate,
    columns.row,
    count=context.max_picks(),
    seed=context.seed,
  )
  score = np.full(columns.num_rows, np.nan)
  score[picks] = cosine
  notes.append(f'{len(targets):,} target examples took turns')
  missing = {'no embedding': context.eligible_N & ~candidate}
  return Candidates(score, dropped=missing, picks=picks, notes=notes)


@register(
  'scar',
  keeps='highest precomputed score of the SCAR style ranker',
  source='SCAR, arXiv 2406.10882',
  needs=('a column of the table, or a file of (row or id, score)',),
  score='scar',
  models=rule.present_roles,
  options={
    'column': ('scar', 'name of the score in the table or the file'),
    'path': (None, 'Parquet, CSV or JSONL file of scores'),
    'key': ('auto', "join the file on 'row' or 'id'"),
    'scores': (None, 'array [rows] of scores, instead of a file'),
  },
)
def _scar(columns, options, context):
  if options['scores'] is not None:
    score = np.asarray(options['scores'], np.float64)
    if score.shape != (columns.num_rows,):
      raise ValueError(
        f'select.scores has shape {score.shape}; the score table has '
        f'{columns.num_rows} rows.'
      )
  elif options['path'] is not None:
    score = external.read_scores(
      options['path'], columns, options['column'], options['key']
    )
  elif columns.has(options['column']):
    score = columns.raw(options['column'])
  else:
    raise columns_lib.MissingColumn(
      f'The score table has no column {options["column"]!r}: rank the data '
      'with the PyPI package scar-tool, write (row, scar) to a Parquet, CSV '
      'or JSONL file and set `--config.select.path=FILE`.'
    )
  return Candidates(np.where(np.isfinite(score), score, np.nan))
