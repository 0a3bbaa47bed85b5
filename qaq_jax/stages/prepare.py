"""The prepare stage: input data to prepared samples."""

import shutil

import ml_collections

from qaq_jax.data import samples
from qaq_jax.stages import artifacts, options
from qaq_jax.workdir.layout import WorkDir


def check(config: ml_collections.ConfigDict) -> None:
  """Refuses a source that cannot be read by what is said of it."""
  options.of(samples.DataSource, config.data)


def run(config: ml_collections.ConfigDict, workdir: WorkDir) -> dict:
  """Input data -> prepared samples."""
  artifacts.check_mined(workdir, config.data.path)
  source = artifacts.data_source(config, workdir)
  scored = {f.get('samples') for f in artifacts.fingerprints(workdir).values()}
  info = samples.current(source, workdir.samples)
  if info is None and not scored:
    info = samples.prepare(source, workdir.samples)
  elif info is None:
    # There are scores: other samples must not take the place of theirs.
    candidate = workdir.samples.with_name('samples.candidate')
    info = samples.prepare(source, candidate)
    if info['content_hash'] not in scored:
      shutil.rmtree(candidate)
      raise ValueError(
        f'{workdir.path} holds scores of other samples than {source.path} '
        f'has now ({info["rows"]:,} rows): use another --workdir, or delete '
        'its folder "scores" to score these'
      )
    shutil.rmtree(workdir.samples, ignore_errors=True)
    candidate.rename(workdir.samples)
  if not info['rows']:
    raise ValueError(f'{source.path} has no rows: there is nothing to score')
  return {k: info[k] for k in ('rows', 'statuses', 'content_hash')}
