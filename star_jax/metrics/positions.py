"""Where on another grid does a position encoding recognise an image point?

STAR's argument for normalised rotary positions (arXiv 2406.10797, section 3.3),
drawn again: the encoding of one point of the 16 x 16 grid against those of all
positions of the grids 16, 24 and 32.

  python -m star_jax.metrics.positions --out=docs/images/positions.png
"""

from __future__ import annotations

import numpy as np
from absl import app, flags

from star_jax.model.rope import rope_tables
from star_jax.model.sinusoidal import sinusoidal_grid
from star_jax.scales import ScaleSchedule

OUT = flags.DEFINE_string("out", "positions.png", "The picture.")

SIDES = (16, 24, 32)
KINDS = ("sinusoidal", "plain RoPE", "normalised RoPE")
HEAD_DIM, THETA, NORM = 64, 100.0, 16.0
# (row, column) on the grid of 16, right of the middle and below it.
POINT = (9, 11)


def rotary(side: int, norm: float) -> np.ndarray:
  """float64 [side, side, HEAD_DIM]: cosine and sine of every plane's angle.

  Their product is the mean of what a query and a key of equal, constant
  channels keep after both were rotated.

  Args:
    side: of the grid.
    norm: range of the coordinates, -1 for plain RoPE.
  """
  schedule = ScaleSchedule.from_patch_nums([side])
  cos, sin = rope_tables(schedule, HEAD_DIM, THETA, norm, "checkpoint")
  table = np.concatenate([cos, sin], axis=-1).astype(np.float64)
  return table.reshape(side, side, -1)


def encoding(kind: str, side: int) -> np.ndarray:
  """float64 [side, side, channels] of one of KINDS."""
  if kind == "sinusoidal":
    return sinusoidal_grid((side, side), HEAD_DIM)
  return rotary(side, -1 if kind == "plain RoPE" else NORM)


def similarity(kind: str, side: int, point=POINT) -> np.ndarray:
  """float64 [side, side], cosine similarity to `point` of the grid of 16."""
  one, all_ = encoding(kind, SIDES[0])[point], encoding(kind, side)
  norm = np.linalg.norm(one) * np.linalg.norm(all_, axis=-1)
  return all_ @ one / norm


def peak(kind: str, side: int, point=POINT) -> tuple[float, float]:
  """Where the similarity is largest, in shares of height and width."""
  best = similarity(kind, side, point).argmax()
  row, column = np.unravel_index(best, (side, side))
  return (row + 0.5) / side, (column + 0.5) / side


def figure():
  """One row a kind of encoding, one column a grid; crosses: the same point."""
  from matplotlib.figure import Figure

  out = Figure(figsize=(7.2, 7.4), layout="constrained")
  axes = out.subplots(len(KINDS), len(SIDES))
  for row, kind in zip(axes, KINDS):
    for axis, side in zip(row, SIDES):
      axis.imshow(similarity(kind, side), extent=(0, 1, 1, 0), cmap="viridis")
      y, x = ((p + 0.5) / SIDES[0] for p in POINT)
      axis.plot(x, y, "+", color="white", markersize=14)
      y, x = peak(kind, side)
      axis.plot(x, y, "o", color="red", fillstyle="none", markersize=10)
      axis.set(xticks=[], yticks=[], title=f"{side} x {side}")
    row[0].set_ylabel(kind)
  return out


def main(argv) -> None:
  if len(argv) > 1:
    raise app.UsageError(f"No arguments are taken, got {argv[1:]}.")
  figure().savefig(OUT.value, dpi=110)
  print("| encoding | grid | most similar at | off by |")
  print("|---|---|---|---|")
  there = np.array([(p + 0.5) / SIDES[0] for p in POINT])
  for kind in KINDS:
    for side in SIDES:
      found = np.array(peak(kind, side))
      off = np.abs(found - there).max()
      print(
        f"| {kind} | {side} | ({found[0]:.2f}, {found[1]:.2f}) |"
        f" {100 * off:.0f}% of a side |"
      )
  print(OUT.value)


if __name__ == "__main__":
  app.run(main)
