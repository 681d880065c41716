"""The result of a sweep as tables and a figure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from star_jax.metrics.report import table

TABLES, FIGURE = "tables.md", "ablations.png"
SCORES = ("objects", "colours", "relations")


def plain(value: Any) -> Any:
  """As it reads back from JSON: tuples become lists."""
  return json.loads(json.dumps(value))


def draws_of(tables: Sequence[Mapping], arm: str) -> list[str]:
  """The draws that some row of the tables asks of an arm."""
  return sorted(
    {draw for t in tables for _, name, draw in t["rows"] if name == arm}
  )


def write_tables(
  results: Mapping[str, Any], tables: Sequence[Mapping], out: Path
) -> None:
  """Writes tables.md and ablations.png of the arms that are there."""
  parts = [
    f"### {t['title']}\n\n{row_table(results, t)}"
    for t in tables
    if rows_there(results, t)
  ]
  if results["ceilings"]:
    parts.append(f"### Yardsticks\n\n{ceiling_table(results['ceilings'])}")
  if results["arms"]:
    parts.append(f"### Runs\n\n{run_table(results['arms'])}")
    _figure(results, tables).savefig(out / FIGURE, dpi=110)
  (out / TABLES).write_text("\n\n".join(parts) + "\n")


def rows_there(results: Mapping, spec: Mapping) -> list[tuple[str, str, str]]:
  """The rows (title, arm, draw) of a table whose arms are finished."""
  return [row for row in spec["rows"] if row[1] in results["arms"]]


def row_table(results: Mapping, spec: Mapping) -> str:
  """One table: likelihood, difference, KID, alignment, cost."""
  header = ["", "nats/token", "nats/image", "difference", "KID"]
  header += [*SCORES, "steps", "GFLOP", "ms"]
  out, reference = [], None
  for title, name, draw in rows_there(results, spec):
    arm = results["arms"][name]
    out.append(
      (
        title,
        _mean(arm, "likelihood", "token", digits=3),
        _mean(arm, "likelihood", "image", digits=0),
        difference(arm, reference),
        _mean(arm, "draws", draw, "kid", digits=3),
        *(
          _mean(arm, "draws", draw, s, digits=0, factor=100, unit="%")
          for s in SCORES
        ),
        *_cost(results["costs"].get(f"{name}/{draw}")),
      )
    )
    if reference is None or spec["against"] == "before":
      reference = arm
  return table(out, header)


def values(arm: Mapping, *path: str) -> np.ndarray:
  """A measure of every seed, float64 [seeds]."""
  out = []
  for seed in arm["seeds"].values():
    for key in path:
      seed = seed[key]
    out.append(np.nan if seed is None else seed)
  return np.asarray(out, np.float64)


def difference(arm: Mapping, reference: Mapping | None) -> str:
  """Nats an image more than the reference, mean and range over the seeds.

  Likelihoods are compared on one stream of tokens only.
  """
  if reference is None or arm is reference:
    return ""
  if arm["tokenizer"] != reference["tokenizer"]:
    return "other tokens"
  change = values(arm, "likelihood", "image") - values(
    reference, "likelihood", "image"
  )
  return f"{change.mean():+.1f} [{change.min():+.1f}, {change.max():+.1f}]"


def _mean(
  arm: Mapping, *path: str, digits: int, factor: float = 1, unit: str = ""
) -> str:
  """Mean over the seeds, and half of their range."""
  found = factor * values(arm, *path)
  if np.isnan(found).any():
    return "-"
  spread = (found.max() - found.min()) / 2
  return f"{found.mean():.{digits}f}{unit} ±{spread:.{digits}f}"


def _cost(cost: Mapping | None) -> tuple[str, str, str]:
  if cost is None:
    return "-", "-", "-"
  seconds = f"{1000 * cost['seconds']:.1f}"
  return f"{cost['steps']}", f"{cost['gflop']:.2f}", seconds


def ceiling_table(ceilings: Mapping[str, Mapping]) -> str:
  """What the scenes themselves score, as they are and through tokenizers."""
  rows = [
    (
      name if name == "scenes" else f"through the tokenizer {name}",
      f"{found['psnr']:.1f} dB" if "psnr" in found else "",
      f"{found['kid']:.3f}",
      *(f"{100 * found[s]:.0f}%" for s in SCORES),
    )
    for name, found in ceilings.items()
  ]
  return table(rows, ("", "PSNR", "KID", *SCORES))


def run_table(arms: Mapping[str, Mapping]) -> str:
  """What was trained: sizes, learning rates and the loss of every scale."""
  rows = []
  for name, arm in arms.items():
    scales = np.mean(
      [s["likelihood"]["per_scale"] for s in arm["seeds"].values()], axis=0
    )
    probes = ", ".join(f"{r}: {loss:.3f}" for r, loss in arm["probes"].items())
    rows.append(
      (
        name,
        f"{arm['parameters'] / 1e6:.2f}M",
        f"{arm['examples']:,}",
        f"{arm['learning_rate']:g}",
        probes,
        " ".join(f"{x:.2f}" for x in scales),
      )
    )
  header = ("arm", "parameters", "examples", "rate", "probes", "nats per scale")
  return table(rows, header)


def _figure(results: Mapping, tables: Sequence[Mapping]):
  """One row a table: difference in nats an image, and KID, every seed a dot."""
  from matplotlib.figure import Figure

  tables = [t for t in tables if rows_there(results, t)]
  heights = [len(rows_there(results, t)) + 1.5 for t in tables]
  figure = Figure(figsize=(10, 0.36 * sum(heights)), layout="constrained")
  grid = figure.subplots(
    len(tables), 3, squeeze=False, gridspec_kw={"height_ratios": heights}
  )
  for axes, spec in zip(grid, tables):
    rows = rows_there(results, spec)
    for y, (_, name, draw) in enumerate(rows):
      arm = results["arms"][name]
      columns = (
        values(arm, "likelihood", "image"),
        values(arm, "draws", draw, "kid"),
        100 * values(arm, "draws", draw, "objects"),
      )
      # Nats of another tokenizer's tokens do not belong on this axis.
      other = arm["tokenizer"] != results["arms"][rows[-1][1]]["tokenizer"]
      for i, (axis, found) in enumerate(zip(axes, columns)):
        if i or not other:
          axis.plot(found, np.full(len(found), y), "o", color="C0", alpha=0.7)
    names = ("nats an image", "KID", "objects found, %")
    for axis, title in zip(axes, names):
      axis.set(title=title, ylim=(len(rows) - 0.5, -0.5))
      axis.set_yticks(range(len(rows)), [])
      axis.grid(axis="x", alpha=0.3)
    axes[0].set_yticks(range(len(rows)), [row[0] for row in rows])
  return figure
