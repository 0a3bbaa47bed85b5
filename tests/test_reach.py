"""Tokenizers with ids that their models do not embed.

Refused where such an id can occur, by every stage that opens a model and before
it computes anything; of no interest where it cannot.
"""

import json
import pathlib
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
import tiny_models
import tiny_tokenizers
import tokenizers

from qaq_jax import config as config_lib
from qaq_jax import pipeline
from qaq_jax.data.types import Sample
from qaq_jax.encoding import encoder, reach, tokenization
from qaq_jax.models.hf import checkpoint
from qaq_jax.models.hf.read_config import read_config
from qaq_jax.stages import model as model_lib

FIXTURES = pathlib.Path(__file__).parent / 'fixtures' / 'benchmarks'
STYLES = sorted(tiny_tokenizers.STYLES)
REFUSED = 'writes ids up to .* Not embedded'


def add(folder, *, special=(), ordinary=()):
  """Adds tokens to a tokenizer's folder; returns their ids."""
  path = pathlib.Path(folder) / 'tokenizer.json'
  tokenizer = tokenizers.Tokenizer.from_file(str(path))
  for tokens, is_special in ((special, True), (ordinary, False)):
    tokenizer.add_tokens(
      [
        tokenizers.AddedToken(t, special=is_special, normalized=False)
        for t in tokens
      ]
    )
  path.write_text(tokenizer.to_str())
  return [tokenizer.token_to_id(t) for t in (*special, *ordinary)]


def sample(row, query, answer, system=None):
  return Sample(row, row, query, answer, system, 'ok', '', '')


def beyond(found: encoder.Encoder, size, **options):
  return reach.beyond(found.tokenizer, found.own_ids(**options), size)


@pytest.mark.parametrize('style', STYLES)
def test_an_id_that_occurs_is_one_that_can(style, tmp_path):
  """Whatever the limit; and one that cannot is not among those that do."""
  folder = tiny_tokenizers.make(tmp_path, style)
  add(folder, special=['[PAD]'], ordinary=['<tool>', '    ', 'ß'])
  made = encoder.Encoder(
    folder,
    template=tiny_tokenizers.TEMPLATE_OF[style],
    ifd_cherry=True,
    ifd_superfilter=True,
  )
  known = made.tokenizer.hf.get_vocab()
  odd = ' '.join([*known, 'über 漢字 \x00\t    \n\n\n']) * 2
  texts = [*tiny_tokenizers.CORPUS, odd, '[PAD]<tool>ß']
  samples = [
    sample(i, text, text[::-1], system)
    for i, text in enumerate(texts)
    for system in (None, 'Be [PAD] brief', 'Be brief')
  ]
  occur = set()
  for one in made.encode(samples):
    for sequence in one.sequences:
      occur.update(sequence.ids.tolist())
    _, ending = made.turn(samples[one.row])
    occur.update(ending.tolist())
  assert len(occur) > 100
  can = set(beyond(made, 0, ending=True))
  assert occur <= can
  assert known['[PAD]'] not in can  # though texts spell it
  assert known['ß'] in can and known['    '] in can
  for size in (300, max(known.values()), 1 << 20):
    assert set(beyond(made, size, ending=True)) == {i for i in can if i >= size}


def test_a_vocabulary_entry_that_nothing_builds_cannot_occur(tmp_path):
  """As the placeholders of CodeLlama and Gemma, which are no added tokens."""
  folder = tiny_tokenizers.make(tmp_path, 'llama2')
  path = pathlib.Path(folder) / 'tokenizer.json'
  spec = json.loads(path.read_text())
  size = len(spec['model']['vocab'])
  spec['added_tokens'] = [t for t in spec['added_tokens'] if t['id'] < size]
  spec['model']['vocab'] |= {'unused7': size, 'é': size + 1}
  path.write_text(json.dumps(spec))
  found = tokenization.load(folder)
  assert reach.beyond(found, found.added_prefix, size) == {size + 1: 'é'}
  assert found.plain.encode('unused7 é').max() == size + 1


def test_a_piece_that_was_a_marker_cannot_occur(tmp_path):
  """Unigram, where any piece can, and a copy takes the markers away."""
  pieces = [['<unk>', 0.0], ['▁', -1.0], ['a', -1.5], ['<mask>', -2.0]]
  tokenizer = tokenizers.Tokenizer(
    tokenizers.models.Unigram([tuple(p) for p in pieces], unk_id=0)
  )
  tokenizer.add_special_tokens(['<mask>'])
  folder = tmp_path / 'unigram'
  folder.mkdir()
  (folder / 'tokenizer.json').write_text(tokenizer.to_str())
  found = tokenization.load(folder)
  assert set(reach.beyond(found, (), 0)) == {0, 1, 2}


