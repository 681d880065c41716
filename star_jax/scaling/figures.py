"""Loss and token error against size and compute, on logarithmic axes, as in
figures 5 and 6 of VAR (arXiv 2404.02905)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from star_jax.scaling.fit import Split
from star_jax.scaling.points import MEASURES, Points
from star_jax.scaling.tables import formula

SIZE_FIGURE, COMPUTE_FIGURE = "scaling_size.png", "scaling_compute.png"


def draw(
  fit: Mapping[str, Any], points: Points, split: Split, out: Path
) -> None:
  """Writes both figures into a folder."""
  _size_figure(fit, split).savefig(out / SIZE_FIGURE, dpi=110)
  _compute_figure(fit, points, split).savefig(out / COMPUTE_FIGURE, dpi=110)


def _panels():
  from matplotlib.figure import Figure

  figure = Figure(figsize=(15, 4.2), layout="constrained")
  return figure, figure.subplots(1, len(MEASURES))


def _finish(axis, title: str, label: str) -> None:
  from matplotlib.ticker import LogLocator, MaxNLocator, ScalarFormatter

  axis.set(xscale="log", yscale="log", title=title, xlabel=label)
  low, high = axis.get_ylim()
  if high / low < 10:
    # Less than a decade: plain numbers at even steps.
    ticks = MaxNLocator(6).tick_values(low, high)
    axis.set_yticks([t for t in ticks if low <= t <= high])
    axis.set_yticks([], minor=True)
    formatter = ScalarFormatter()
    formatter.set_scientific(False)
    axis.yaxis.set_major_formatter(formatter)
  axis.xaxis.set_major_locator(LogLocator(numticks=8))
  axis.grid(alpha=0.3)


def _curve(axis, law: Mapping[str, Any], ends, **style) -> None:
  x_n = np.geomspace(*ends, 100)
  y_n = law["floor"] + (law["beta"][0] * x_n) ** law["alpha"][0]
  axis.plot(x_n, y_n, **style)


def _size_figure(fit: Mapping[str, Any], split: Split):
  """Value at the whole budget against N; the held-out size is hollow."""
  figure, axes = _panels()
  fitted, held = split.largest, split.held
  ends = fitted.params_n.min(), max(fitted.params_n.max(), held.params_n.max())
  for axis, (measure, title) in zip(axes, MEASURES.items()):
    found = fit["measures"][" ".join(measure)]["size"]
    axis.plot(fitted.params_n, fitted.values[measure], "o", color="C0")
    axis.plot(
      held.params_n,
      held.values[measure],
      "o",
      mfc="none",
      color="C3",
      label=f"{held.sizes[0]}, held out",
    )
    plain, floor = found["plain"], found["floor"]
    label = f"{formula(plain, 'N')}, r = {found['pearson']:.3f}"
    _curve(axis, plain, ends, ls="--", color="0.5", label=label)
    _curve(axis, floor, ends, ls="-", color="C0", label=formula(floor, "N"))
    _finish(axis, title, "N, parameters without embeddings")
    axis.legend(fontsize=8)
  return figure


def _compute_figure(fit: Mapping[str, Any], points: Points, split: Split):
  """A line a size over its budgets, and the law of the frontier."""
  from matplotlib import colormaps

  figure, axes = _panels()
  means, names = points.means(), points.sizes
  held = split.held.sizes[0]
  for axis, (measure, title) in zip(axes, MEASURES.items()):
    for i, name in enumerate(names):
      mine = means.where(means.size_n == name)
      order = np.argsort(mine.flops_n)
      axis.plot(
        mine.flops_n[order],
        mine.values[measure][order],
        "o-",
        ms=4,
        lw=1,
        mfc="none" if name == held else None,
        color=colormaps["viridis"](i / max(len(names) - 1, 1) * 0.9),
        label=f"{name}, held out" if name == held else name,
      )
    found = fit["measures"][" ".join(measure)]["compute"]
    best = [p["flops"] for p in found["points"]]
    law = found.get("floor") or found.get("plain")
    if law:
      ends = min(best), max(max(best), means.flops_n.max())
      label = formula(law, "C_min")
      if "pearson" in found:
        label += f", r = {found['pearson']:.3f}"
      _curve(axis, law, ends, ls="--", color="0.3")
      title = f"{title}\n{label}"
    _finish(axis, title, "C, training FLOPs")
    axis.title.set_fontsize(9)
  handles = axes[0].lines[: len(names)]
  figure.legend(handles=handles, loc="outside right center")
  return figure
