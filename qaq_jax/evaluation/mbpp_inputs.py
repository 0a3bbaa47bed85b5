"""Types that JSON took from the inputs of MBPP+: tuples, sets, complex numbers.

EvalPlus restores them by task id when it reads its file. The ids are those of
`evalplus/data/mbpp.py` of EvalPlus 0.3.1, for MBPP+ v0.2.0.
"""


def _tuples(value):
  return tuple(value)


def _lists_of_tuples(value):
  return [tuple(item) for item in value]


def _tuples_of_tuples(value):
  return tuple(tuple(item) for item in value)


def _deep(value):
  if isinstance(value, list):
    return tuple(_deep(item) for item in value)
  return value


def _each(convert):
  return lambda arguments: [convert(a) for a in arguments]


def _first(convert):
  return lambda arguments: [convert(arguments[0]), *arguments[1:]]


def _second(convert):
  return lambda arguments: [arguments[0], convert(arguments[1])]


def _sets(value):
  # An empty list becomes a dict, as in EvalPlus.
  return [
    set(item) if isinstance(item, list) and item else {} for item in value
  ]


def _mixed_tuple(value):
  return tuple(tuple(v) if isinstance(v, list) else v for v in value)


def _dict_of_tuples(value):
  return {key: tuple(item) for key, item in value.items()}


_RULES = (
  (
    _each(_tuples),
    (
      2,
      116,
      132,
      143,
      222,
      261,
      273,
      394,
      399,
      421,
      424,
      429,
      470,
      560,
      579,
      596,
      616,
      630,
      726,
      740,
      744,
      809,
    ),
  ),
  (
    _each(_lists_of_tuples),
    (
      63,
      64,
      70,
      94,
      120,
      237,
      272,
      299,
      400,
      409,
      417,
      438,
      473,
      614,
      780,
    ),
  ),
  (_first(_lists_of_tuples), (75, 413, 444, 753)),
  (_second(_tuples), (106, 750)),
  (_first(_sets), (115,)),
  (lambda a: [float(a[0]), complex(a[1])], (124,)),
  (_first(_tuples), (250, 307, 405, 446, 617, 720, 763, 808)),
  (_first(complex), (252,)),
  (_each(_tuples_of_tuples), (259, 401, 445)),
  (_each(_mixed_tuple), (278,)),
  (_each(_deep), (580, 615, 791)),
  (_first(_dict_of_tuples), (722,)),
)
_BY_NUMBER = {
  number: convert for convert, numbers in _RULES for number in numbers
}


def restore(task_id: str, inputs: list) -> list:
  """Returns the inputs of a task with the types that its functions expect.

  Args:
    task_id: 'Mbpp/NUMBER'.
    inputs: lists of arguments, as read from JSON.
  """
  convert = _BY_NUMBER.get(int(task_id.removeprefix('Mbpp/')))
  return inputs if convert is None else [convert(a) for a in inputs]
