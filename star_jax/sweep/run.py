"""Runs a sweep from its config to its tables, arm by arm.

Everything that is finished is on disk: results of an arm in
OUT/arms/ARM/result.json, all together in OUT/results.json.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from star_jax.api import StarPipeline
from star_jax.bundle import load_bundle
from star_jax.metrics.report import read_json, write_json
from star_jax.sweep import cost, plan, tables
from star_jax.sweep.measure import Yardstick
from star_jax.sweep.plan import Arm
from star_jax.sweep.runs import Stopped, Sweep
from star_jax.sweep.sheets import sheet_path, write_samples
from star_jax.train.logging import format_seconds
from star_jax.train.task import BUNDLE

RESULT, RESULTS = "result.json", "results.json"


def run_sweep(
  config: ConfigDict, out: str | Path, names: Sequence[str] = ()
) -> dict[str, Any]:
  """Trains and measures the arms; writes the tables after each of them.

  Args:
    config: see configs/ablations.py.
    out: the folder of everything; a sweep that was stopped goes on there.
    names: only these arms; empty for all.

  Returns:
    What OUT/results.json holds; "stopped" names the signal that ended it.

  Raises:
    ValueError: a config that makes no sense, see `plan.plan_arms`.
  """
  sweep, out = Sweep(config, Path(out)), Path(out)
  arms = plan.plan_arms(config)
  chosen = plan.plan_arms(config, names)
  print(plan.describe(chosen, config), flush=True)
  yardstick = Yardstick(config.measure, config.training.data_options)
  todo, stopped = [a for a in chosen if not _finished(sweep, a)], None
  try:
    sweep.prepare()
    _ceilings(sweep, yardstick)
    clock = _Clock(todo, config)
    for arm in todo:
      _run_arm(sweep, arm, yardstick)
      _report(sweep, arms)
      print(clock.line(arm), flush=True)
    if not names:
      _costs(sweep, arms)
  except Stopped as signal:
    stopped = str(signal)
    print(
      f"Stopped by {stopped}; the same command goes on from there.", flush=True
    )
  return _report(sweep, arms) | {"stopped": stopped}


def _result_path(sweep: Sweep, arm: Arm) -> Path:
  return sweep.out / "arms" / arm.name / RESULT


def _finished(sweep: Sweep, arm: Arm) -> dict | None:
  """The result of an arm, None if it has none or one of other settings."""
  result = read_json(_result_path(sweep, arm))
  if result and result["protocol"] == _protocol(sweep, arm):
    return result
  return None


def _protocol(sweep: Sweep, arm: Arm) -> dict[str, Any]:
  """All that decides the figures of an arm and may be changed in the config."""
  config = sweep.config
  return tables.plain(
    {
      "model": arm.model.to_dict(),
      "steps": arm.num_steps,
      "probe_steps": arm.probe_steps,
      "learning_rates": config.learning_rates,
      "seeds": config.seeds,
      "measure": config.measure.to_dict(),
    }
  )


def _run_arm(sweep: Sweep, arm: Arm, yardstick: Yardstick) -> None:
  config = sweep.config
  rate, probes = sweep.learning_rate(arm)
  draws = tables.draws_of(config.tables, arm.name)
  first = config.training.batch_size * config.training.eval_batches
  seeds = {}
  for seed in config.seeds:
    sweep.train(arm, rate, seed)
    bundle = load_bundle(sweep.bundle(arm, seed))
    pipeline = StarPipeline(bundle)
    seeds[str(seed)] = {
      "bundle": bundle.hash,
      "likelihood": yardstick.likelihood(
        bundle, sweep.tokens(arm.tokenizer), first
      ),
      "draws": {
        name: yardstick.draw(
          pipeline, name, sheet_path(sweep.out, arm.name, name, seed)
        )
        for name in draws
      },
    }
    jax.clear_caches()
  write_json(
    _result_path(sweep, arm),
    {
      "protocol": _protocol(sweep, arm),
      "title": arm.title,
      "tokenizer": arm.tokenizer,
      "grids": arm.model.schedule.grids,
      "steps": arm.num_steps,
      "examples": arm.num_steps * config.training.batch_size,
      "parameters": sum(x.size for x in jax.tree.leaves(bundle.params["star"])),
      "learning_rate": rate,
      "probes": probes,
      "seeds": seeds,
    },
  )


def _ceilings(sweep: Sweep, yardstick: Yardstick) -> None:
  path = sweep.out / "ceilings.json"
  if read_json(path) is None:
    names = sweep.config.tokenizers
    bundles = {name: sweep.tokenizer(name) / BUNDLE for name in names}
    write_json(path, yardstick.ceilings(bundles))


def _costs(sweep: Sweep, arms: Sequence[Arm]) -> None:
  """Timed at the end, when all models are there, one after the other."""
  measure, by_name = sweep.config.measure, {arm.name: arm for arm in arms}
  rows = {
    f"{arm}/{draw}": (
      sweep.bundle(by_name[arm], sweep.config.seeds[0]),
      measure.draws[draw].to_dict(),
    )
    for table in sweep.config.tables
    for _, arm, draw in table["rows"]
  }
  if read_json(sweep.out / "costs.json") is None:
    costs = cost.sampling_costs(
      rows, batch=measure.timing_batch, repeats=measure.timing_repeats
    )
    write_json(sweep.out / "costs.json", costs)


def _report(sweep: Sweep, arms: Sequence[Arm]) -> dict[str, Any]:
  """Writes results.json, tables.md and the figure of what is there."""
  found = {arm.name: _finished(sweep, arm) for arm in arms}
  results = {
    "arms": {name: result for name, result in found.items() if result},
    "ceilings": read_json(sweep.out / "ceilings.json"),
    "costs": read_json(sweep.out / "costs.json") or {},
  }
  write_json(sweep.out / RESULTS, results)
  tables.write_tables(results, sweep.config.tables, sweep.out)
  write_samples(sweep.config.tables, sweep.out, sweep.config.seeds[0])
  return results


class _Clock:
  """Time that is left, by the FLOPs of the arms that this call has run."""

  def __init__(self, arms: Sequence[Arm], config: ConfigDict):
    self._left = {a.name: plan.total_flops([a], config) for a in arms}
    self._all, self._start = len(arms), time.monotonic()
    self._done = 0.0

  def line(self, arm: Arm) -> str:
    """After an arm: how many are done and when the rest will be."""
    self._done += self._left.pop(arm.name)
    seconds = time.monotonic() - self._start
    left = sum(self._left.values()) * seconds / self._done
    return (
      f"== {self._all - len(self._left)}/{self._all} arms, last {arm.name},"
      f" {format_seconds(left)} left"
    )