def test_the_ending_counts_where_it_is_given_to_the_model(tmp_path):
  """`plain` begins with BOS and ends with EOS, which scoring never writes."""
  folder = tiny_tokenizers.make(tmp_path, 'llama3', ordinary=())
  known = tokenization.load(folder).hf.get_vocab()
  bos, eos = known['<|begin_of_text|>'], known['<|eot_id|>']
  assert bos < eos
  made = encoder.Encoder(folder, template='plain')
  assert beyond(made, bos + 1) == {}
  assert beyond(made, bos + 1, ending=True) == {eos: '<|eot_id|>'}
  assert beyond(made, bos) == {bos: '<|begin_of_text|>'}


def test_an_ordinary_added_token_counts_as_text(tmp_path):
  """Whether it is a marker, which texts that spell it are not, or no marker."""
  folder = tiny_tokenizers.make(tmp_path, 'qwen')
  numbers = add(folder, ordinary=['<answer>', '   ', '漢'])
  made = encoder.Encoder(folder, template='plain')
  assert list(beyond(made, numbers[0])) == numbers


def test_what_the_tokenizer_adds_counts_for_the_published_forms(tmp_path):
  """They have no template: the tokenizer's own BOS stands before a text."""
  folder = tiny_tokenizers.make(tmp_path, 'llama3', ordinary=())
  known = tokenization.load(folder).hf.get_vocab()
  bos = known['<|begin_of_text|>']
  path = tmp_path / 'asks.jinja'
  path.write_text("{% for m in messages %}{{ 'a:' + m.content }}{% endfor %}")
  for form in ('', 'ifd_cherry', 'ifd_superfilter'):
    made = encoder.Encoder(
      folder, template=str(path), **({form: True} if form else {})
    )
    expected = {bos: '<|begin_of_text|>'} if form else {}
    assert beyond(made, bos) == expected, form


def test_a_rows_system_prompt_brings_its_own_tokens(tmp_path):
  folder = tiny_tokenizers.make(tmp_path, 'qwen', ordinary=())
  size = max(tokenization.load(folder).hf.get_vocab().values()) + 1
  (number,) = add(folder, special=['<|sys|>'])
  path = tmp_path / 'template.jinja'
  path.write_text(
    "{% for m in messages %}{% if m.role == 'system' %}{{ '<|sys|>' }}"
    "{% else %}{{ 'a:' }}{% endif %}{{ m.content }}{% endfor %}"
  )
  made = encoder.Encoder(folder, template=str(path))
  assert beyond(made, size) == {number: '<|sys|>'}
  assert number not in made.frames(None)[0].head


def test_the_released_scorer_writes_all_that_is_spelled(tmp_path):
  folder = tiny_tokenizers.make(tmp_path, 'qwen')
  (pad,) = add(folder, special=['[PAD]'])
  ours = encoder.Encoder(folder, template='chatml')
  theirs = encoder.Encoder(folder, template='chatml', author_compatible=True)
  assert beyond(ours, pad) == {}
  assert beyond(theirs, pad) == {pad: '[PAD]'}
  (encoded,) = theirs.encode([sample(0, 'Say [PAD] twice', 'no')])
  assert any(pad in s.ids for s in encoded.sequences)


# The stages.


@pytest.fixture(scope='module')
def models(tmp_path_factory):
  """'own': ChatML embedded; 'added': as someone adds it to a base model."""
  folder = tmp_path_factory.mktemp('models')
  out = {}
  for name in ('own', 'added'):
    made = pathlib.Path(
      tiny_tokenizers.make(folder / name, 'qwen', ordinary=())
    )
    known = tokenization.load(made).hf.get_vocab()
    size = known['<|im_start|>']
    if name == 'own':
      size = max(known.values()) + 1
      add(made, special=['[PAD]', '<|reserved|>'])  # never embedded
    config = tiny_models.hf_config('qwen2') | {'vocab_size': size}
    checkpoint.save_hf(
      checkpoint.random_init(read_config(config), mesh=None),
      made,
      dtype=jnp.float32,
    )
    out[name] = str(made)
  data = folder / 'pairs.jsonl'
  data.write_text(
    ''.join(
      json.dumps({'instruction': f'Add {i} to [PAD]', 'output': f'a + {i}'})
      + '\n'
      for i in range(12)
    )
  )
  held = folder / 'held.jsonl'
  held.write_text('{"instruction": "Add no numbers", "output": "pass"}\n')
  return out | {'data': str(data), 'held': str(held)}


