"""Trains the image tokenizer (stage 1) or the transformer (stage 2).

  python launch/train.py --config=configs/tokenizer_scenes64.py
  python launch/train.py --config=configs/star_scenes64.py:runlocal

The same command goes on where it was stopped. `:runlocal` is a tiny model for
a few steps; --config.data=synthetic runs any config without data. Several
processes as one run: docs/scale_out.md.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from absl import flags, logging
from ml_collections import config_flags

from star_jax import distributed
from star_jax.cli import run_main
from star_jax.large_pages import restart_with_large_pages

_CONFIG = config_flags.DEFINE_config_file(
  "config", None, "Config file; keys change with --config.key=value."
)
_WORKDIR = flags.DEFINE_string(
  "workdir",
  None,
  "Where the run lives. By default runs/<config name>, and a fresh temporary"
  " directory for :runlocal.",
)
_PRINT_CONFIG = flags.DEFINE_bool(
  "print_config", False, "Print the merged configuration and leave."
)
_COMPARE_TO = flags.DEFINE_multi_string(
  "compare_to",
  [],
  "curves.json of another run; its curves are drawn with this run's into"
  " curves.png in the workdir.",
)
distributed.define_flags()
_PROFILE_STEPS = flags.DEFINE_string(
  "profile_steps",
  "",
  "First and last step of a trace that is written into the folder profile of"
  " the workdir, such as 10:15.",
)


def main(argv):
  if len(argv) > 1:
    raise ValueError(f"Unexpected argument {argv[1]!r}; see --help.")
  if _CONFIG.value is None:
    raise ValueError("--config is needed, as in --config=configs/NAME.py.")
  config = _CONFIG.value.lock()
  if _PRINT_CONFIG.value:
    print(config)
    return
  logging.set_verbosity(logging.WARNING)
  with distributed.session(distributed.settings_from_flags()):
    # Imported after the flags are known to be right: jax takes a second.
    import jax

    from star_jax.train.checkpoint import quiet_storage
    from star_jax.train.loop import train_and_evaluate

    quiet_storage()
    train_and_evaluate(
      config,
      _workdir(jax.process_count()),
      compare_to=_COMPARE_TO.value,
      profile_steps=_PROFILE_STEPS.value,
    )


def _workdir(num_processes: int) -> Path:
  if _WORKDIR.value:
    return Path(_WORKDIR.value)
  name, _, argument = flags.FLAGS["config"].config_filename.partition(":")
  if argument and num_processes > 1:
    raise ValueError(
      f"A run of {num_processes} processes with :{argument} needs --workdir:"
      " they all write into one folder."
    )
  if argument:
    return Path(tempfile.mkdtemp(prefix=f"{Path(name).stem}-"))
  return Path("runs") / Path(name).stem


if __name__ == "__main__":
  restart_with_large_pages()
  run_main(main)
