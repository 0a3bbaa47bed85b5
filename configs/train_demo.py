"""The models of `make demo`: trained from scratch on mined pairs."""

from ml_collections import config_dict

PACKAGES = (
    'accelerate', 'aesara', 'aiohttp', 'altair', 'airflow', 'arviz', 'astropy',
    'Bio', 'black', 'bokeh', 'boto3', 'botocore', 'botorch', 'celery', 'chex',
    'cirq', 'conan', 'dask', 'datasets', 'diffusers', 'distributed', 'django',
    'haiku', 'faker', 'filelock', 'flask', 'flax', 'fsspec', 'gpytorch',
    'holoviews', 'huggingface_hub', 'imblearn', 'IPython', 'jedi', 'jinja2',
    'keras', 'kornia', 'langchain_core', 'lifelines', 'lightning',
    'matplotlib', 'mlflow', 'mlxtend', 'mne', 'monai', 'moto', 'mypy',
    'nibabel', 'nilearn', 'nltk', 'numba', 'optax', 'pandas', 'panel', 'peft',
    'pennylane', 'pgmpy', 'pip', 'plotly', 'prefect', 'pydantic', 'pydicom',
    'pymc', 'pyod', 'pyro', 'qiskit', 'ray', 'rich', 'skimage', 'sklearn',
    'scipy', 'scrapy', 'seaborn', 'sentence_transformers', 'setuptools',
    'shap', 'sktime', 'sphinx', 'sqlalchemy', 'sqlglot', 'statsmodels',
    'sympy', 'tensorflow_probability', 'textual', 'torch', 'torch_geometric',
    'torchaudio', 'torchvision', 'tornado', 'transformers', 'trimesh', 'trl',
    'tslearn', 'twisted',
)
HELD_OUT = ('mpmath', 'networkx', 'werkzeug', 'xarray')


def get_config(arg: str = 'strong') -> config_dict.ConfigDict:
  """The recipe of one model, 'strong' or 'weak'."""
  config = config_dict.ConfigDict()
  config.seed = 0
  config.dtype = 'bfloat16'  # of the computation; parameters are float32
  config.corpus = {
      'packages': PACKAGES,
      'held_out': HELD_OUT,
      'site': '',
      'max_answer': 600,
      'vocab_size': 4096,
      'forward_share': 0.3,
      'query_weight': 3.0,
      'max_held_out': 300,
  }
  config.model = {
      'hidden_size': 192,
      'intermediate_size': 512,
      'num_layers': 4,
      'num_heads': 6,
      'head_dim': 32,
  }
  config.loop = {
      'tokens_per_batch': 2048,
      'num_buckets': 8,
      'log_every': 50,
      'eval_every': 500,
  }
  config.optimizer = {
      'name': 'muon',
      'learning_rate': 4e-3,
      'steps': 3700,
      'warmup_steps': 100,
      'decay_steps': 1200,
      'weight_decay': 0.02,
      'clip': 1.0,
  }
  if arg == 'weak':
    config.model = {
        'hidden_size': 96,
        'intermediate_size': 256,
        'num_layers': 2,
        'num_heads': 3,
        'head_dim': 32,
    }
    config.optimizer.update(steps=300, warmup_steps=50, decay_steps=150)
  elif arg != 'strong':
    raise ValueError(f"train_demo takes 'strong' or 'weak', not {arg!r}")
  return config
