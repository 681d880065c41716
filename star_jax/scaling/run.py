"""Runs a scaling sweep: all jobs in turn, or one of them.

Figures of a job at a budget are in OUT/jobs/JOB/steps-N.json, those of all
together in OUT/results.json, which is what launch/fit_scaling.py reads.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from flax import traverse_util
from ml_collections import ConfigDict

from star_jax.metrics.report import read_json, write_json
from star_jax.scaling.plan import Plan, describe, plan_sweep
from star_jax.scaling.runs import PREPARED, Runs
from star_jax.sweep.runs import Stopped
from star_jax.sweep.tables import plain
from star_jax.train.logging import format_seconds

RESULTS, PROTOCOL = "results.json", "protocol.json"
# What may be added to a sweep that runs already, or changes no run.
_MAY_CHANGE = ("sizes", "seeds", "grid")


def run_sweep(
  config: ConfigDict,
  out: str | Path,
  *,
  only: int | None = None,
  prepare_only: bool = False,
) -> dict[str, Any]:
  """Trains and measures the jobs that are not finished.

  Args:
    config: see configs/scaling_law.py.
    out: the folder of everything; a sweep that was stopped goes on there.
    only: number of a single job, of a sweep that is prepared; None: all.
    prepare_only: tokenizer, token caches and learning rate, no job.

  Returns:
    What OUT/results.json holds; "stopped" names the signal that ended it.

  Raises:
    ValueError: a config that makes no sense, no such job, or a folder of
      another sweep.
  """
  plan, runs = plan_sweep(config), Runs(config, Path(out))
  if only is not None and not 0 <= only < len(plan.jobs):
    raise ValueError(
      f"--only is the number of a job, 0 to {len(plan.jobs) - 1}, got {only}."
    )
  _check_protocol(config, runs.out)
  print(describe(plan, config), flush=True)
  stopped = None
  try:
    if only is None:
      runs.prepare()
    else:
      runs.prepared()
    jobs = plan.jobs if only is None else plan.jobs[only : only + 1]
    for job in () if prepare_only else jobs:
      start = time.monotonic()
      runs.run_job(job, plan.budgets)
      collect(runs, plan)
      seconds = format_seconds(time.monotonic() - start)
      print(f"== {job.name} is finished ({seconds} in this call)", flush=True)
  except Stopped as signal:
    stopped = str(signal)
    print(
      f"Stopped by {stopped}; the same command goes on from there.", flush=True
    )
  return collect(runs, plan) | {"stopped": stopped}


def collect(runs: Runs, plan: Plan) -> dict[str, Any]:
  """Writes OUT/results.json of what is there."""
  config = runs.config
  points = [
    point
    for job in plan.jobs
    for budget in plan.budgets
    if (point := read_json(runs.point_path(job, budget)))
  ]
  results = {
    "sizes": [f"d{depth}" for depth in sorted(config.sizes)],
    "seeds": list(config.seeds),
    "fractions": list(config.fractions),
    "rates": config.rates.to_dict(),
    "most_gap": config.measure.most_gap,
    "prepared": read_json(runs.out / PREPARED),
    "points": points,
  }
  write_json(runs.out / RESULTS, results)
  return results


def _check_protocol(config: ConfigDict, out: Path) -> None:
  """ValueError where the folder has runs of other settings."""
  values = {k: v for k, v in config.to_dict().items() if k not in _MAY_CHANGE}
  new, path = plain(values), out / PROTOCOL
  old = read_json(path)
  if old is None:
    write_json(path, new)
    return
  old, new = (traverse_util.flatten_dict(x, sep=".") for x in (old, new))
  differing = [
    f"config.{key} is {old.get(key)!r} there and {new.get(key)!r} here"
    for key in sorted(old.keys() | new.keys())
    if old.get(key) != new.get(key)
  ]
  if differing:
    raise ValueError(
      f"{out} holds a sweep of other settings: {'; '.join(differing[:3])}; give"
      " another --out, or the settings of that sweep."
    )
