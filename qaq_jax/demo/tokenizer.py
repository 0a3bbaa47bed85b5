"""The demo models' tokenizer: byte-level BPE whose words are shared.

What the tiny models have to learn is that words of a query come back as parts
of identifiers in its answer. Common tokenizers hide that: ` parse`, `parse`,
`_parse` and `Parse` start different tokens. Here text is first cut into words
(`parse`, `Parse`, `HTTP`), single digits, and runs of everything else
(` = `, `._`, newline with indentation), so that the same word has the same ids
in prose, in snake case and in camel case. All bytes have a token and nothing
is normalised: decoding gives the text back exactly.
"""

import json
import os
import pathlib
from collections.abc import Iterable

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

BOS, EOS, PAD = '<|bos|>', '<|eos|>', '<|pad|>'
# A capitalised or lower word; capitals up to the next capitalised word; one
# digit; a run of at most 16 others (runs of other scripts stay cheap).
PATTERN = r'[A-Z]?[a-z]+|[A-Z]+(?![a-z])|[0-9]|[^A-Za-z0-9]{1,16}'


def train_tokenizer(
  texts: Iterable[str], vocab_size: int
) -> tokenizers.Tokenizer:
  """Trains the tokenizer; the same texts give the same vocabulary."""
  tokenizer = tokenizers.Tokenizer(models.BPE())
  tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
    [
      pre_tokenizers.Split(tokenizers.Regex(PATTERN), 'isolated'),
      pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
  )
  tokenizer.decoder = decoders.ByteLevel()
  trainer = trainers.BpeTrainer(
    vocab_size=vocab_size,
    special_tokens=[BOS, EOS, PAD],
    initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    show_progress=False,
  )
  tokenizer.train_from_iterator(texts, trainer)
  return tokenizer


def save_tokenizer(
  tokenizer: tokenizers.Tokenizer,
  directory: str | os.PathLike,
  *,
  max_length: int,
) -> None:
  """Writes tokenizer.json and tokenizer_config.json for AutoTokenizer."""
  directory = pathlib.Path(directory)
  directory.mkdir(parents=True, exist_ok=True)
  tokenizer.save(str(directory / 'tokenizer.json'))
  config = {
    'tokenizer_class': 'PreTrainedTokenizerFast',
    'bos_token': BOS,
    'eos_token': EOS,
    'pad_token': PAD,
    'clean_up_tokenization_spaces': False,
    'model_max_length': max_length,
  }
  text = json.dumps(config, indent=2) + '\n'
  (directory / 'tokenizer_config.json').write_text(text, encoding='utf-8')


def marker(tokenizer: tokenizers.Tokenizer, text: str) -> tuple[int]:
  """The id of BOS, EOS or PAD.

  Raises:
    ValueError: the tokenizer is not one of the demo's.
  """
  found = tokenizer.token_to_id(text)
  if found is None:
    raise ValueError(f"the tokenizer has no {text}: it is not the demo's")
  return (found,)
