"""What a sweep will run: its arms, and how many steps the budget allows."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from star_jax.model.config import StarConfig
from star_jax.model.star import Star
from star_jax.shapes import example_inputs
from star_jax.text.states import TextStates
from star_jax.train.flops import count_flops
from star_jax.train.losses import head_losses, next_scale_loss


@dataclasses.dataclass(frozen=True)
class Arm:
  """One thing that is compared.

  Attributes:
    name: of its folder.
    title: for people.
    tokenizer: which of the sweep's tokenizers it models.
    model: settings of the transformer.
    flops_per_step: of one training step.
    num_steps: of a run with the whole budget.
    probe_steps: of a run that tries a learning rate.
  """

  name: str
  title: str
  tokenizer: str
  model: StarConfig
  flops_per_step: int
  num_steps: int
  probe_steps: int


def plan_arms(config: ConfigDict, names: Sequence[str] = ()) -> list[Arm]:
  """The arms of a sweep, in the order of the config.

  Args:
    config: see configs/ablations.py.
    names: only these; empty for all.

  Raises:
    ValueError: an unknown arm, tokenizer or model setting; a budget that buys
      less than one step or more examples than are cached.
  """
  return [_plan_arm(config, arm) for arm in chosen_arms(config, names)]


def chosen_arms(
  config: ConfigDict, names: Sequence[str]
) -> list[Mapping[str, Any]]:
  """Those of `config.arms` that are named; all where no name is given.

  Raises:
    ValueError: a name that the sweep does not have.
  """
  known = [arm["name"] for arm in config.arms]
  if unknown := sorted(set(names) - set(known)):
    raise ValueError(
      f"Unknown arms {', '.join(unknown)}; the sweep has {', '.join(known)}."
    )
  return [arm for arm in config.arms if not names or arm["name"] in names]


def _plan_arm(config: ConfigDict, arm: Mapping[str, Any]) -> Arm:
  name, tokenizer, training = arm["name"], arm["tokenizer"], config.training
  if tokenizer not in config.tokenizers:
    raise ValueError(
      f"The arm {name} names the tokenizer {tokenizer!r}; the sweep has"
      f" {', '.join(config.tokenizers)}."
    )
  model = StarConfig.from_dict({**training.model.to_dict(), **arm["model"]})
  flops = step_flops(model, training.batch_size, training.text.max_tokens)
  budget = config.budget_tflops * 1e12
  steps, probe = (
    int(b // flops) for b in (budget, budget * config.probe_share)
  )
  if probe < 1:
    raise ValueError(
      f"The budget of {config.budget_tflops} TFLOP buys {steps} steps of the"
      f" arm {name} and {probe} of a run that tries a learning rate; a step"
      f" costs {flops / 1e12:.3f} TFLOP."
    )
  examples, cached = steps * training.batch_size, config.examples[tokenizer]
  if examples > cached:
    raise ValueError(
      f"The arm {name} would see {examples} examples, {cached} are cached for"
      f" the tokenizer {tokenizer}: raise config.examples.{tokenizer} or lower"
      " the budget."
    )
  return Arm(name, arm["title"], tokenizer, model, flops, steps, probe)


@functools.cache
def step_flops(model: StarConfig, batch_size: int, text_tokens: int) -> int:
  """FLOPs of the forward and backward pass of one training step."""
  star = Star(model)
  x_BLCv, _ = example_inputs(star)
  shape = (batch_size, text_tokens, model.text_dim)
  text = TextStates(
    text_BTD=jax.ShapeDtypeStruct(shape, jnp.float32),
    text_mask_BT=jax.ShapeDtypeStruct(shape[:2], bool),
    pooled_BD=jax.ShapeDtypeStruct((batch_size, model.text_dim), jnp.float32),
  )
  x = jax.ShapeDtypeStruct((batch_size, *x_BLCv.shape[1:]), jnp.float32)
  idx = jax.ShapeDtypeStruct((batch_size, x.shape[1] + 1), jnp.int32)
  params = jax.eval_shape(star.init, jax.random.key(0), *example_inputs(star))

  def loss(params, x_BLCv, text, idx_BL):
    logits_BLV = star.apply(params, x_BLCv, text)
    return next_scale_loss(
      logits_BLV, idx_BL, model.schedule.lengths, losses=head_losses(model)
    )[0]

  return count_flops(jax.grad(loss), params, x, text, idx)


def describe(arms: Sequence[Arm], config: ConfigDict) -> str:
  """The plan as a table, before anything runs."""
  rows = [f"{'arm':<16}{'GFLOP/step':>12}{'steps':>8}{'examples':>10}"]
  rows += [
    f"{arm.name:<16}{arm.flops_per_step / 1e9:>12.2f}{arm.num_steps:>8}"
    f"{arm.num_steps * config.training.batch_size:>10}"
    for arm in arms
  ]
  rows.append(
    f"{len(arms)} arms, {total_flops(arms, config) / 1e15:.2f} PFLOP of"
    " training"
  )
  return "\n".join(rows)


def total_flops(arms: Sequence[Arm], config: ConfigDict) -> float:
  """Training of all arms: learning rates and seeds."""
  runs = len(config.learning_rates), len(config.seeds)
  return math.fsum(
    arm.flops_per_step * (runs[0] * arm.probe_steps + runs[1] * arm.num_steps)
    for arm in arms
  )
