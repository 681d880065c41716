"""Ways to spend less on the late scales: what users set, and what it means.

Nothing here is exact: each setting draws from another distribution than the
model's own, and docs/acceleration.md has what each costs and saves. All are off
by default.

K: scales, L: tokens of all scales.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from star_jax.model.config import StarConfig
from star_jax.model.late_scales import probe_places
from star_jax.sampling.settings import check_integer
from star_jax.scales import ScaleSchedule

# Tokens of a scale whose queries stand for all, ScaleKV's 16.
WINDOW = 16


@dataclasses.dataclass(frozen=True)
class Accelerate:
  """Settings of `SamplerConfig.accelerate`; the defaults change nothing.

  Attributes:
    unguided_scales: the last so many scales run the conditional half alone,
      whose logits they draw from: half of their work (SkipVAR, arXiv
      2506.08908, and others).
    keep_shares: of the tokens of the last scales, what goes through the layers,
      the last entry for the last scale; see model/late_scales.py (FastVAR,
      arXiv 2503.23367).
    cache_budget: most tokens that the cache keeps from scale to scale, of each
      layer and head; 0: all. See model/cache_budget.py (ScaleKV, arXiv
      2505.19602).
    int8_cache: keys and values of earlier scales are kept as int8.
    small_scales: the last so many scales are drawn by a second, smaller model
      of the same tokenizer, which first reads the scales before in one pass
      (CoDe, arXiv 2411.17787).
    small_weights: hash of the bundle of that model, where settings are
      recorded.
  """

  unguided_scales: int = 0
  keep_shares: tuple[float, ...] = ()
  cache_budget: int = 0
  int8_cache: bool = False
  small_scales: int = 0
  small_weights: str = ""

  def __post_init__(self):
    for name in ("unguided_scales", "cache_budget", "small_scales"):
      check_integer(name, getattr(self, name), 0, None)
    if not isinstance(self.int8_cache, bool):
      raise ValueError(f"int8_cache is True or False, got {self.int8_cache!r}.")
    object.__setattr__(self, "keep_shares", _shares(self.keep_shares))

  def check(self, config: StarConfig, small: StarConfig | None) -> None:
    """ValueError unless this can be done with a model.

    Args:
      config: of the model.
      small: of the one that draws the last scales; None: there is none.
    """
    if self == Accelerate():
      return
    if config.prediction != "scale":
      raise ValueError(
        "This model predicts token by token: its late scales cannot be"
        " accelerated."
      )
    num_scales = config.schedule.num_scales
    remark = f" (the model has {num_scales} scales)"
    for name in ("unguided_scales", "small_scales"):
      check_integer(name, getattr(self, name), 0, num_scales, remark)
    if len(self.keep_shares) >= num_scales:
      raise ValueError(
        f"keep_shares has an entry for at most {num_scales - 1} of the"
        f" {num_scales} scales, the first one stays whole; got"
        f" {len(self.keep_shares)}."
      )
    if self.small_scales:
      _check_small(config, small)

  @classmethod
  def of(cls, value: Accelerate | Mapping[str, Any] | None) -> Accelerate:
    """From what a user gives, or what `to_dict` wrote.

    Raises:
      ValueError: an unknown name or a value outside its range.
    """
    if isinstance(value, cls):
      return value
    value = {} if value is None else value
    if not isinstance(value, Mapping):
      raise ValueError(
        f"accelerate is an Accelerate or a dict of its settings, got {value!r}."
      )
    names = [field.name for field in dataclasses.fields(cls)]
    if unknown := sorted(set(value) - set(names)):
      raise ValueError(
        f"Unknown setting of accelerate {', '.join(unknown)}; known are"
        f" {', '.join(names)}."
      )
    return cls(**value)

  def to_dict(self) -> dict[str, Any]:
    """JSON-able, without what has its default."""
    default = Accelerate()
    out = {
      name: value
      for name, value in vars(self).items()
      if value != getattr(default, name)
    }
    if self.keep_shares:
      out["keep_shares"] = list(self.keep_shares)
    return out


class ScalePlan(NamedTuple):
  """What is static about one scale.

  Attributes:
    guided: run both halves.
    small: by the small model.
    keep: tokens that go through the layers.
    begin: tokens in the cache before it.
    probe: which of its tokens choose what the cache keeps; () where it keeps
      all.
    length: of the cache while the scale is decoded.
    source: the scale whose update the tokens that stay out get; None where all
      go through.
  """

  guided: bool
  small: bool
  keep: int
  begin: int
  probe: tuple[int, ...]
  length: int
  source: int | None


def plan_scales(
  accelerate: Accelerate | None, schedule: ScaleSchedule, guided: bool
) -> tuple[ScalePlan, ...]:
  """One plan a scale; None is today's sampler."""
  a = accelerate or Accelerate()
  num_scales = schedule.num_scales
  keeps = kept_tokens(a, schedule)
  hand_over = num_scales - a.small_scales
  begins, probes, lengths = [], [], []
  for first, last in ((0, hand_over), (hand_over, num_scales)):
    part = _cache_plan(a.cache_budget, schedule, keeps, first, last)
    for out, values in zip((begins, probes, lengths), part):
      out.extend(values)
  whole = [k for k in range(num_scales) if keeps[k] == schedule.lengths[k]]
  return tuple(
    ScalePlan(
      guided=guided and k < num_scales - a.unguided_scales,
      small=k >= hand_over,
      keep=keeps[k],
      begin=begins[k],
      probe=probes[k],
      length=lengths[k],
      source=None if k in whole else max(j for j in whole if j < k),
    )
    for k in range(num_scales)
  )


