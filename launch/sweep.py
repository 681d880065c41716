"""Many small runs: arms of an ablation, or sizes and budgets of a scaling law.

  python launch/sweep.py --config=configs/ablations.py --out=runs/ablations
  python launch/sweep.py --config=configs/scaling_law.py --out=runs/scaling
  python launch/sweep.py --config=configs/scaling_law.py --plan
  python launch/sweep.py --config=configs/ablations.py:runlocal --out=/tmp/arms
  python launch/sweep.py --config=configs/tokenizer_arms.py --out=runs/arms

A sweep that was stopped goes on with the same command; what is finished is
kept. OUT/tables.md (and OUT/ablations.png) are written anew after every arm; of
a scaling law OUT/results.json is, for launch/fit_scaling.py. The jobs of a
scaling law are independent once --prepare has run: --only=3 runs one of them,
launch/slurm_sweep.sh all as a job array.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from absl import flags, logging
from ml_collections import config_flags

from star_jax.cli import run_main
from star_jax.large_pages import restart_with_large_pages

_CONFIG = config_flags.DEFINE_config_file("config", None, "Which sweep.")
_OUT = flags.DEFINE_string("out", None, "Folder of all runs and results.")
_ARMS = flags.DEFINE_list("arms", [], "Only these arms; all if absent.")
_ONLY = flags.DEFINE_integer("only", None, "Only the job with this number.")
_PREPARE = flags.DEFINE_bool(
  "prepare", False, "What all jobs share, and leave: tokenizer, tokens, rate."
)
_PLAN = flags.DEFINE_bool("plan", False, "Print what would run, and leave.")


def main(argv):
  if len(argv) > 1:
    raise ValueError(f"Unexpected argument {argv[1]!r}; see --help.")
  if _CONFIG.value is None or not (_OUT.value or _PLAN.value):
    raise ValueError("--config and --out are needed; --plan needs no --out.")
  config = _CONFIG.value.lock()
  logging.set_verbosity(logging.WARNING)
  if config.kind == "scaling":
    return _scaling(config)
  if _ONLY.value is not None or _PREPARE.value:
    raise ValueError(
      "A sweep of arms has --arms; --only and --prepare are of jobs."
    )
  if config.kind == "tokenizers":
    return _tokenizers(config)
  from star_jax.sweep import plan
  from star_jax.sweep.run import run_sweep

  if _PLAN.value:
    print(plan.describe(plan.plan_arms(config, _ARMS.value), config))
    return None
  results = run_sweep(config, _OUT.value, _ARMS.value)
  print(f"Tables: {Path(_OUT.value) / 'tables.md'}")
  return 1 if results["stopped"] else None


def _scaling(config):
  if _ARMS.value:
    raise ValueError("A scaling law has jobs: --only=NUMBER, not --arms.")
  from star_jax.compilation import use_compilation_cache
  from star_jax.scaling import plan
  from star_jax.scaling.run import RESULTS, run_sweep

  if _PLAN.value:
    print(plan.describe(plan.plan_sweep(config), config))
    return None
  use_compilation_cache()
  results = run_sweep(
    config, _OUT.value, only=_ONLY.value, prepare_only=_PREPARE.value
  )
  print(f"{len(results['points'])} points: {Path(_OUT.value) / RESULTS}")
  return 1 if results["stopped"] else None


def _tokenizers(config):
  from star_jax.sweep import tokenizer_arms

  if _PLAN.value:
    arms = tokenizer_arms.plan_arms(config, _ARMS.value)
    print(tokenizer_arms.describe(arms))
    return None
  results = tokenizer_arms.run_arms(config, _OUT.value, _ARMS.value)
  print(f"Tables: {Path(_OUT.value) / 'tables.md'}")
  return 1 if results["stopped"] else None


if __name__ == "__main__":
  restart_with_large_pages()
  run_main(main)
