"""Figures of a report; each function returns None with nothing to draw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure


def radar(rows: Mapping[str, Mapping[str, float]]) -> Figure | None:
  """Frechet distance of each category, a polygon for each result.

  Args:
    rows: result -> category -> value; those with fewer than three categories
      make no polygon and are left out.
  """
  rows = {name: values for name, values in rows.items() if len(values) > 2}
  if not rows:
    return None
  names = sorted({c for values in rows.values() for c in values})
  angles = np.linspace(0, 2 * np.pi, len(names), endpoint=False)
  figure = Figure(figsize=(6, 6), layout="constrained")
  axes = figure.add_subplot(projection="polar")
  for name, values in rows.items():
    radius = np.array([values.get(c, np.nan) for c in names])
    closed = np.append(angles, angles[0]), np.append(radius, radius[0])
    axes.plot(*closed, marker="o", label=name)
    axes.fill(*closed, alpha=0.12)
  axes.set_xticks(angles, names)
  axes.tick_params(axis="x", pad=14)
  axes.set_ylim(bottom=0)
  axes.set_title("Frechet distance by category (smaller is better)", pad=24)
  axes.legend(loc="upper right", bbox_to_anchor=(1.2, 1.1), fontsize=8)
  return figure


def scatter(rows: Sequence[Mapping]) -> Figure | None:
  """Seconds an image against the first measure, one panel a measure.

  Args:
    rows: results with `seconds` and `measures`.
  """
  rows = [row for row in rows if row.get("seconds")]
  words = list(dict.fromkeys(next(iter(r["measures"])) for r in rows))
  if not words:
    return None
  figure = Figure(figsize=(5.2 * len(words), 4), layout="constrained")
  for axes, word in zip(np.ravel(figure.subplots(1, len(words))), words):
    for row in rows:
      if next(iter(row["measures"])) != word:
        continue
      x, y = row["seconds"], row["measures"][word]
      axes.scatter(x, y, s=40)
      axes.annotate(
        row["name"], (x, y), xytext=(5, 5), textcoords="offset points"
      )
    axes.set_xscale("log")
    axes.margins(0.25)
    axes.set_xlabel("seconds an image")
    axes.set_ylabel(word)
    axes.grid(alpha=0.3)
  figure.suptitle("Latency against distance (left and low is better)")
  return figure
