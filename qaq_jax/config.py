"""The default config, with one comment per field, and the config argument.

A recipe in `configs/` calls `get_default` and states only what differs. The
stages read the resolved config at their door; the rooms behind it take plain
arguments.
"""

import ast
import importlib.resources

import ml_collections
from ml_collections.config_dict import placeholder

from qaq_jax.data.types import REVERSE_INSTRUCTION


def get_default() -> ml_collections.ConfigDict:
  """Returns the config that every recipe starts from."""
  c = ml_collections.ConfigDict()
  c.seed = 0
  c.stages = ('prepare', 'score', 'select', 'report')  # what `qaq run` runs

  c.data = ml_collections.ConfigDict()
  # A file, a folder, a glob, a saved data set, or a hub id. '{workdir}' in it
  # is the work directory.
  c.data.path = ''
  c.data.format = 'auto'  # jsonl, json, parquet, hf
  c.data.name = ''  # configuration of a hub data set; '' = its default
  c.data.split = 'train'  # of a hub or saved data set
  c.data.revision = ''  # branch, tag or commit of a hub data set
  # Ours -> the input's: query, input, answer, messages, system, id. Empty:
  # recognised from the first records, and printed.
  c.data.columns = ml_collections.ConfigDict()
  for column in ('query', 'input', 'answer', 'messages', 'system', 'id'):
    c.data.columns[column] = ''
  c.data.turns = 'single'  # or 'first', 'last': what to do with more turns
  c.data.strip = True  # leading and trailing white space of query and answer
  c.data.limit = 0  # first rows only; 0 = all

  # Name -> model. Any names; `roles` says which is strong and which weak.
  c.models = ml_collections.ConfigDict()
  c.roles = ml_collections.ConfigDict()
  c.roles.strong = 'strong'
  c.roles.weak = 'weak'

  c.score = ml_collections.ConfigDict()
  c.score.max_length = 2048  # tokens of the longer sequence
  c.score.on_long = 'skip'  # or 'truncate_context'
  c.score.reverse_instruction = REVERSE_INSTRUCTION
  c.score.system_prompt = ''  # '' = the template's own default
  # What templates that print a date print (Llama 3.1 and later).
  c.score.date_string = '26 Jul 2024'
  c.score.author_compatible = False  # the released scorer's two sequences
  c.score.embeddings = False  # pooled hidden states, for rule rds_plus
  # rds_plus: examples of the target tasks, in any format that data.path has.
  c.score.targets_path = ''
  c.score.ifd_cherry = False  # two more sequences per row
  c.score.cherry_limit = 512  # tokens of prompt and answer, as released
  c.score.ifd_superfilter = False  # two more sequences per row
  c.score.superfilter_limit = 1024  # tokens of prompt and answer, as released
  # Likelihoods to compute, () = all. ('q', 'q_given_a') is all that the rules
  # on ranks of RMI need: 22 to 37% fewer tokens; IFD has no values then.
  c.score.terms = ()
  c.score.tokens_per_batch = 0  # per device; 0 = from the compiled memory
  c.score.max_shapes = 24  # compilations per model
  c.score.length_multiple = 0  # 0 = 128 on TPU, 16 on GPU, 1 on CPU
  c.score.rows_per_part = 0  # rows that a kill can cost; 0 = from the lengths
  # 'auto' = the fastest on the platform; or 'xla', 'splash' (TPU), 'cudnn'.
  c.score.attention = 'auto'
  c.score.mesh = ml_collections.ConfigDict()
  c.score.mesh.data = -1  # -1 = all devices that the other axes leave
  c.score.mesh.fsdp = 1
  c.score.mesh.tensor = 1

  c.strata = ml_collections.ConfigDict()
  c.strata.num_strata = 10  # equal-count bins by PPL(Q); 1 = global ranking
  c.strata.by = 'own'  # or 'strong', 'weak': whose PPL(Q) makes the bins

  c.select = ml_collections.ConfigDict()
  c.select.rule = 'diff_high'
  # In the work directory: .jsonl, .jsonl.gz, .json, or .parquet (for Parquet
  # input, in its own schema).
  c.select.output = 'selected.jsonl'
  # At most one; none = the rule's own. A share is of the eligible rows.
  c.select.budget = ml_collections.ConfigDict()
  c.select.budget.share = placeholder(float)
  c.select.budget.rows = placeholder(int)
  c.select.budget.tokens = placeholder(int)  # of queries and answers
  c.select.budget.threshold = placeholder(float)  # on the rule's score
  c.select.include_truncated = False
  # 'duckdb' makes the same choice on disk, for tables beyond memory.
  c.select.engine = 'memory'
  c.select.memory_gb = 4.0  # that DuckDB may use
  # Options of single rules, None = the rule's own default; the README's table
  # of rules (or registry.describe_rules()) says which rule has which.
  c.select.lo = placeholder(float)
  c.select.hi = placeholder(float)
  c.select.drop = placeholder(float)
  c.select.model = placeholder(str)
  c.select.of = placeholder(str)
  c.select.reference = placeholder(str)
  c.select.num_bins = placeholder(int)
  c.select.column = placeholder(str)
  c.select.path = placeholder(str)
  c.select.key = placeholder(str)

  c.analyse = ml_collections.ConfigDict()
  c.analyse.share = 0.25  # budget of every rule whose overlap is shown

  # Fine-tunes on the choice of every rule, from the same start with the
  # settings above, and compares held-out losses.
  c.compare = ml_collections.ConfigDict()
  # (rule, budget, amount, seeds); budget is 'share', 'rows', 'tokens', or
  # 'token_share' (of the tokens of all eligible rows).
  c.compare.table = ()
  c.compare.held_out = ''  # samples to judge by, in any format
  c.compare.baseline = 'random'  # subtracted from lines of the same budget
  c.compare.keep_models = False  # export the model of every cell
  # Also evaluate every cell's model as config.evaluate says; its programs are
  # run, so this needs --allow-code-execution.
  c.compare.evaluate = False

  # What every rule lets through, by a label in the input's records.
  c.audit = ml_collections.ConfigDict()
  c.audit.label = ''  # name of the field, 'defect' say
  c.audit.share = 0.25  # budget of every rule
  c.audit.rules = ()  # () = every rule that the score table can serve

  c.finetune = ml_collections.ConfigDict()
  # In the work directory, of checkpoints and the exported model; another name
  # for another run (with LoRA, say).
  c.finetune.folder = 'finetune'
  # Where training starts: a role or name of config.models, whose path,
  # revision, template and system prompt are then used.
  c.finetune.model = 'strong'
  c.finetune.path = ''  # or any other model: a folder or a hub id
  c.finetune.revision = ''
  c.finetune.chat_template = ''  # '' = the model's own setting
  c.finetune.system_prompt = ''  # '' = the model's, else the score section's
  # 'selected' (what the select stage chose), 'all' (every prepared sample), or
  # a file or data set in any format that data.path has.
  c.finetune.data = 'selected'
  # Held-out samples, in any format; '' = validation_rows of the data.
  c.finetune.validation = ''
  c.finetune.validation_rows = 0  # drawn by the seed; 0 = no validation
  c.finetune.max_length = 2048  # tokens of a sample, and of a packed row
  c.finetune.on_long = 'skip'  # or 'truncate': cut the answer's end
  c.finetune.prompt_weight = 0.0  # of a prompt token's loss
  c.finetune.response_weight = 1.0  # of an answer token's and its end-of-turn
  c.finetune.packing = 'packed'  # or 'padded': one sample per row
  c.finetune.batch_size = 256  # samples per update, on any number of devices
  c.finetune.tokens_per_device = 8192  # of a micro-batch, padding included
  c.finetune.epochs = 3
  c.finetune.max_steps = 0  # at most so many updates; 0 = all of the epochs
  c.finetune.dtype = 'bfloat16'  # of the computation; the masters are float32
  c.finetune.remat = True  # recompute layers in the backward pass
  c.finetune.attention = 'auto'
  c.finetune.optimizer = ml_collections.ConfigDict()
  c.finetune.optimizer.name = 'adamw'  # or 'muon'
  c.finetune.optimizer.learning_rate = 1e-5  # peak
  c.finetune.optimizer.schedule = 'cosine'  # 'linear', 'constant', 'wsd'
  c.finetune.optimizer.warmup_ratio = 0.03  # of all updates
  c.finetune.optimizer.decay_ratio = 0.2  # of all updates; wsd only
  c.finetune.optimizer.final_ratio = 0.0  # last rate over the peak
  c.finetune.optimizer.weight_decay = 0.0  # not of biases and norms
  c.finetune.optimizer.b1 = 0.9
  c.finetune.optimizer.b2 = 0.999
  c.finetune.optimizer.eps = 1e-8
  c.finetune.optimizer.clip = 1.0  # global norm of the gradient
  c.finetune.lora = ml_collections.ConfigDict()
  c.finetune.lora.rank = 0  # 0 = train all parameters
  c.finetune.lora.alpha = 16.0  # the update is scaled by alpha / rank
  c.finetune.lora.targets = ()  # of q, k, v, o, gate, up, down; () = all
  c.finetune.mesh = ml_collections.ConfigDict()
  c.finetune.mesh.data = 1
  c.finetune.mesh.fsdp = -1  # -1 = all devices that the other axes leave
  c.finetune.mesh.tensor = 1
  c.finetune.log_every = 10  # updates between lines of the learning curve
  c.finetune.eval_every = 0  # updates between validations; 0 = every epoch
  c.finetune.save_every = 200  # updates between checkpoints
  c.finetune.keep = 2  # latest checkpoints kept, besides the best
  c.finetune.looks = 2  # samples generated from validation at each look
  c.finetune.export_dtype = 'bfloat16'  # of the exported weights
  c.finetune.trackers = ()  # 'tensorboard', 'wandb', as well as metrics.jsonl

  c.evaluate = ml_collections.ConfigDict()
  c.evaluate.path = ''  # the model: a folder or a hub id; '' = the fine-tuned
  c.evaluate.revision = ''
  c.evaluate.chat_template = 'auto'  # as in add_model; for chat prompts
  c.evaluate.system_prompt = ''  # '' = the template's own default
  c.evaluate.dtype = 'bfloat16'
  c.evaluate.attention = 'auto'
  # humaneval, mbpp: base tests; humaneval_plus, mbpp_plus: those and more;
  # humaneval_original, mbpp_original: the files as first published;
  # demo_tasks: the demo's ten toy tasks.
  c.evaluate.benchmarks = ('humaneval_plus', 'mbpp_plus')
  # The published files, gzipped or plain; docs/evaluation.md says where.
  c.evaluate.files = ml_collections.ConfigDict()
  c.evaluate.files.humaneval = ''  # EvalPlus's HumanEvalPlus
  c.evaluate.files.mbpp = ''  # EvalPlus's MbppPlus
  c.evaluate.files.humaneval_original = ''  # OpenAI's HumanEval
  c.evaluate.files.mbpp_original = ''  # Google's mbpp
  c.evaluate.files.demo_tasks = ''  # config.embedded_tasks()
  c.evaluate.prompt = 'chat'  # or 'base': the task's text, to go on with
  c.evaluate.samples = 1  # per task
  c.evaluate.temperature = 0.0  # 0 = greedy
  c.evaluate.top_p = 0.95  # where samples are drawn
  c.evaluate.top_k = 0  # where samples are drawn; 0 = all tokens
  c.evaluate.max_new_tokens = 768
  c.evaluate.batch_size = 32
  c.evaluate.limit = 0  # first tasks only; 0 = all
  c.evaluate.mesh = ml_collections.ConfigDict()
  c.evaluate.mesh.data = -1  # -1 = all devices that the other axes leave
  c.evaluate.mesh.fsdp = 1
  c.evaluate.mesh.tensor = 1
  # Programs that a model wrote are run only if this is set. `qaq` sets it to
  # what --allow-code-execution says, whatever a recipe says; callers from
  # Python may set it. docs/evaluation.md: what contains them.
  c.evaluate.allow_code_execution = False
  # Run them even where they would reach files, network or other processes.
  c.evaluate.allow_uncontained = False
  c.evaluate.workers = 0  # programs at a time; 0 = one per core
  c.evaluate.all_tests = False  # go on after a failed test
  c.evaluate.test_seconds = 1.0  # the least limit of a test
  c.evaluate.test_factor = 4.0  # times the reference's time, if that is more
  c.evaluate.memory_mb = 4096  # of one program

  # What a pod would need, before it is paid for; docs/planning.md.
  c.plan = ml_collections.ConfigDict()
  c.plan.topology = ''  # of scoring: 'v5e:4x4', 'v5p:2x2x4', 'h100:8', ...
  c.plan.finetune_topology = ''  # '' = the same
  c.plan.survey_rows = 2000  # rows whose lengths are read; counts are scaled
  c.plan.utilisation = 0.5  # assumed share of the chip's bfloat16 peak
  c.plan.bandwidth = 0.8  # assumed share of its memory's rate
  c.plan.links = 0.8  # assumed share of its links' rate

  # Only configs/demo.py mines its input.
  c.mine = ml_collections.ConfigDict()
  c.mine.rows = 0
  c.mine.held_out = 0  # clean pairs that are not in the input, for compare
  c.mine.defects = ml_collections.ConfigDict()  # defect -> share of the rows
  return c


