"""Progressive training: coarse scales first, the finer ones join (VAR's `pg`).

Stage s trains the scales 0 .. s. It is static: the steps of a stage look at the
tokens of its scales alone, which is what progressive training saves, and every
stage is compiled once. How much its newest scale counts is traced. Both follow
from the number of the step, so that a run goes on where it was stopped.

The schedule is that of the authors' `train.py` and `trainer.py` (VAR, arXiv
2404.02905; golden README, rule 13); stage 0 works here. STAR's trainer sets the
stage where its model does not look (rule 24).
"""

from __future__ import annotations

import bisect
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

# The newest scale never counts less.
LEAST_WEIGHT = 0.01


@dataclasses.dataclass(frozen=True)
class Stages:
  """When the scales of a run join.

  Attributes:
    scales: the stages in order; the last one is all scales.
    starts: the first step of each.
    warmup_steps: in which a scale that joined comes to count fully.
  """

  scales: tuple[int, ...]
  starts: tuple[int, ...]
  warmup_steps: float

  def at(self, step: int) -> int:
    """The stage of a 0-based step, the index of its finest scale."""
    return self.scales[bisect.bisect_right(self.starts, step) - 1]

  def newest_weight(self, stage: int, step: jax.Array) -> jax.Array:
    """How much the finest scale of `stage` counts at `step`, float32.

    It rises linearly, but for the first stage, where the learning rate does so.
    The last stage, all scales, is training without stages and does not ask.
    """
    place = self.scales.index(stage)
    if place == 0 or not self.warmup_steps:
      return jnp.ones((), jnp.float32)
    passed = jnp.asarray(step - self.starts[place] + 1, jnp.float32)
    return jnp.clip(passed / self.warmup_steps, LEAST_WEIGHT, 1.0)


def build_stages(
  *,
  share: float,
  first_scale: int,
  warmup_steps: float,
  num_steps: int,
  rate_warmup_steps: float,
  num_scales: int,
) -> Stages:
  """The stages of a run.

  Args:
    share: of the run after which all scales are trained; 0: all from the start.
    first_scale: finest scale of the first stage, which lasts through the
      warm-up of the learning rate at least.
    warmup_steps: see `Stages`.
    num_steps: of the run.
    rate_warmup_steps: of the learning rate.
    num_scales: K.

  Raises:
    ValueError: a value outside its range.
  """
  if not 0 <= share <= 1:
    raise ValueError(f"config.progressive.share is in [0, 1], got {share!r}.")
  last = num_scales - 1
  if not share:
    return Stages((last,), (0,), 0.0)
  if not 0 <= first_scale <= last:
    raise ValueError(
      f"config.progressive.first_scale is in [0, {last}], got {first_scale!r}."
    )
  if warmup_steps < 0:
    raise ValueError(
      f"config.progressive.warmup_steps is 0 or more, got {warmup_steps!r}."
    )
  step, end = np.arange(max(num_steps, 1)), share * num_steps
  span = max(end - rate_warmup_steps, 1e-9)
  passed = np.clip((step - rate_warmup_steps) / span, 0.0, 1.0)
  stage = first_scale + np.rint(passed * (last - first_scale)).astype(int)
  stage[step >= end] = last
  stage[step <= rate_warmup_steps] = first_scale
  scales, starts = np.unique(stage, return_index=True)
  return Stages(tuple(scales.tolist()), tuple(starts.tolist()), warmup_steps)
