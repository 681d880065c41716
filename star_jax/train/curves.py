"""Curves of a run as small JSON, and several runs in one figure.

The JSON is what is committed for every shipped run: {"name", "curves":
{"train/loss": [[step, value], ...]}}; values per scale are lists [K].
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from star_jax.train.logging import read_metrics

CURVES_FILE = "curves.json"
FIGURE_FILE = "curves.png"
MAX_POINTS = 100
# What a run is judged by; speeds and memory stay in metrics.jsonl.
KEPT = (
  "loss",
  "loss_k",
  "acc",
  "acc_k",
  "l1",
  "l2",
  "psnr",
  "vq_loss",
  "codebook_used",
  "codebook_used_k",
  "codebook_perplexity",
  "grad_norm",
)


def run_curves(workdir: str | Path, name: str) -> dict:
  """Curves of the run in `workdir`, averaged down to 100 points each."""
  found: dict[str, list] = {}
  for row in read_metrics(workdir):
    for key in KEPT:
      if key in row:
        curve = found.setdefault(f"{row['split']}/{key}", [])
        curve.append((row["step"], row[key]))
  curves = {key: _thin(points) for key, points in sorted(found.items())}
  return {"name": name, "curves": curves}


def write_curves(workdir: str | Path, name: str) -> Path:
  path = Path(workdir) / CURVES_FILE
  path.write_text(json.dumps(run_curves(workdir, name)) + "\n")
  return path


def read_curves(path: str | Path) -> dict:
  """Raises ValueError for a file that is no run's curves."""
  try:
    run = json.loads(Path(path).read_text())
    run["name"], run["curves"].items()
  except OSError as error:
    raise ValueError(f"No curves at {path}: {error.strerror}.") from error
  except (json.JSONDecodeError, UnicodeDecodeError, TypeError, KeyError,
          AttributeError) as error:  # fmt: skip
    raise ValueError(
      f"{path} holds no curves; --compare_to takes the {CURVES_FILE} that a"
      " run writes into its workdir."
    ) from error
  return run


def draw_curves(runs: Sequence[dict], path: str | Path) -> Path:
  """One panel per figure; scales are dotted lines, coarse to fine.

  Raises:
    ValueError: matplotlib is not installed.
  """
  try:
    import matplotlib
  except ImportError as error:
    raise ValueError(
      "Drawing curves needs matplotlib; install it or leave out --compare_to."
    ) from error
  matplotlib.use("Agg")
  from matplotlib import pyplot

  names = sorted({key for run in runs for key in run["curves"]})
  panels = [n for n in names if not n.endswith("_k")]
  columns = min(3, len(panels)) or 1
  rows = -(-len(panels) // columns) or 1
  figure, axes = pyplot.subplots(
    rows, columns, figsize=(5 * columns, 3.2 * rows), squeeze=False
  )
  for axis, panel in zip(axes.flat, panels):
    for number, run in enumerate(runs):
      _draw_panel(axis, run, panel, f"C{number}")
    axis.set_title(panel)
    axis.set_xlabel("step")
  axes.flat[0].legend()
  for axis in list(axes.flat)[len(panels) :]:
    axis.set_visible(False)
  figure.tight_layout()
  figure.savefig(path, dpi=110)
  pyplot.close(figure)
  return Path(path)


def _draw_panel(axis, run: dict, panel: str, colour: str) -> None:
  if panel in run["curves"]:
    steps, values = zip(*run["curves"][panel])
    axis.plot(steps, values, color=colour, label=run["name"])
  per_scale = run["curves"].get(f"{panel}_k")
  if per_scale:
    steps, values = zip(*per_scale)
    scales = max(map(len, values))
    for k in range(scales):
      curve = [
        (s, value[k]) for s, value in zip(steps, values) if k < len(value)
      ]
      alpha = 0.25 + 0.5 * k / max(scales - 1, 1)
      axis.plot(*zip(*curve), color=colour, alpha=alpha, linestyle=":")


def _thin(points: list) -> list:
  """Means over neighbours, at most MAX_POINTS, rounded to 5 digits."""
  groups = np.array_split(np.arange(len(points)), min(MAX_POINTS, len(points)))
  out = []
  for group in groups:
    step = int(points[group[-1]][0])
    out.append([step, _rounded(_mean([points[i][1] for i in group]))])
  return out


def _mean(values: list):
  """Of numbers, or for each scale of those that have it (progressive training
  begins with some)."""
  if np.ndim(values[0]) == 0:
    return np.mean(values)
  scales = max(map(len, values))
  return [np.mean([v[k] for v in values if k < len(v)]) for k in range(scales)]


def _rounded(value: np.ndarray):
  if np.ndim(value):
    return [_rounded(x) for x in value]
  return float(f"{float(value):.5g}")