def kept_tokens(
  accelerate: Accelerate, schedule: ScaleSchedule
) -> tuple[int, ...]:
  """How many tokens of each scale go through the layers, at least one."""
  shares = accelerate.keep_shares
  shares = (1.0,) * (schedule.num_scales - len(shares)) + shares
  return tuple(
    max(1, math.ceil(share * length))
    for share, length in zip(shares, schedule.lengths)
  )


def read_probe(
  budget: int, schedule: ScaleSchedule, scales: int
) -> tuple[int, ...]:
  """Which of the first `scales` scales' tokens choose what the cache keeps,
  where a model reads all of them at once; () if it keeps all."""
  stored = sum(schedule.lengths[:scales])
  if not budget or stored <= budget:
    return ()
  length = schedule.lengths[scales - 1]
  places = _window(budget, schedule.grids[scales - 1], length)
  return tuple(stored - length + place for place in places)


def _cache_plan(
  budget: int, schedule: ScaleSchedule, keeps, first: int, last: int
) -> tuple[list, list, list]:
  """begin, probe and length of the scales [first, last) of one model."""
  begins, probes = [], []
  stored = sum(schedule.lengths[:first])
  if read_probe(budget, schedule, first):
    stored = budget
  for k in range(first, last):
    begins.append(stored)
    stored += keeps[k]
    over = bool(budget) and stored > budget and k + 1 < last
    probes.append(_window(budget, schedule.grids[k], keeps[k]) if over else ())
    stored = budget if over else stored
  # The keys of a model's last scale are read by nobody.
  needs = [begins[k - first] + keeps[k] for k in range(first, last - 1)]
  needs += begins[-1:]
  lengths = [max(needs[i:]) for i in range(len(needs))]
  return begins, probes, lengths


def _window(budget: int, grid: tuple[int, int], keep: int) -> tuple[int, ...]:
  return probe_places(grid, keep, min(WINDOW, budget, keep))


def _shares(value) -> tuple[float, ...]:
  try:
    shares = tuple(float(share) for share in value)
  except (TypeError, ValueError):
    shares = (math.nan,)
  if not all(0 < share <= 1 for share in shares):
    raise ValueError(
      f"keep_shares has shares in (0, 1] of the last scales, got {value!r}."
    )
  return shares


def _check_small(config: StarConfig, small: StarConfig | None) -> None:
  if small is None:
    raise ValueError(
      "small_scales needs a second model of the same tokenizer, none was given."
    )
  for name in (
    "schedule", "vocab_size", "code_dim", "head", "text_dim", "num_classes",
  ):  # fmt: skip
    ours, theirs = getattr(config, name), getattr(small, name)
    if ours != theirs:
      ours = getattr(ours, "grids", ours)
      theirs = getattr(theirs, "grids", theirs)
      raise ValueError(
        f"The small model does not go with this one: its {name} is {theirs},"
        f" here it is {ours}."
      )
