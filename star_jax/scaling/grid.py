"""The same prompts drawn by every size after every budget, with the same random
numbers, as in figure 7 of VAR (arXiv 2404.02905)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from star_jax.api import StarPipeline
from star_jax.bundle import load_bundle
from star_jax.scaling.plan import Plan
from star_jax.scaling.runs import Runs

_GAP, _LEFT, _TOP = 4, 44, 40
_PAPER, _INK, _ABSENT = (255, 255, 255), (25, 25, 25), (235, 235, 235)
Draw = Callable[[Path, Sequence[str], int], Sequence[np.ndarray]]


def draw_bundle(
  path: Path, prompts: Sequence[str], seed: int
) -> list[np.ndarray]:
  """One picture a prompt, uint8 [H, W, 3]; prompt i has key i of the seed."""
  pipeline = StarPipeline(load_bundle(path))
  drawn = pipeline.sample_all(prompts, seed, batch=len(prompts))
  return [np.asarray(picture) for picture in drawn.images]


def picture_grid(
  runs: Runs,
  plan: Plan,
  prompts: Sequence[str],
  seed: int,
  *,
  scale: int = 2,
  draw: Draw = draw_bundle,
) -> Image.Image:
  """One block a prompt; rows are sizes, columns shares of the training.

  Args:
    runs: where the models are.
    plan: of the sweep; of each size the job of the first seed.
    prompts: one a block.
    seed: of all pictures.
    scale: pixels of the sheet a pixel of a picture.
    draw: draws the prompts with a model.

  Returns:
    The sheet; runs that are not finished are left grey.

  Raises:
    ValueError: no prompt, or no finished run.
  """
  if not prompts:
    raise ValueError("A grid needs at least one prompt.")
  jobs = list({job.size.name: job for job in reversed(plan.jobs)}.values())
  jobs.sort(key=lambda job: job.size.depth)
  drawn = {
    (row, column): draw(runs.bundle(job, budget), prompts, seed)
    for row, job in enumerate(jobs)
    for column, budget in enumerate(plan.budgets)
    if runs.point_path(job, budget).exists()
  }
  if not drawn:
    raise ValueError(
      f"The sweep in {runs.out} has no finished run to draw with."
    )
  height, width = next(iter(drawn.values()))[0].shape[:2]
  cell_h, cell_w = height * scale + _GAP, width * scale + _GAP
  block = len(plan.budgets) * cell_w + _LEFT
  sheet = Image.new(
    "RGB", (block * len(prompts), _TOP + cell_h * len(jobs)), _PAPER
  )
  for i, prompt in enumerate(prompts):
    _labels(sheet, i * block, prompt, plan, jobs, (cell_h, cell_w))
    for row in range(len(jobs)):
      for column in range(len(plan.budgets)):
        corner = (i * block + _LEFT + column * cell_w, _TOP + row * cell_h)
        size = (width * scale, height * scale)
        picture = Image.new("RGB", size, _ABSENT)
        if (row, column) in drawn:
          picture = Image.fromarray(drawn[row, column][i])
          picture = picture.resize(size, Image.Resampling.NEAREST)
        sheet.paste(picture, corner)
  return sheet


def _labels(sheet, left: int, prompt: str, plan: Plan, jobs, cell) -> None:
  """The prompt, the shares above the columns, the sizes beside the rows."""
  canvas, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
  most = len(plan.budgets) * cell[1]
  shown = prompt
  while canvas.textlength(shown, font) > most and len(shown) > 4:
    shown = f"{shown[:-4]}..."
  canvas.text((left + _LEFT, 4), shown, fill=_INK, font=font)
  for column, budget in enumerate(plan.budgets):
    x = left + _LEFT + column * cell[1]
    text = f"{budget.fraction:.0%}"
    canvas.text((x + 2, 22), text, fill=_INK, font=font)
  for row, job in enumerate(jobs):
    y = _TOP + row * cell[0] + cell[0] // 2 - 10
    canvas.text((left + 6, y), job.size.name, fill=_INK, font=font)