def add_model(
  config: ml_collections.ConfigDict,
  name: str,
  path: str,
  *,
  revision: str = '',
  dtype: str = 'bfloat16',
  chat_template: str = 'auto',
  system_prompt: str = '',
  max_length: int = 0,
  quantization: str = '',
) -> None:
  """Adds model `name` to the config.

  Args:
    config: the config; `config.models[name]` is set.
    name: the `<m>` of the score table's columns.
    path: a local checkpoint folder or a hub id.
    revision: branch, tag or commit on the hub; '' is the default branch.
    dtype: of weights and compute: 'float32' or 'bfloat16'.
    chat_template: 'auto' (the tokenizer's own), 'plain', a shipped name, or a
      path to a template or to a checkpoint whose template is borrowed.
    system_prompt: overrides `config.score.system_prompt` for this model.
    max_length: overrides `config.score.max_length`; 0 does not.
    quantization: of the layers' kernels, for scoring: '', 'int8' (weights),
      'int8_dynamic' (activations too).
  """
  config.models[name] = ml_collections.ConfigDict(
    {
      'path': path,
      'revision': revision,
      'dtype': dtype,
      'chat_template': chat_template,
      'system_prompt': system_prompt,
      'max_length': max_length,
      'quantization': quantization,
    }
  )


