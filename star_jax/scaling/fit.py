"""Scaling laws of a sweep, and what they say of a size that they did not see.

Laws of the size are fitted at the whole budget, laws of the compute to the
frontier of all budgets; the held-out size is in neither.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from star_jax.scaling import laws
from star_jax.scaling.points import MEASURES, Measure, Points

# Sizes that a law of the size is fitted to, at least.
FEWEST_SIZES = 3
LEVEL = 0.9  # of the intervals
# Laws of the size: name -> (variables, whether there is an irreducible part).
SIZE_LAWS = {"plain": False, "floor": True}
JOINT = "joint"


@dataclasses.dataclass(frozen=True)
class Options:
  """resamples, seed: of the bootstrap. huber: see `laws.HUBER`."""

  resamples: int = 1000
  seed: int = 0
  huber: float = laws.HUBER


@dataclasses.dataclass(frozen=True)
class Split:
  """fitted: of all budgets but without the held-out size. largest: of them at
  the whole budget. held: the held-out size there."""

  fitted: Points
  largest: Points
  held: Points


def split_points(points: Points, held_out: str, source: str) -> Split:
  """Holds a size out.

  Args:
    points: of a sweep.
    held_out: name of a size; empty: the largest.
    source: named in what is refused.

  Raises:
    ValueError: no such size, too few others, or a size without a run of the
      whole budget.
  """
  sizes = points.sizes
  held_out = held_out or sizes[-1]
  if held_out not in sizes:
    raise ValueError(
      f"--held_out is one of the sizes {', '.join(sizes)}, got {held_out!r}."
    )
  others = [size for size in sizes if size != held_out]
  if len(others) < FEWEST_SIZES:
    raise ValueError(
      f"A scaling law needs at least {FEWEST_SIZES} sizes beside the held-out"
      f" {held_out}, got {len(others)} in {source} ({len(points)} point"
      f"{'s' if len(points) > 1 else ''}); run more jobs of the sweep."
    )
  whole_n = points.fraction_n == points.fraction_n.max()
  held_n = points.size_n == held_out
  short = [s for s in sizes if not (whole_n & (points.size_n == s)).any()]
  if short:
    raise ValueError(
      f"The sizes {', '.join(short)} have no run of the whole budget in"
      f" {source}; their jobs are not finished."
    )
  return Split(
    points.where(~held_n),
    points.where(~held_n & whole_n),
    points.where(held_n & whole_n),
  )


def fit_all(split: Split, options: Options) -> dict[str, Any]:
  """Everything that is fitted and predicted, JSON-able, by measure."""
  return {
    " ".join(measure): {
      "title": title,
      "size": fit_sizes(split, measure, options),
      "compute": fit_compute(split.fitted, measure, options),
      "prediction": predict(split, measure, options),
    }
    for measure, title in MEASURES.items()
  }


def _summary(found: laws.Bootstrap, x_nt, y_n) -> dict[str, Any]:
  """A law, the interval of its (first) exponent, and how well it fits."""
  residuals_n = np.log(y_n) - np.log(found.law(x_nt))
  return {
    **found.law.to_dict(),
    "alpha_interval": found.interval(lambda law: law.alpha[0], LEVEL),
    "floor_interval": found.interval(lambda law: law.floor, LEVEL),
    "residual": float(np.sqrt(np.mean(residuals_n**2))),
  }


def _boot(x_nt, y_n, floor: bool, options: Options) -> laws.Bootstrap:
  return laws.bootstrap(
    x_nt,
    y_n,
    floor=floor,
    resamples=options.resamples,
    seed=options.seed,
    huber=options.huber,
  )


def fit_sizes(
  split: Split, measure: Measure, options: Options
) -> dict[str, Any]:
  """Laws of N at the whole budget, and Pearson's coefficient."""
  x_n, y_n = split.largest.params_n, split.largest.values[measure]
  found = {
    name: _summary(_boot(x_n, y_n, floor, options), x_n, y_n)
    for name, floor in SIZE_LAWS.items()
  }
  return {**found, "pearson": laws.pearson(x_n, y_n)}


