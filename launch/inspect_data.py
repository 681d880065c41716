"""Shows what a config trains on: captions, crops, tokens, reconstructions.

  python launch/inspect_data.py --config=configs/tokenizer_scenes64.py
  python launch/inspect_data.py --config=configs/star_scenes64.py \
    --tokenizer=star_jax/bundles/scenes64 --out=inspect.png

One PNG with --count examples; the sources, what was skipped and what the text
window cuts off are printed.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from absl import flags, logging
from ml_collections import config_flags

from star_jax.cli import run_main

_CONFIG = config_flags.DEFINE_config_file(
  "config", None, "A training config; keys change with --config.key=value."
)
_SPLIT = flags.DEFINE_enum(
  "split", "train", ["train", "seen", "heldout"], "Which examples."
)
_COUNT = flags.DEFINE_integer("count", 24, "Examples on the sheet.", 1)
_SEED = flags.DEFINE_integer("seed", 0, "Order and augmentation.", 0)
_TOKENIZER = flags.DEFINE_string(
  "tokenizer", "", "Bundle whose tokens and reconstructions are shown."
)
_OUT = flags.DEFINE_string("out", "inspect.png", "Where the sheet goes.")


def main(argv):
  if len(argv) > 1:
    raise ValueError(f"Unexpected argument {argv[1]!r}; see --help.")
  if _CONFIG.value is None:
    raise ValueError("--config is needed, as in --config=configs/NAME.py.")
  # Imported after the flags are known to be right: jax takes a second.
  from star_jax.inspection import inspect

  logging.set_verbosity(logging.WARNING)
  sheet, lines = inspect(
    _CONFIG.value.lock(),
    _SPLIT.value,
    _COUNT.value,
    _TOKENIZER.value,
    _SEED.value,
  )
  print("\n".join(lines))
  sheet.save(_OUT.value)
  print(f"The sheet is {_OUT.value}.")


if __name__ == "__main__":
  run_main(main)