def parse_arg(arg: str | None, **defaults) -> ml_collections.ConfigDict:
  """Turns what follows a config's colon into typed options.

  `configs/x.py:runlocal,limit=100` gives `runlocal=True, limit=100`.

  Args:
    arg: comma-separated names (True) and name=value pairs.
    **defaults: every option there is, with its default value and so its type.

  Returns:
    The options.

  Raises:
    ValueError: on an option that is not among the defaults, or whose value
      has another type.
  """
  options = dict(defaults)
  for item in filter(None, (arg or '').split(',')):
    name, equals, text = item.partition('=')
    if name not in options:
      raise ValueError(
        f'config argument {name!r} is unknown; there are: '
        + ', '.join(sorted(options))
      )
    options[name] = _parse_value(text, defaults[name]) if equals else True
    if type(options[name]) is not type(defaults[name]):
      raise ValueError(
        f'config argument {item!r}: expected '
        f'{type(defaults[name]).__name__}, as in {name}={defaults[name]!r}'
      )
  return ml_collections.ConfigDict(options)


def _parse_value(text, default):
  if isinstance(default, str):
    return text
  try:
    return ast.literal_eval(text)
  except (ValueError, SyntaxError):
    return text  # a bare word is a string


def embedded_model(name: str) -> str:
  """Path of an embedded model, 'strong' or 'weak'."""
  return str(importlib.resources.files('qaq_jax.demo') / 'models' / name)


