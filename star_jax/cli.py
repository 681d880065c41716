"""What every launch script shares: flag parsing, help, one-line errors.

A script is `run_main(main)` under `if __name__ == "__main__"`. A user's
mistake (`ValueError`, `OSError`, a wrong flag) ends in one sentence on stderr
and exit status 2; STAR_TRACEBACK=1 in the environment shows the traceback
for those who look for a bug.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import textwrap
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from absl import app, flags

TRACEBACK_ENV = "STAR_TRACEBACK"
EXIT_BAD_INPUT = 2
_HELP_FLAGS = ("-h", "-help", "--help", "-helpshort", "--helpshort")


def run_main(main: Callable[[Sequence[str]], int | None]) -> None:
  """Parses the flags, runs `main(argv)` and exits with its status.

  Args:
    main: takes the arguments that are not flags, the script's name first.
  """

  def guarded(argv: Sequence[str]) -> int | None:
    try:
      return main(argv)
    except BrokenPipeError:
      # The reader (`| head`) went away; nobody is left to be told.
      os._exit(1)
    except (ValueError, OSError, app.UsageError) as error:
      _exit_with(error)
    except KeyboardInterrupt:
      print("Interrupted.", file=sys.stderr)
      return 130

  warnings.showwarning = _show_warning
  # absl shows INFO, and with it jax's list of the hardware that is not there.
  logging.getLogger("jax").setLevel(logging.WARNING)
  app.run(guarded, flags_parser=_parse_flags)


def sentence(error: BaseException) -> str:
  """The error as one line: what was given, what is accepted."""
  if isinstance(error, OSError) and error.strerror:
    names = [str(n) for n in (error.filename, error.filename2) if n]
    text = f"{error.strerror}: {' -> '.join(names)}" if names else str(error)
  else:
    text = str(error) or type(error).__name__
  return " ".join(text.split())


def _exit_with(error: BaseException) -> None:
  if os.environ.get(TRACEBACK_ENV):
    traceback.print_exception(error)
  print(sentence(error), file=sys.stderr)
  raise SystemExit(EXIT_BAD_INPUT)


def _show_warning(message, category, filename, lineno, file=None, line=None):
  """A warning meant for the user is a sentence too, without source lines."""
  if issubclass(category, UserWarning):
    text = f"Warning: {sentence(message)}\n"
  else:
    text = warnings.formatwarning(message, category, filename, lineno, line)
  print(text, end="", file=file or sys.stderr)


def _parse_flags(argv: Sequence[str]) -> list[str]:
  """absl's parser, with readable help and one-line errors."""
  if any(arg in _HELP_FLAGS for arg in _before_separator(argv[1:])):
    with contextlib.suppress(BrokenPipeError):
      print(_help_text(argv[0]), flush=True)
    raise SystemExit(0)
  try:
    return flags.FLAGS(list(argv))
  except (flags.Error, ValueError, OSError) as error:
    _exit_with(error)
  # Config flags report unknown keys so, with nothing but the key.
  except (AttributeError, KeyError) as error:
    key = sentence(error).strip('"')
    _exit_with(ValueError(f"The config file has no key {key}."))


def _before_separator(args: Sequence[str]) -> Sequence[str]:
  return args[: args.index("--")] if "--" in args else args


def _help_text(script: str) -> str:
  """The script's docstring and its own flags, wrapped to 80 columns."""
  main_module = sys.modules["__main__"]
  lines = [(main_module.__doc__ or Path(script).name).strip(), "", "Flags:"]
  for flag in flags.FLAGS.get_key_flags_for_module(main_module):
    unset = flag.default in (None, "", [])
    default = "" if unset else f" [default: {flag.default}]"
    head = f"--[no]{flag.name}" if flag.boolean else f"--{flag.name}"
    body = textwrap.fill(
      (flag.help or "").strip() + default,
      width=78,
      initial_indent=" " * 6,
      subsequent_indent=" " * 6,
    )
    lines += [f"  {head}", body]
  return "\n".join(lines)
