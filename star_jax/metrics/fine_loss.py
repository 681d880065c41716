"""The loss of the finest scales of several runs, in one figure and one table.

What a model that was grown to a larger schedule has to learn anew:

  python -m star_jax.metrics.fine_loss --schedule=1,2,4,8,16,32 \
    --out=docs/images/chain_128.png docs/runs/chain_128.json \
    docs/runs/chain_128scratch.json

Takes the curves.json that runs write into their workdirs; held-out nats a
token, mean over the tokens of the last scales.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

from star_jax.metrics.report import table
from star_jax.scales import ScaleSchedule
from star_jax.train.curves import read_curves

CURVE = "heldout/loss_k"


def fine_loss(
  run: dict, schedule: ScaleSchedule, scales: int
) -> dict[int, float]:
  """By step, from what `curves.read_curves` returns.

  Raises:
    ValueError: the run has no such curve, or one of another number of scales;
      more scales asked for than there are.
  """
  if not 1 <= scales <= schedule.num_scales:
    raise ValueError(
      f"--scales is in [1, {schedule.num_scales}] for this schedule, got"
      f" {scales}."
    )
  points = run["curves"].get(CURVE)
  if not points:
    raise ValueError(f"The run {run['name']} has no curve {CURVE}.")
  weights = np.asarray(schedule.lengths[-scales:], float)
  found = {}
  for step, loss_k in points:
    if len(loss_k) != schedule.num_scales:
      raise ValueError(
        f"The run {run['name']} has {len(loss_k)} scales, --schedule"
        f" {schedule.num_scales}."
      )
    found[step] = float(weights @ loss_k[-scales:] / weights.sum())
  return found


def draw(curves: dict[str, dict[int, float]], scales: int, path: Path) -> None:
  """One line a run."""
  from matplotlib.figure import Figure

  figure = Figure(figsize=(6, 3.6))
  axis = figure.subplots()
  for name, points in curves.items():
    axis.plot(list(points), list(points.values()), marker="o", label=name)
  axis.set_xlabel("step")
  axis.set_ylabel(f"nats a token, last {scales} scales, held out")
  axis.set_ylim(bottom=0)
  axis.grid(alpha=0.3)
  axis.legend()
  figure.tight_layout()
  path.parent.mkdir(parents=True, exist_ok=True)
  figure.savefig(path, dpi=110)


def to_markdown(curves: dict[str, dict[int, float]]) -> str:
  steps = sorted({step for points in curves.values() for step in points})
  rows = [
    (
      str(step),
      *(f"{p[step]:.3f}" if step in p else "-" for p in curves.values()),
    )
    for step in steps
  ]
  return table(rows, ("step", *curves))


def main(argv: list[str] | None = None) -> None:
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("curves", nargs="+", help="curves.json of each run.")
  parser.add_argument("--schedule", required=True, help="Such as 1,2,4.")
  parser.add_argument("--scales", type=int, default=3, help="How many.")
  parser.add_argument("--out", type=Path, help="The figure, a PNG.")
  args = parser.parse_args(argv)
  try:
    schedule = ScaleSchedule.from_text(args.schedule)
    curves = {
      run["name"]: fine_loss(run, schedule, args.scales)
      for run in map(read_curves, args.curves)
    }
    if args.out:
      draw(curves, args.scales, args.out)
  except ValueError as error:
    sys.exit(str(error))
  print(to_markdown(curves))


if __name__ == "__main__":
  main()