def use_demo(config: ml_collections.ConfigDict, *, rows: int) -> None:
  """Sets the demo's data, models, and settings that suit both.

  Args:
    config: the config.
    rows: mined pairs, 6% of them with each of five defects.
  """
  config.mine.rows = rows
  for defect in ('swapped', 'nonsense', 'echo', 'cut_off', 'boilerplate'):
    config.mine.defects[defect] = 0.06
  config.data.path = '{workdir}/demo.jsonl'
  for name in ('strong', 'weak'):
    add_model(
      config,
      name,
      embedded_model(name),
      dtype='float32',
      chat_template='plain',
    )
  config.score.max_length = 1024
  config.score.max_shapes = 8  # compiling takes longer than padding saves
  # The words with which the models were trained (qaq_jax/demo/corpus.py).
  config.score.reverse_instruction = '{answer}\n# doc'
  config.finetune.max_length = 512
  config.finetune.batch_size = 16
  config.finetune.epochs = 2
  config.finetune.remat = False
  config.finetune.optimizer.learning_rate = 1e-3
  config.finetune.optimizer.warmup_ratio = 0.1


def embedded_tasks() -> str:
  """Path of the demo's ten toy tasks, in the format of EvalPlus."""
  return str(importlib.resources.files('qaq_jax.demo') / 'tasks/tasks.jsonl')


def shrink(config: ml_collections.ConfigDict) -> None:
  """Turns a recipe into a smoke run for a laptop: its data, tiny models."""
  for name in list(config.models):
    role = 'weak' if name == config.roles.weak else 'strong'
    add_model(
      config,
      name,
      embedded_model(role),
      dtype='float32',
      chat_template='plain',
    )
  config.data.limit = 64
  config.score.max_length = 512
  config.score.reverse_instruction = '{answer}'
  config.finetune.max_length = 512
  config.finetune.dtype = 'float32'
  config.finetune.batch_size = 8
  config.finetune.tokens_per_device = 2048
  config.finetune.max_steps = 4
  config.finetune.validation_rows = 8
