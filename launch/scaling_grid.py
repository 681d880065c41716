"""A sheet of what every size of a scaling sweep draws after every budget.

  python launch/scaling_grid.py --config=configs/scaling_law.py \
    --runs=runs/scaling --out=runs/scaling/grid.png

The prompts are those of config.grid; the same prompt has the same random
numbers in all rows and columns. Runs that are not finished are left grey.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from absl import flags, logging
from ml_collections import config_flags

from star_jax.cli import run_main

_CONFIG = config_flags.DEFINE_config_file("config", None, "Of the sweep.")
_RUNS = flags.DEFINE_string("runs", None, "Folder of the sweep.")
_OUT = flags.DEFINE_string("out", None, "PNG; grid.png in --runs if absent.")


def main(argv):
  if len(argv) > 1:
    raise ValueError(f"Unexpected argument {argv[1]!r}; see --help.")
  if _CONFIG.value is None or _RUNS.value is None:
    raise ValueError("--config and --runs are needed.")
  from star_jax.compilation import use_compilation_cache
  from star_jax.scaling.grid import picture_grid
  from star_jax.scaling.plan import plan_sweep
  from star_jax.scaling.runs import Runs

  logging.set_verbosity(logging.WARNING)
  use_compilation_cache()
  config = _CONFIG.value.lock()
  out = Path(_OUT.value or Path(_RUNS.value) / "grid.png")
  sheet = picture_grid(
    Runs(config, Path(_RUNS.value)),
    plan_sweep(config),
    config.grid.prompts,
    config.grid.seed,
  )
  out.parent.mkdir(parents=True, exist_ok=True)
  sheet.save(out)
  print(f"The grid is {out}.")


if __name__ == "__main__":
  run_main(main)
