r"""The models of `make demo`: trained from scratch on mined pairs.

  python -m qaq_jax.demo.train --config=configs/train_demo.py:strong \
      --workdir=DIR [--config.corpus.site=SITE_PACKAGES]

(or `:weak`). The pairs are mined from the packages below, which need not be
importable, only installed somewhere:

  pip install --no-deps --target=SITE_PACKAGES NAME==VERSION ...

A missing one is named with its pip line. Other versions work and give other
pairs, hence other weights; these gave the committed ones. A killed run goes
on when started again.

Expected (1 hour for strong, 3 minutes for weak, on one CPU core): RMI
separates true from swapped answers of the held-out packages with AUROC 0.97
(strong) and 0.70 (weak). Learning curve and limits: docs/demo_models.md.
"""

from ml_collections import config_dict

# Import name, pip requirement, licence. None is among the demo's packages.
PACKAGES = (
  ('accelerate', 'accelerate==1.15.0', 'Apache-2.0'),
  ('aesara', 'aesara==2.9.4', 'BSD-3-Clause'),
  ('aiohttp', 'aiohttp==3.14.5', 'Apache-2.0 and MIT'),
  ('altair', 'altair==6.3.0', 'BSD-3-Clause'),
  ('airflow', 'apache-airflow-core==3.3.2', 'Apache-2.0'),
  ('arviz', 'arviz==0.23.4', 'Apache-2.0'),
  ('astropy', 'astropy==8.0.2', 'BSD-3-Clause'),
  ('Bio', 'biopython==1.88', 'Biopython (MIT-like)'),
  ('black', 'black==26.10.1', 'MIT'),
  ('bokeh', 'bokeh==3.9.2', 'BSD-3-Clause'),
  ('boto3', 'boto3==1.44.5', 'Apache-2.0'),
  ('botocore', 'botocore==1.44.5', 'Apache-2.0'),
  ('botorch', 'botorch==0.18.1', 'MIT'),
  ('celery', 'celery==5.7.0', 'BSD-3-Clause'),
  ('chex', 'chex==0.1.92', 'Apache-2.0'),
  ('cirq', 'cirq-core==1.7.0', 'Apache-2.0'),
  ('conan', 'conan==2.34.0', 'MIT'),
  ('dask', 'dask==2026.8.0', 'BSD-3-Clause'),
  ('datasets', 'datasets==5.2.0', 'Apache-2.0'),
  ('diffusers', 'diffusers==0.42.1', 'Apache-2.0'),
  ('distributed', 'distributed==2026.8.0', 'BSD-3-Clause'),
  ('django', 'django==5.2.19', 'BSD-3-Clause'),
  ('haiku', 'dm-haiku==0.0.17', 'Apache-2.0'),
  ('faker', 'faker==40.54.0', 'MIT'),
  ('filelock', 'filelock==4.0.8', 'MIT'),
  ('flask', 'flask==3.1.3', 'BSD-3-Clause'),
  ('flax', 'flax==0.12.8', 'Apache-2.0'),
  ('fsspec', 'fsspec==2026.9.0', 'BSD-3-Clause'),
  ('gpytorch', 'gpytorch==1.15.2', 'MIT'),
  ('holoviews', 'holoviews==1.23.2', 'BSD-3-Clause'),
  ('huggingface_hub', 'huggingface_hub==2.4.0', 'Apache-2.0'),
  ('imblearn', 'imbalanced-learn==0.14.2', 'MIT'),
  ('IPython', 'ipython==9.18.1', 'BSD-3-Clause'),
  ('jedi', 'jedi==0.20.1', 'MIT'),
  ('jinja2', 'jinja2==3.1.6', 'BSD-3-Clause'),
  ('keras', 'keras==3.15.1', 'Apache-2.0'),
  ('kornia', 'kornia==0.9.0', 'Apache-2.0'),
  ('langchain_core', 'langchain-core==1.8.1', 'MIT'),
  ('lifelines', 'lifelines==0.30.3', 'MIT'),
  ('lightning', 'lightning==2.6.6', 'Apache-2.0'),
  ('matplotlib', 'matplotlib==3.11.2', 'PSF-based'),
  ('mlflow', 'mlflow-skinny==3.17.2', 'Apache-2.0'),
  ('mlxtend', 'mlxtend==0.25.0', 'BSD-3-Clause'),
  ('mne', 'mne==1.13.2', 'BSD-3-Clause'),
  ('monai', 'monai==1.6.1', 'Apache-2.0'),
  ('moto', 'moto==5.2.5', 'Apache-2.0'),
  ('mypy', 'mypy==2.4.1', 'MIT'),
  ('nibabel', 'nibabel==5.4.2', 'MIT'),
  ('nilearn', 'nilearn==0.14.1', 'BSD-3-Clause'),
  ('nltk', 'nltk==3.10.4', 'Apache-2.0'),
  ('numba', 'numba==0.68.1', 'BSD-3-Clause'),
  ('optax', 'optax==0.2.8', 'Apache-2.0'),
  ('pandas', 'pandas==3.1.1', 'BSD-3-Clause'),
  ('panel', 'panel==1.9.4', 'BSD-3-Clause'),
  ('peft', 'peft==0.21.2', 'Apache-2.0'),
  ('pennylane', 'pennylane==0.45.1', 'Apache-2.0'),
  ('pgmpy', 'pgmpy==1.1.2', 'MIT'),
  ('pip', 'pip==26.3', 'MIT'),
  ('plotly', 'plotly==7.1.0', 'MIT'),
  ('prefect', 'prefect==3.9.1', 'Apache-2.0'),
  ('pydantic', 'pydantic==2.14.3', 'MIT'),
  ('pydicom', 'pydicom==3.0.2', 'MIT'),
  ('pymc', 'pymc==5.28.5', 'Apache-2.0'),
  ('pyod', 'pyod==3.6.7', 'BSD-2-Clause'),
  ('pyro', 'pyro-ppl==1.9.2', 'Apache-2.0'),
  ('qiskit', 'qiskit==2.6.2', 'Apache-2.0'),
  ('ray', 'ray==2.60.0', 'Apache-2.0'),
  ('rich', 'rich==15.0.0', 'MIT'),
  ('skimage', 'scikit-image==0.26.0', 'BSD-3-Clause'),
  ('sklearn', 'scikit-learn==1.9.1', 'BSD-3-Clause'),
  ('scipy', 'scipy==1.17.1', 'BSD-3-Clause'),
  ('scrapy', 'scrapy==2.19.0', 'BSD-3-Clause'),
  ('seaborn', 'seaborn==0.13.2', 'BSD-3-Clause'),
  ('sentence_transformers', 'sentence-transformers==6.2.0', 'Apache-2.0'),
  ('setuptools', 'setuptools==84.2.1', 'MIT'),
  ('shap', 'shap==0.51.0', 'MIT'),
  ('sktime', 'sktime==1.2.0', 'BSD-3-Clause'),
  ('sphinx', 'sphinx==9.0.4', 'BSD-2-Clause'),
  ('sqlalchemy', 'sqlalchemy==2.1.9', 'MIT'),
  ('sqlglot', 'sqlglot==30.30.0', 'MIT'),
  ('statsmodels', 'statsmodels==0.15.0', 'BSD-3-Clause'),
  ('sympy', 'sympy==1.14.0', 'BSD-3-Clause'),
  ('tensorflow_probability', 'tensorflow-probability==0.25.0', 'Apache-2.0'),
  ('textual', 'textual==8.2.8', 'MIT'),
  ('torch', 'torch==2.13.0', 'BSD-3-Clause and others'),
  ('torch_geometric', 'torch-geometric==2.8.1', 'MIT'),
  ('torchaudio', 'torchaudio==2.11.0', 'BSD-2-Clause'),
  ('torchvision', 'torchvision==0.29.2', 'BSD-3-Clause'),
  ('tornado', 'tornado==6.6.1', 'Apache-2.0'),
  ('transformers', 'transformers==5.23.0', 'Apache-2.0'),
  ('trimesh', 'trimesh==5.2.0', 'MIT'),
  ('trl', 'trl==1.16.0', 'Apache-2.0'),
  ('tslearn', 'tslearn==0.10.0', 'BSD-2-Clause'),
  ('twisted', 'twisted==26.10.0', 'MIT'),
)
# Whole packages that no model learns from, for measuring.
HELD_OUT = (
  ('mpmath', 'mpmath==1.3.0', 'BSD-3-Clause'),
  ('networkx', 'networkx==3.6.1', 'BSD-3-Clause'),
  ('werkzeug', 'werkzeug==3.1.9', 'BSD-3-Clause'),
  ('xarray', 'xarray==2026.9.0', 'Apache-2.0'),
)