def fit_compute(
  fitted: Points, measure: Measure, options: Options
) -> dict[str, Any]:
  """Laws of C_min, the compute of the frontier over sizes and budgets.

  Returns:
    "points": C_min, value and size of each; the laws and Pearson's coefficient,
    absent where the frontier is too short; "size_exponent", of N against C_min.
  """
  means = fitted.means()
  y_n = means.values[measure]
  best = laws.frontier(means.flops_n, y_n)
  x_n, y_n = means.flops_n[best], y_n[best]
  out: dict[str, Any] = {
    "points": [
      {"flops": float(c), "value": float(y), "size": str(size)}
      for c, y, size in zip(x_n, y_n, means.size_n[best])
    ]
  }
  if len(best) < laws.FEWEST:
    return out
  for name, floor in SIZE_LAWS.items():
    if len(best) > 2 + floor:
      out[name] = _summary(_boot(x_n, y_n, floor, options), x_n, y_n)
  slope, _ = np.polyfit(np.log(x_n), np.log(means.params_n[best]), 1)
  return out | {
    "pearson": laws.pearson(x_n, y_n),
    "size_exponent": float(slope),
  }


def predict(split: Split, measure: Measure, options: Options) -> dict[str, Any]:
  """What the held-out size gains over the largest fitted one, and what laws
  and naive predictors say of it.

  A gain is how much lower the mean over the seeds is. Laws predict the value of
  the held-out size; their gain is from the measured value of the largest fitted
  one. Their intervals are of the mean of as many new runs as were measured.

  Returns:
    "gain" as measured; "laws" and "naive": name -> predicted gain, its distance
    as a share of the measured one, and of laws also value and interval.
  """
  by_size = {
    size: split.largest.values[measure][split.largest.size_n == size].mean()
    for size in split.largest.sizes
  }
  *_, before, last = by_size.values()
  held = split.held.values[measure]
  gain = last - held.mean()
  out: dict[str, Any] = {
    "held_out": split.held.sizes[0],
    "over": split.largest.sizes[-1],
    "value": float(held.mean()),
    "gain": float(gain),
    "naive": {
      "no gain": _guess(0.0, gain),
      "gain of the last step": _guess(before - last, gain),
    },
    "laws": {},
  }
  fits = {name: (split.largest, f) for name, f in SIZE_LAWS.items()}
  if len(np.unique(split.fitted.tokens_n)) >= laws.FEWEST:
    fits[JOINT] = (split.fitted, True)
  for name, (points, floor) in fits.items():
    x_nt, new = points.params_n[:, None], [split.held.params_n[0]]
    if name == JOINT:
      x_nt = np.stack([points.params_n, points.tokens_n], 1)
      new.append(split.held.tokens_n[0])
    found = _boot(x_nt, points.values[measure], floor, options)
    draws = found.predictions(
      new, len(held), np.random.default_rng(options.seed)
    )
    low, high = laws.quantiles(last - draws, LEVEL)
    value = float(found.law(np.asarray([new]))[0])
    out["laws"][name] = {
      **_guess(last - value, gain),
      "value": value,
      "interval": [low, high],
      "inside": bool(low <= gain <= high),
      **({JOINT: found.law.to_dict()} if name == JOINT else {}),
    }
  return out


def _guess(predicted: float, gain: float) -> dict[str, float]:
  off = abs(predicted - gain) / abs(gain) if gain else float("inf")
  return {"gain": float(predicted), "off": float(off)}


def gaps(points: Points, results: Mapping[str, Any]) -> dict[str, Any]:
  """The largest gap between new and seen examples, and the runs above what the
  config allows."""
  most = results["most_gap"]
  over = [
    f"{size}, seed {seed}, {fraction:g} of the budget: {gap:.2%}"
    for size, seed, fraction, gap in zip(
      points.size_n, points.seed_n, points.fraction_n, points.gap_n
    )
    if gap > most
  ]
  return {"allowed": most, "largest": float(points.gap_n.max()), "over": over}
