"""Measures a bundle: reconstruction, prompt following, retrieval, ranking.

  python launch/evaluate.py --what=tokenizer --ckpt=DIR --out=results/x
  python launch/evaluate.py --what=all --n=1000

Prints a table for each part and writes <part>.json and pictures to --out. A
part whose result is already there with the same bundle and settings is kept.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from absl import app, flags
from ml_collections import config_flags

from star_jax.cli import run_main

_DEFAULT_CONFIG = Path(__file__).resolve().parent.parent / "configs/evaluate.py"
_CONFIG = config_flags.DEFINE_config_file(
  "config",
  None,
  "Settings of all parts, configs/evaluate.py if absent; single ones change"
  " with --config.scenes.num_ceiling=50.",
)
_WHAT = flags.DEFINE_string(
  "what",
  "all",
  "tokenizer, precision, scenes, icons, copy, ranking (several with commas)"
  " or all; shapes, for a model that draws every ratio; refinement, for one"
  " with a refinement head.",
)
_CKPT = flags.DEFINE_string("ckpt", None, "Bundle; the shipped one if absent.")
_N = flags.DEFINE_integer("n", None, "Pictures to measure on, where counted.")
_SEED = flags.DEFINE_integer("seed", None, "Seed of prompts and samples.")
_OUT = flags.DEFINE_string("out", "results/evaluate", "Folder for results.")
_REDO = flags.DEFINE_boolean("redo", False, "Measure what is there again.")


def main(argv):
  if len(argv) > 1:
    raise app.UsageError(f"Unknown arguments: {' '.join(argv[1:])}")
  from star_jax.bundle import load_bundle
  from star_jax.compilation import use_compilation_cache
  from star_jax.metrics.evaluate import evaluate

  use_compilation_cache()
  config = _CONFIG.value
  if _N.value is not None:
    config.n = _N.value
  if _SEED.value is not None:
    config.seed = _SEED.value
  bundle = load_bundle(_CKPT.value)
  print(f"bundle {bundle.path} ({bundle.hash}), n {config.n}")
  evaluate(_WHAT.value, bundle, config, _OUT.value, redo=_REDO.value)


def with_config(argv: list[str]) -> list[str]:
  """The arguments with --config at its default where it is not given.

  A default of the flag itself would be read while this file is imported, and
  an unknown key would end in a traceback.
  """
  if any(arg.lstrip("-").split("=")[0] == "config" for arg in argv[1:]):
    return argv
  return [argv[0], f"--config={_DEFAULT_CONFIG}", *argv[1:]]


if __name__ == "__main__":
  sys.argv = with_config(sys.argv)
  run_main(main)
