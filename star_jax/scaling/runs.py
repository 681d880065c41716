"""The training runs of a scaling sweep, each in a folder of its own.

  OUT/tokenizer                stage 1
  OUT/tokens                   token caches: train, heldout, seen (new scenes)
  OUT/prepared.json            learning rate, repeats by chance
  OUT/rates/RATE/              short runs that the rate is chosen by
  OUT/jobs/JOB/trunk           the run at a constant rate
  OUT/jobs/JOB/steps-N         cool-downs, each from a checkpoint of the trunk
  OUT/jobs/JOB/steps-N.json    what a cool-down is measured on

What is finished is kept, what was stopped goes on. A cool-down starts from a
copy of the trunk's checkpoint and has its data, moments and random numbers: it
is the run that a schedule of its length would have been from the start.
"""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from star_jax.data.cache_layout import MANIFEST
from star_jax.metrics.report import read_json, write_json
from star_jax.scaling import plan as plan_lib
from star_jax.scaling.measure import (
  HELDOUT,
  NEW,
  NEW_SPLIT,
  TRAIN,
  count_repeats,
  evaluate,
  measure,
)
from star_jax.scaling.plan import Budget, Job
from star_jax.sweep.runs import Stopped
from star_jax.train.build_cache import build_cache
from star_jax.train.checkpoint import find_run, read_params
from star_jax.train.loop import train_and_evaluate
from star_jax.train.task import BUNDLE
from star_jax.train.transformer_task import TransformerTask

PREPARED = "prepared.json"
CHECKPOINTS = "checkpoints"


