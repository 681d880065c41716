"""Encodes pictures and captions once, for the training of stage 2.

  python launch/cache_tokens.py --config=configs/star_scenes64.py

A build that was stopped goes on with the same command.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from absl import flags, logging
from ml_collections import config_flags

from star_jax.cli import run_main
from star_jax.large_pages import restart_with_large_pages

_CONFIG = config_flags.DEFINE_config_file(
  "config", None, "A config of stage 2; config.cache says what is built."
)
_SPLITS = flags.DEFINE_list(
  "splits", ["train", "heldout"], "Which splits to build."
)


def main(argv):
  if len(argv) > 1:
    raise ValueError(f"Unexpected argument {argv[1]!r}; see --help.")
  if _CONFIG.value is None:
    raise ValueError("--config is needed, as in --config=configs/NAME.py.")
  from star_jax.train.build_cache import build_cache

  logging.set_verbosity(logging.WARNING)
  path = build_cache(_CONFIG.value.lock(), _SPLITS.value)
  print(f"The token cache is in {path}.")


if __name__ == "__main__":
  restart_with_large_pages()
  run_main(main)
