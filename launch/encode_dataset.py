"""Encodes pictures and captions once, for the training of stage 2.

  python launch/encode_dataset.py --config=configs/star_scenes64.py
  python launch/encode_dataset.py --config=configs/star_256.py --processes=4

What is read is config.cache.source: art, generated scenes, or pictures of your
own in a folder, WebDataset tars, Parquet or ArrayRecord files; see
docs/your_data.md. A build that was stopped goes on with the same command.
Several machines that share a disk each run it with their own --process_id.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from absl import flags, logging
from ml_collections import config_flags

from star_jax.cli import run_main
from star_jax.large_pages import restart_with_large_pages
from star_jax.processes import end_with_parent, run_together

_CONFIG = config_flags.DEFINE_config_file(
  "config", None, "A config of stage 2; config.cache says what is built."
)
_SPLITS = flags.DEFINE_list(
  "splits", ["train", "heldout"], "Which splits to build."
)
_PROCESSES = flags.DEFINE_integer(
  "processes", 1, "How many to start on this machine.", 1
)
_PROCESS_ID = flags.DEFINE_integer(
  "process_id", 0, "Number of this process among --num_processes.", 0
)
_NUM_PROCESSES = flags.DEFINE_integer(
  "num_processes", 1, "Processes that build the cache together.", 1
)


def main(argv):
  if len(argv) > 1:
    raise ValueError(f"Unexpected argument {argv[1]!r}; see --help.")
  if _CONFIG.value is None:
    raise ValueError("--config is needed, as in --config=configs/NAME.py.")
  if _PROCESSES.value > 1:
    if _NUM_PROCESSES.value > 1:
      raise ValueError(
        "--processes starts them all, --num_processes is for those that you"
        " start yourself; give one of the two."
      )
    return run_together(sys.argv, _PROCESSES.value)
  end_with_parent()
  from star_jax.train.build_cache import build_cache

  logging.set_verbosity(logging.WARNING)
  path = build_cache(
    _CONFIG.value.lock(),
    _SPLITS.value,
    process=_PROCESS_ID.value,
    processes=_NUM_PROCESSES.value,
  )
  print(f"The token cache is in {path}.")


if __name__ == "__main__":
  restart_with_large_pages()
  run_main(main)