def make_config(models, name, template='chatml'):
  c = config_lib.get_default()
  c.data.path = models['data']
  for role in ('strong', 'weak'):
    config_lib.add_model(
      c, role, models[name], dtype='float32', chat_template=template
    )
  c.score.max_shapes = 1
  c.score.max_length = 256
  c.score.tokens_per_batch = 512
  c.finetune.data = 'all'
  c.finetune.dtype = 'float32'
  c.finetune.max_length = 256
  c.finetune.max_steps = 1
  c.finetune.batch_size = 8
  c.finetune.tokens_per_device = 256
  c.finetune.remat = False
  c.finetune.looks = 0
  c.evaluate.path = models[name]
  c.evaluate.chat_template = template
  c.evaluate.dtype = 'float32'
  c.evaluate.files.humaneval = str(FIXTURES / 'humaneval_plus.jsonl')
  c.evaluate.benchmarks = ('humaneval_plus',)
  c.evaluate.limit = 1
  c.evaluate.max_new_tokens = 2
  c.compare.held_out = models['held']
  c.compare.table = (('random', 'rows', 6, 1),)
  c.plan.topology = 'h100:1'
  return c


@pytest.fixture(scope='module')
def scored(models, tmp_path_factory):
  """Prepared and scored with a `plain` template, which 'added' can have."""
  folder = tmp_path_factory.mktemp('work') / 'run'
  c = make_config(models, 'added', 'plain')
  c.stages = ('prepare', 'score')
  pipeline.run('run', c, folder)
  return folder


@pytest.mark.parametrize('stage', ['score', 'finetune', 'evaluate', 'plan'])
def test_a_stage_refuses_what_its_model_does_not_embed(
  stage, models, scored, tmp_path
):
  """`<|im_start|>` and `<|im_end|>` were added to the tokenizer alone."""
  work = shutil.copytree(scored, tmp_path / 'work')
  shutil.rmtree(work / 'scores')
  (work / 'scores.parquet').unlink()
  c = make_config(models, 'added')
  if stage == 'plan':
    c.stages = ('prepare', 'finetune')
  before = {p for p in work.rglob('*') if p.is_file()}
  with pytest.raises(ValueError, match=REFUSED) as caught:
    pipeline.run(stage, c, work)
  assert '<|im_start|>' in str(caught.value)
  assert 'config.' in str(caught.value) and models['added'] in str(caught.value)
  made = {p for p in work.rglob('*') if p.is_file()} - before
  assert not {p.suffix for p in made} - {'.json', '.log'}, made


def test_planning_a_scoring_refuses_it_too(models, tmp_path):
  c = make_config(models, 'added')
  c.stages = ('prepare', 'score')
  with pytest.raises(ValueError, match=REFUSED):
    pipeline.run('plan', c, tmp_path / 'work')


def test_a_comparison_refuses_it_before_its_first_cell(
  models, scored, tmp_path
):
  work = shutil.copytree(scored, tmp_path / 'work')
  c = make_config(models, 'added', 'plain')
  c.finetune.chat_template = 'chatml'
  with pytest.raises(ValueError, match=REFUSED):
    pipeline.run('compare', c, work)
  assert not (work / 'compare' / 'cells').exists()


def test_tokens_that_cannot_occur_are_no_fault(models, tmp_path):
  """Texts spell the `[PAD]` that the model does not embed."""
  c = make_config(models, 'own')
  c.stages = ('prepare', 'score', 'finetune')
  pipeline.run('run', c, tmp_path / 'work')
  c.evaluate.path = str(tmp_path / 'work' / 'finetune' / 'model')
  pipeline.run('evaluate', c, tmp_path / 'work')
  pipeline.run('plan', c, tmp_path / 'work')
  losses = (tmp_path / 'work' / 'finetune' / 'metrics.jsonl').read_text()
  assert np.isfinite(json.loads(losses.splitlines()[-1])['loss'])


def test_a_model_that_is_opened_in_a_notebook_is_looked_at_too(models):
  added = model_lib.open_model(models['added'], field='the base model')
  with pytest.raises(ValueError, match='^the base model: .*' + REFUSED):
    added.encoder(template='chatml')
  positions = added.config.max_positions
  with pytest.raises(ValueError, match=f'more than the {positions} positions'):
    added.encoder(template='plain', max_length=positions + 1)
  encoder = added.encoder(template='plain', max_length=positions)
  assert encoder.tokenizer.files == added.tokenizer().files


def test_a_base_models_prompts_have_no_template(models, tmp_path):
  """'added' can be asked without ChatML, and not with it."""
  c = make_config(models, 'added')
  c.evaluate.prompt = 'base'
  pipeline.run('evaluate', c, tmp_path)
