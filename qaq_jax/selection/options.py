"""What is chosen from a score table, and how rows are ranked for it."""

import dataclasses

BY = ('own', 'strong', 'weak')
ENGINES = ('memory', 'duckdb')


@dataclasses.dataclass(frozen=True)
class StrataOptions:
  """Strata inside which rows are ranked.

  Attributes:
    num_strata: equal-count bins by PPL(Q); 1 = global ranking.
    by: 'own', 'strong' or 'weak': whose PPL(Q) makes the bins.
  """

  num_strata: int = 10
  by: str = 'own'

  def __post_init__(self):
    if self.num_strata < 1:
      raise ValueError(
        f'strata.num_strata is {self.num_strata}; it must be >= 1.'
      )
    if self.by not in BY:
      raise ValueError(f'strata.by is {self.by!r}; it is one of {BY}.')


@dataclasses.dataclass(frozen=True)
class SelectOptions:
  """Which rows are kept.

  Attributes:
    rule: a name of the registry; `python -m qaq_jax.selection` lists them.
    include_truncated: whether rows of status `truncated` are eligible.
    engine: 'memory', or 'duckdb', which makes the same choice on disk, for
      tables beyond memory.
    memory_gb: the memory that DuckDB may use before it goes to disk.
    output: the file in the work directory: .jsonl, .jsonl.gz, .json, or
      .parquet (for Parquet input, in its own schema).
  """

  rule: str = 'diff_high'
  include_truncated: bool = False
  engine: str = 'memory'
  memory_gb: float = 4.0
  output: str = 'selected.jsonl'

  def __post_init__(self):
    if self.engine not in ENGINES:
      raise ValueError(
        f'select.engine is {self.engine!r}; it is one of ' + ', '.join(ENGINES)
      )


@dataclasses.dataclass(frozen=True)
class AuditOptions:
  """What every rule lets through, by a label in the input's records.

  Attributes:
    label: name of the field, 'defect' say.
    share: budget of every rule.
    rules: names; () = every rule that the score table can serve.
  """

  label: str = ''
  share: float = 0.25
  rules: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class AnalyseOptions:
  """Overlaps of rules.

  Attributes:
    share: budget of every rule whose overlap is shown.
  """

  share: float = 0.25
