"""Fits scaling laws to the result file of a sweep; trains nothing.

  python launch/fit_scaling.py --results=runs/scaling/results.json \
    --out=results/scaling

Prints and writes power laws of size and compute, the compute-optimal frontier
and how well the largest size, held out of the fits, is predicted: fit.json,
tables.md, scaling_size.png and scaling_compute.png in --out.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from absl import flags

from star_jax.cli import run_main

_RESULTS = flags.DEFINE_string("results", None, "Result file of a sweep.")
_OUT = flags.DEFINE_string("out", None, "Folder; that of --results if absent.")
_HELD_OUT = flags.DEFINE_string(
  "held_out", "", "Size that is predicted, the largest if absent."
)
_RESAMPLES = flags.DEFINE_integer(
  "resamples", 1000, "Of the bootstrap.", lower_bound=100
)
_SEED = flags.DEFINE_integer("seed", 0, "Of the bootstrap.")


def main(argv):
  if len(argv) > 1:
    raise ValueError(f"Unexpected argument {argv[1]!r}; see --help.")
  if _RESULTS.value is None:
    raise ValueError("--results is needed: the results.json of a sweep.")
  from star_jax.metrics.report import write_json
  from star_jax.scaling import figures, fit, points, tables

  found, results = points.load_points(_RESULTS.value)
  split = fit.split_points(found, _HELD_OUT.value, _RESULTS.value)
  options = fit.Options(resamples=_RESAMPLES.value, seed=_SEED.value)
  out = Path(_OUT.value or Path(_RESULTS.value).parent)
  fitted = {
    "results": Path(_RESULTS.value).name,
    "held_out": split.held.sizes[0],
    "resamples": options.resamples,
    "seed": options.seed,
    "huber": options.huber,
    "gaps": fit.gaps(found, results),
    "measures": fit.fit_all(split, options),
  }
  write_json(out / "fit.json", fitted)
  text = tables.write_tables(fitted, found)
  (out / "tables.md").write_text(text, encoding="utf-8")
  figures.draw(fitted, found, split, out)
  print(text)
  print(f"Tables and figures: {out}")


if __name__ == "__main__":
  run_main(main)
