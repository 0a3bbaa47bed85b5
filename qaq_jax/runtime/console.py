"""What a command tells its user: lines on stdout, of one process.

The one channel: no other module below `main` prints, but for the bars of
`progress` and what a process says of its own end.
"""

import sys


def is_first() -> bool:
  """Whether this process is number 0 or the only one; starts no backend."""
  # Who reads data or writes files without jax is alone.
  distributed = sys.modules.get('jax._src.distributed')
  return distributed is None or distributed.global_state.process_id == 0


def say(line: str = '', *, aside: bool = False) -> None:
  """Prints a line at once; of several processes, the first one's alone.

  Args:
    line: the text; may have several lines.
    aside: whether it goes to stderr, as what is no result does.
  """
  if is_first():
    print(line, file=sys.stderr if aside else sys.stdout, flush=True)