def get_config(arg: str = 'strong') -> config_dict.ConfigDict:
  """The recipe of one model, 'strong' or 'weak'."""
  config = config_dict.ConfigDict()
  config.name = arg
  config.seed = 0
  config.dtype = 'bfloat16'  # of the computation; parameters are float32
  config.corpus = {
    'packages': PACKAGES,
    'held_out': HELD_OUT,
    'site': '',  # folder of the packages; '' = this environment
    'max_answer': 600,  # characters
    'vocab_size': 4096,
    'forward_share': 0.3,  # of pairs also trained query first
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
    'batch_size': 14,  # examples: about 1,630 tokens
    'epochs': 1,
    'max_steps': 3700,
    'max_length': 512,
    # One row at a time: on a CPU more at once are no faster, and leave more
    # of the last micro-batch empty.
    'tokens_per_device': 512,
    'log_every': 50,
    'eval_every': 500,
  }
  config.optimizer = {
    'name': 'muon',
    'learning_rate': 4e-3,
    'schedule': 'wsd',
    'warmup_ratio': 100 / 3700,
    'decay_ratio': 1200 / 3700,
    'weight_decay': 0.02,
    'b2': 0.98,
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
    config.loop.max_steps = 400
    config.optimizer.update(warmup_ratio=50 / 400, decay_ratio=200 / 400)
  elif arg != 'strong':
    raise ValueError(f"train_demo takes 'strong' or 'weak', not {arg!r}")
  return config
