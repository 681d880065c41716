"""Tokenizers of one size with different objectives, at equal compute.

  OUT/arms/ARM/seed-N              a training run
  OUT/arms/ARM/seed-N/evaluation   what launch/evaluate.py finds of it
  OUT/results.json, OUT/tables.md  all of them

A run that is finished is kept, one that was stopped goes on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from star_jax.bundle import load_bundle
from star_jax.metrics.evaluate import evaluate
from star_jax.metrics.report import table, write_json
from star_jax.sweep.plan import chosen_arms
from star_jax.sweep.runs import Stopped, train_run
from star_jax.sweep.tables import TABLES, plain
from star_jax.train.flops import count_flops
from star_jax.train.optimizer import run_optimizer
from star_jax.train.state import create_state, of_players
from star_jax.train.task import BUNDLE
from star_jax.train.tokenizer_task import TokenizerTask

RESULTS = "results.json"
# Columns: title, where in the values of an evaluation, digits, factor.
COLUMNS = (
  ("PSNR, art", ("psnr", "art"), 2, 1),
  ("PSNR, all", ("psnr", "whole"), 2, 1),
  ("SSIM", ("quality", "ssim"), 4, 1),
  ("VGG16-HED", ("quality", "perceptual"), 4, 1),
  ("KID x 1000", ("quality", "kid"), 2, 1000),
  ("Frechet", ("quality", "frechet"), 1, 1),
  ("codes used, %", ("codebook", "used_share"), 1, 100),
  ("perplexity", ("codebook", "perplexity"), 0, 1),
)


@dataclasses.dataclass(frozen=True)
class TokenizerArm:
  """One objective.

  Attributes:
    name: of its folder.
    title: for people.
    seeds: of its runs.
    config: of a run, whatever its seed.
    flops: of a step before the discriminator comes in, and after.
  """

  name: str
  title: str
  seeds: tuple[int, ...]
  config: ConfigDict
  flops: tuple[int, int]


def plan_arms(
  config: ConfigDict, names: Sequence[str] = ()
) -> list[TokenizerArm]:
  """The arms of a sweep, each with the steps that the budget buys.

  Args:
    config: see configs/tokenizer_arms.py.
    names: only these; empty for all.

  Raises:
    ValueError: an unknown arm, or a budget of less than one step.
  """
  return [_plan_arm(config, arm) for arm in chosen_arms(config, names)]


def _plan_arm(config: ConfigDict, arm: Mapping[str, Any]) -> TokenizerArm:
  run = config.training.copy_and_resolve_references()
  run.update_from_flattened_dict(arm["changes"])
  share = config.start_share
  before, after = step_flops(run)
  steps = int(
    config.budget_tflops * 1e12 / (share * before + (1 - share) * after)
  )
  if steps < 1:
    raise ValueError(
      f"The budget of {config.budget_tflops} TFLOP buys no step of the arm"
      f" {arm['name']}; one costs {after / 1e12:.3f} TFLOP."
    )
  run.num_steps = run.eval_every = run.sample_every = steps
  run.adversary.start = round(share * steps)
  return TokenizerArm(
    arm["name"], arm["title"], tuple(arm["seeds"]), run, (before, after)
  )


def step_flops(config: ConfigDict) -> tuple[int, int]:
  """FLOPs of the loss and its gradients of one step, before the discriminator
  comes in and after; equal without one."""
  task, optimizer = TokenizerTask(config), run_optimizer(config)
  state = jax.eval_shape(
    lambda key: create_state(task, optimizer, key), jax.random.key(0)
  )
  shape = (config.batch_size, *config.data_options.size, 3)
  rest = (
    state.extra,
    jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), task.frozen),
    {"image": jax.ShapeDtypeStruct(shape, jnp.uint8)},
    jax.eval_shape(lambda: jax.random.key(0)),
    state.step,
  )
  counted = []
  for step in (0, config.adversary.start):
    loss = of_players(task.loss_at(step))
    grad = jax.grad(lambda *args, loss=loss: loss(*args)[0])
    counted.append(count_flops(grad, state.players, *rest))
  return tuple(counted)


def describe(arms: Sequence[TokenizerArm]) -> str:
  """The plan as a table, before anything runs."""
  rows = [
    (
      arm.name,
      f"{arm.flops[0] / 1e9:.1f}",
      f"{arm.flops[1] / 1e9:.1f}",
      str(arm.config.num_steps),
      str(arm.config.num_steps * arm.config.batch_size),
      ", ".join(map(str, arm.seeds)),
    )
    for arm in arms
  ]
  header = ("arm", "GFLOP a step", "with adversary", "steps", "pictures")
  return table(rows, (*header, "seeds"))


def run_arms(
  config: ConfigDict, out: str | Path, names: Sequence[str] = ()
) -> dict[str, Any]:
  """Trains and measures the arms, the first seed of all of them first; writes
  the table after every run.

  Args:
    config: see configs/tokenizer_arms.py.
    out: the folder of everything; a sweep that was stopped goes on there.
    names: only these arms; empty for all.

  Returns:
    What OUT/results.json holds; "stopped" names the signal that ended it.

  Raises:
    ValueError: see `plan_arms`.
  """
  arms, out = plan_arms(config, names), Path(out)
  print(describe(arms), flush=True)
  found: dict[str, dict[str, Any]] = {}
  stopped = None
  turns = [
    (arm, arm.seeds[i])
    for i in range(max(len(arm.seeds) for arm in arms))
    for arm in arms
    if i < len(arm.seeds)
  ]
  try:
    for arm, seed in turns:
      folder = out / "arms" / arm.name / f"seed-{seed}"
      run = arm.config.copy_and_resolve_references()
      run.seed = seed
      train_run(run, folder)
      bundle = load_bundle(folder / BUNDLE)
      values = evaluate(
        "tokenizer", bundle, config.measure, folder / "evaluation"
      )
      row = found.setdefault(arm.name, {"title": arm.title, "seeds": {}})
      row |= {"steps": run.num_steps, "flops": arm.flops}
      row["seeds"][str(seed)] = values["tokenizer"]["values"]
      _report(found, config, out)
      jax.clear_caches()
  except Stopped as signal:
    stopped = str(signal)
    print(
      f"Stopped by {stopped}; the same command goes on from there.", flush=True
    )
  return _report(found, config, out) | {"stopped": stopped}


def _report(found, config: ConfigDict, out: Path) -> dict[str, Any]:
  results = {"arms": plain(found), "reference": config.reference}
  write_json(out / RESULTS, results)
  (out / TABLES).write_text(arms_table(results) + "\n")
  return results


def arms_table(results: Mapping[str, Any]) -> str:
  """Mean of the seeds and half of their range; below, what each arm differs by
  from the reference."""
  rows, means = [], {}
  for name, arm in results["arms"].items():
    columns = [_values(arm, path) * factor for _, path, _, factor in COLUMNS]
    means[name] = [x.mean() for x in columns]
    cells = [
      "-" if np.isnan(x).any() else
      f"{x.mean():.{digits}f} ±{np.ptp(x) / 2:.{digits}f}"
      for x, (_, _, digits, _) in zip(columns, COLUMNS)
    ]  # fmt: skip
    rows.append(
      (arm["title"], str(len(arm["seeds"])), str(arm["steps"]), *cells)
    )
  lines = [table(rows, ("", "seeds", "steps", *(c[0] for c in COLUMNS)))]
  reference = means.get(results["reference"])
  for name, own in means.items() if reference is not None else ():
    if own is not reference:
      lines.append(_difference(results["arms"][name]["title"], own, reference))
  return "\n\n".join(lines)


def _difference(title: str, own, reference) -> str:
  named = dict(zip((c[0] for c in COLUMNS), zip(own, reference)))
  art = named["PSNR, art"]
  parts = [f"PSNR over the art {art[0] - art[1]:+.2f} dB"]
  for key, name in (("KID x 1000", "KID"), ("Frechet", "Frechet distance")):
    here, there = named[key]
    # Of a KID of about 0 no share can be taken.
    if np.isfinite([here, there]).all() and there > 0:
      parts.append(f"{name} {100 * (here / there - 1):+.0f}%")
  return f"{title} against the reference: {', '.join(parts)}."


def _values(arm: Mapping[str, Any], path: tuple[str, ...]) -> np.ndarray:
  """A figure of every seed, nan where it was not measured."""
  out = []
  for values in arm["seeds"].values():
    for key in path:
      values = values.get(key, {})
    out.append(values if isinstance(values, (int, float)) else np.nan)
  return np.asarray(out, np.float64)
