"""The config of a command: a recipe, its argument, the words that change it."""

import glob
import os
import re
from collections.abc import Iterator, Sequence

import ml_collections
from absl import flags
from ml_collections import config_flags

from qaq_jax.config import WrongWord, nearest, parse_value
from qaq_jax.stages import registry


def parse(argv: Sequence[str]) -> list[str]:
  """Defines and parses the words of the command line.

  Args:
    argv: the program's name and its words.

  Returns:
    The words that are no flags, behind the program's name.

  Raises:
    WrongWord: there is no such recipe, argument of it, field or flag.
  """
  config_flags.DEFINE_config_file('config', None, 'Recipe.', lock_config=True)
  flags.DEFINE_string('workdir', None, 'Folder of all output.')
  for flag in registry.flags():
    if flag.default is None:
      flags.DEFINE_string(flag.name, None, flag.says)
    else:
      flags.DEFINE_bool(flag.name, flag.default, flag.says)
  _check_file(argv)
  try:
    return flags.FLAGS(argv)
  except AttributeError as e:
    cause = getattr(e.args[0], 'args', e.args)[0]
    raise WrongWord(f'no such field of the config: {cause}') from e
  except flags.Error as e:
    # The recipe's own sentence stands at the end of a stack trace there.
    own = [cause for cause in _causes(e) if isinstance(cause, WrongWord)]
    raise WrongWord(str(own[-1] if own else e)) from e


def override(config: ml_collections.ConfigDict, values: flags.FlagValues):
  """Sets the fields that have a flag of their own.

  Raises:
    WrongWord: there is no such field, or the word is not of its type.
  """
  for flag in registry.flags():
    if values[flag.name].value is not None:
      _set(config, flag, values[flag.name].value)


def _set(config, flag, value) -> None:
  *sections, name = flag.field.split('.')
  try:
    for section in sections:
      config = config[section]
    kind = config.get_type(name)
  except (AttributeError, KeyError) as e:
    raise WrongWord(
      f'--{flag.name} sets config.{flag.field}, which there is not'
    ) from e
  try:
    text = isinstance(value, str)
    config[name] = parse_value(value, kind) if text else value
  except TypeError as e:
    raise WrongWord(
      f'--{flag.name}={value}: config.{flag.field} is of type {kind.__name__}'
    ) from e


def _check_file(argv) -> None:
  """Refuses a recipe that is not there; config_flags would tell by a trace."""
  words = zip(argv, [*argv[1:], ''], strict=True)
  for word, after in words:
    found = re.fullmatch('--?config(=(.*))?', word)
    if not found:
      continue
    path = (found[2] if found[1] else after).partition(':')[0]
    if path and not os.path.exists(path):
      there = glob.glob(glob.escape(os.path.dirname(path) or '.') + '/*.py')
      near = nearest(path, map(os.path.normpath, there))
      raise WrongWord(f'--config: there is no recipe {path}{near}')


def _causes(error) -> Iterator[BaseException]:
  while error is not None:
    yield error
    error = error.__context__