@dataclasses.dataclass(frozen=True)
class Runs:
  """config: see configs/scaling_law.py. out: the folder of everything."""

  config: ConfigDict
  out: Path

  def prepare(self) -> dict[str, Any]:
    """Trains the tokenizer, fills the token caches, chooses the rate.

    Returns:
      What OUT/prepared.json holds.

    Raises:
      Stopped: a signal came.
    """
    path = self.out / PREPARED
    if found := read_json(path):
      return found
    tokenizer = self.out / "tokenizer"
    if not (tokenizer / BUNDLE).exists():
      _train(self.config.tokenizer, tokenizer)
    for split in (TRAIN, HELDOUT, NEW_SPLIT):
      manifest = read_json(self.out / "tokens" / split / MANIFEST)
      if manifest is None or not manifest["complete"]:
        build_cache(self._training(), (split,))
    rate, tried = self._choose_rate()
    write_json(
      path, {"learning_rate": rate, "rates": tried, **self._token_facts()}
    )
    return read_json(path)

  def prepared(self) -> dict[str, Any]:
    """Of a sweep that is prepared.

    Raises:
      ValueError: it is not.
    """
    found = read_json(self.out / PREPARED)
    if found is None:
      raise ValueError(
        f"{self.out} is not prepared: tokenizer, token caches and learning rate"
        " come before the jobs; run the same command with --prepare first."
      )
    return found

  def point_path(self, job: Job, budget: Budget) -> Path:
    """Where the figures of a job at a budget lie."""
    return self._job(job) / f"steps-{budget.num_steps}.json"

  def bundle(self, job: Job, budget: Budget) -> Path:
    """Where the model of a job at a budget lies."""
    return self._cooldown(job, budget) / BUNDLE

  def run_job(self, job: Job, budgets: tuple[Budget, ...]) -> None:
    """Trains and measures what is not there yet, short budgets first.

    Raises:
      Stopped: a signal came.
    """
    for budget in budgets:
      path = self.point_path(job, budget)
      if read_json(path) is None:
        write_json(path, self._point(job, budget))
        jax.clear_caches()

  def _point(self, job: Job, budget: Budget) -> dict[str, Any]:
    prepared = self.prepared()
    rate = prepared["learning_rate"]
    if self.config.rates.rule == "var":
      rate = plan_lib.var_rate(job.size.depth, self.config.training.batch_size)
    params = self.train(self._job(job), job, budget, rate)
    task = TransformerTask(self._run_config(job, rate, budget.num_steps))
    found = measure(task, params, budget.num_steps, self.config.measure.batches)
    facts = plan_lib.facts_of(job, budget, self.config.training.batch_size)
    stream = prepared["stream"]
    return {**facts, "learning_rate": rate, "stream": stream, **found}

  def train(self, folder: Path, job: Job, budget: Budget, rate: float):
    """The trunk up to the branch, then the cool-down; its parameters.

    Args:
      folder: of the job.
      job, budget: what is trained.
      rate: the constant one, of muP's base width.
    """
    workdir = folder / f"steps-{budget.num_steps}"
    if not (workdir / CHECKPOINTS).exists():
      trunk = self._run_config(job, rate, budget.branch_step)
      trunk.optimizer.schedule = "constant"
      _train(trunk, folder / "trunk")
      _branch(folder / "trunk", workdir, budget.branch_step)
    config = self._run_config(job, rate, budget.num_steps)
    config.optimizer.schedule = f"wsd{self.config.cooldown:g}"
    _train(config, workdir)
    return read_params(find_run(workdir)[0])

  def _job(self, job: Job) -> Path:
    return self.out / "jobs" / job.name

  def _cooldown(self, job: Job, budget: Budget) -> Path:
    return self._job(job) / f"steps-{budget.num_steps}"

  def _training(self) -> ConfigDict:
    config = self.config.training.copy_and_resolve_references()
    config.tokenizer_path = str(self.out / "tokenizer" / BUNDLE)
    config.cache.directory = str(self.out / "tokens")
    return config

  def _run_config(self, job: Job, rate: float, steps: int) -> ConfigDict:
    config = self._training()
    config.model = ConfigDict(job.size.model.to_dict())
    config.seed, config.num_steps = job.seed, steps
    config.optimizer.learning_rate = rate
    return config

  def _choose_rate(self) -> tuple[float, dict[str, float]]:
    """The best candidate at the base depth, and what each reached on new
    scenes behind those that are measured."""
    rates, losses = self.config.rates, {}
    if rates.rule == "var" or len(rates.candidates) == 1:
      return float(rates.candidates[0]), {}
    size = plan_lib.plan_size(self.config, rates.base_depth)
    shorter = self.config.copy_and_resolve_references()
    shorter.fractions = (rates.fraction, 1.0)
    budget = plan_lib.plan_budgets(shorter)[0]
    job, first = Job(size, rates.seed), self.config.measure.batches
    for rate in rates.candidates:
      params = self.train(self.out / "rates" / f"{rate:g}", job, budget, rate)
      task = TransformerTask(self._run_config(job, rate, budget.num_steps))
      behind = task.data.cache(NEW_SPLIT).in_order(
        task.config.batch_size, 2 * first
      )
      found = evaluate(task, params, list(behind)[first:])
      losses[f"{rate:g}"] = found["loss"]["all"]
      jax.clear_caches()
    return float(min(losses, key=losses.get)), losses

  def _token_facts(self) -> dict[str, Any]:
    """Which tokens they are, and what chance repeats among them."""
    config = self._training()
    config.model = ConfigDict(
      plan_lib.plan_size(self.config, min(self.config.sizes)).model.to_dict()
    )
    data = TransformerTask(config).data
    train = data.cache(TRAIN)
    others = {NEW: data.cache(NEW_SPLIT), HELDOUT: data.cache(HELDOUT)}
    return {
      "stream": {
        "tokenizer": data.tokenizer.hash,
        "examples": len(train),
        "scales": data.tokenizer.config.schedule.lengths,
      },
      "repeats": {
        TRAIN: count_repeats(train) / len(train),
        **{
          name: count_repeats(train, cache) / len(cache)
          for name, cache in others.items()
        },
      },
    }


def _train(config: ConfigDict, workdir: Path) -> None:
  """Trains until config.num_steps, from where the folder's run is."""
  print(f"\n== {workdir}", flush=True)
  summary = train_and_evaluate(config, workdir)
  if summary["exported"] is None:
    raise Stopped(summary["stopped"])


def _branch(trunk: Path, workdir: Path, step: int) -> None:
  """Puts the trunk's checkpoint into the folder of a cool-down.

  Raises:
    ValueError: the trunk is further.
  """
  newest, _ = find_run(trunk)
  if int(newest.name) != step:
    raise ValueError(
      f"The run in {trunk} is at step {newest.name}, and a cool-down branches"
      f" off at {step}; delete the folder of the job to run it again."
    )
  coming = workdir / "coming"
  shutil.rmtree(coming, ignore_errors=True)
  shutil.copytree(newest, coming / str(step))
  # A reader never sees half of it.
  coming.rename(workdir / CHECKPOINTS)
