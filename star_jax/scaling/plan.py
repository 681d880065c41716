"""What a scaling sweep will run: sizes, budgets, jobs and their cost."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
from ml_collections import ConfigDict

from star_jax.model.config import StarConfig
from star_jax.model.star import Star
from star_jax.shapes import parameter_tree
from star_jax.sweep.plan import step_flops

RULES = ("mup", "var", "same")
# Layers and what they read the text with; the rest are embeddings and the head.
NON_EMBEDDING = ("blocks", "cross")
# VAR's README: rate of a batch of 256 from this depth on (its d24 to d36 have
# --tblr=8e-5, the smaller ones the default).
VAR_RATES = ((24, 8e-5), (0, 1e-4))


@dataclasses.dataclass(frozen=True)
class Size:
  """One model. parameters: by top-level collection. flops_per_step: of the
  forward and backward pass of a batch."""

  depth: int
  model: StarConfig
  parameters: dict[str, int]
  flops_per_step: int

  @property
  def name(self) -> str:
    return f"d{self.depth}"

  @property
  def non_embedding(self) -> int:
    """N."""
    return sum(self.parameters.get(name, 0) for name in NON_EMBEDDING)


@dataclasses.dataclass(frozen=True)
class Budget:
  """One length of training: constant rate up to `branch_step`, then a
  cool-down to `num_steps`."""

  fraction: float
  num_steps: int
  branch_step: int


@dataclasses.dataclass(frozen=True)
class Job:
  """One size and seed, through all budgets; independent of the others."""

  size: Size
  seed: int

  @property
  def name(self) -> str:
    return f"{self.size.name}-seed{self.seed}"


@dataclasses.dataclass(frozen=True)
class Plan:
  """jobs: in the order of their numbers. budgets: short ones first."""

  jobs: tuple[Job, ...]
  budgets: tuple[Budget, ...]

  def steps_of_job(self) -> int:
    """Steps of the constant rate and of all cool-downs."""
    return self.budgets[-1].branch_step + sum(
      budget.num_steps - budget.branch_step for budget in self.budgets
    )

  def flops(self) -> float:
    """Training of all jobs."""
    return math.fsum(
      job.size.flops_per_step * self.steps_of_job() for job in self.jobs
    )


def plan_sweep(config: ConfigDict) -> Plan:
  """The jobs of a sweep.

  Args:
    config: see configs/scaling_law.py.

  Raises:
    ValueError: settings that make no sense, or more examples than are cached.
  """
  training, needed = config.training, config.num_steps
  if config.rates.rule not in RULES:
    raise ValueError(
      f"config.rates.rule is one of {', '.join(RULES)}, got"
      f" {config.rates.rule!r}."
    )
  if not config.sizes or not config.seeds or not config.rates.candidates:
    raise ValueError(
      "config.sizes, config.seeds and config.rates.candidates name at least one"
      " each."
    )
  decay = training.optimizer
  if decay.weight_decay != decay.weight_decay_end:
    raise ValueError(
      "A cool-down branches off a run whose weight decay does not depend on its"
      " length: config.training.optimizer.weight_decay_end is its weight_decay,"
      f" {decay.weight_decay:g}, got {decay.weight_decay_end:g}."
    )
  needed *= training.batch_size
  if needed > training.cache.examples:
    raise ValueError(
      f"A run of {config.num_steps} steps sees {needed} examples, and"
      f" {training.cache.examples} are cached: raise"
      " config.training.cache.examples, or some would be seen twice."
    )
  budgets = plan_budgets(config)
  jobs = tuple(
    Job(plan_size(config, depth), seed)
    for depth in sorted(config.sizes)
    for seed in config.seeds
  )
  return Plan(jobs, budgets)


def plan_budgets(config: ConfigDict) -> tuple[Budget, ...]:
  """Each with the last step at which the rate is still the constant one."""
  fractions = tuple(config.fractions)
  if (
    list(fractions) != sorted(set(fractions))
    or not fractions
    or fractions[0] <= 0
    or fractions[-1] != 1
  ):
    raise ValueError(
      f"config.fractions rise from above 0 to 1, got {fractions}."
    )
  return tuple(_budget(config, fraction) for fraction in fractions)


def _budget(config: ConfigDict, fraction: float) -> Budget:
  steps = round(config.num_steps * fraction)
  warmup = config.training.optimizer.warmup_steps
  flat = (1 - config.cooldown) * (steps - 1 - warmup)
  branch = math.floor(warmup + flat)
  if not 0 < config.cooldown < 1 or flat < 1:
    raise ValueError(
      f"A run of {steps} steps ({fraction:g} of config.num_steps) has no room"
      f" for {warmup} steps of warm-up, a constant rate and a cool-down of"
      f" {config.cooldown:g} of the rest."
    )
  return Budget(float(fraction), steps, branch)


def plan_size(config: ConfigDict, depth: int) -> Size:
  """The model of a depth: width and heads follow from it, as in VAR."""
  training, width = config.training, config.width_per_depth * depth
  base = 0
  if config.rates.rule == "mup":
    base = config.width_per_depth * config.rates.base_depth
  model = StarConfig.from_dict(
    {
      **training.model.to_dict(),
      "depth": depth,
      "width": width,
      "num_heads": depth,
      "drop_path_rate": config.drop_path_per_depth * depth,
      "base_width": base,
    }
  )
  parameters = {
    name: sum(leaf.size for leaf in jax.tree.leaves(part))
    for name, part in parameter_tree(Star(model)).items()
  }
  flops = step_flops(model, training.batch_size, training.text.max_tokens)
  return Size(depth, model, parameters, flops)


def var_rate(depth: int, batch_size: int) -> float:
  """The learning rate of VAR's README for a depth and batch."""
  base = next(rate for least, rate in VAR_RATES if depth >= least)
  return base * batch_size / 256


def describe(plan: Plan, config: ConfigDict) -> str:
  """The plan as a table, before anything runs."""
  lines = [
    f"{'job':<5}{'size':<6}{'seed':<6}{'N':>10}{'GFLOP/step':>12}{'TFLOP':>9}"
  ]
  for i, job in enumerate(plan.jobs):
    flops = job.size.flops_per_step
    lines.append(
      f"{i:<5}{job.size.name:<6}{job.seed:<6}{job.size.non_embedding:>10,}"
      f"{flops / 1e9:>12.2f}{flops * plan.steps_of_job() / 1e12:>9.1f}"
    )
  batch = config.training.batch_size
  budgets = ", ".join(
    f"{b.num_steps * batch:,} (cool-down from step {b.branch_step})"
    for b in plan.budgets
  )
  lines.append(f"examples of the budgets: {budgets}")
  lines.append(f"{len(plan.jobs)} jobs, {plan.flops() / 1e15:.3f} PFLOP")
  return "\n".join(lines)


def facts_of(job: Job, budget: Budget, batch_size: int) -> dict[str, Any]:
  """What a point of the sweep is, before it is measured; JSON-able."""
  size, examples = job.size, budget.num_steps * batch_size
  return {
    "size": size.name,
    "depth": size.depth,
    "width": size.model.width,
    "heads": size.model.num_heads,
    "seed": job.seed,
    "fraction": budget.fraction,
    "steps": budget.num_steps,
    "cooldown_from": budget.branch_step,
    "examples": examples,
    "tokens": examples * size.model.schedule.num_tokens,
    "non_embedding": size.non_embedding,
    "parameters": size.parameters,
    "flops": size.flops_per_step * budget.num_steps,
  }
