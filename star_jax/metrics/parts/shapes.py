"""--what=shapes: how well does one model draw pictures of each shape.

New scenes of the training distribution, drawn on canvases of every ratio: how
likely the model finds their tokens, and what of the captions is in the pictures
that it draws; beside both, the scenes themselves through the tokenizer.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from PIL import Image

from star_jax.api import StarPipeline
from star_jax.metrics import samples
from star_jax.metrics.context import Context, picture_grid
from star_jax.metrics.report import Result, share_text
from star_jax.metrics.scene_match import SceneMatcher
from star_jax.metrics.scene_score import score_pictures, shares
from star_jax.metrics.sprite_bank import SpriteBank

SHOWN = 8  # pictures of each shape on the sheet
MEASURES = ("objects", "colours", "relations", "everything")


def run(ctx: Context) -> Result:
  """Measures each shape; writes shapes.png, a row of samples of each."""
  options = ctx.config.shapes
  pipeline = _pipeline(ctx, options.rope_coords)
  generator = ctx.scenes("seen")
  matcher = SceneMatcher(SpriteBank(generator), generator.config.max_objects)
  values, rows, sheets = {}, [], []
  for aspect in options.aspects:
    values[aspect], image = _shape(ctx, pipeline, matcher, aspect)
    sheets.append(picture_grid(image[:SHOWN], SHOWN, scale=2))
    rows.append(_row(aspect, values[aspect]))
  _stacked(sheets).save(ctx.folder / "shapes.png")
  return Result(values, rows)


def _pipeline(ctx: Context, rope_coords: str) -> StarPipeline:
  """The model, with other coordinates if they are asked for: a model of squares
  is the same under those that differ on other shapes alone."""
  if not rope_coords:
    return ctx.pipeline
  star = dataclasses.replace(ctx.bundle.star_config, rope_coords=rope_coords)
  return StarPipeline(dataclasses.replace(ctx.bundle, star_config=star))


def _shape(ctx: Context, pipeline, matcher, aspect: str):
  """(figures, the drawn pictures uint8 [N, H, W, 3])."""
  c, options = ctx.config, ctx.config.shapes
  programs = pipeline.programs(aspect)
  generator = ctx.scenes("seen", programs.image_size)
  scenes = [generator.scene(i) for i in range(min(options.n, c.n))]
  captions = [scene.caption for scene in scenes]
  scored = min(options.scored, len(scenes))
  truth = [generator.render(scene) for scene in scenes]
  tokens = np.stack([pipeline.encode(x, aspect=aspect) for x in truth])
  log_p_NK = pipeline.log_prob_batch(
    tokens, captions, per_scale=True, batch=c.batch_size, aspect=aspect
  )
  drawn = samples.generate(
    pipeline,
    captions[:scored],
    seed=c.seed,
    batch=c.batch_size,
    settings={**c.sampling.to_dict(), "aspect": aspect},
    folder=ctx.folder / f"samples_{options.rope_coords or 'own'}",
    label=f"{aspect}, sampling",
  )
  through = [
    np.asarray(pipeline.decode(t, aspect=aspect)) for t in tokens[:scored]
  ]
  lengths = programs.vqvae.config.schedule.lengths
  out = {
    "size": list(programs.image_size),
    "tokens": sum(lengths),
    "nats_per_token": float(-log_p_NK.mean(0).sum() / sum(lengths)),
    "nats_per_scale": (-log_p_NK.mean(0) / lengths).tolist(),
  }
  for name, image in (("model", drawn), ("tokenizer", np.stack(through))):
    out[name] = _score(matcher, image, captions, f"{aspect}, {name}")
  return out, drawn


def _score(matcher, image, captions, label: str) -> dict:
  scores = score_pictures(matcher, image, captions, label)
  return {name: share.to_dict() for name, share in shares(scores).items()}


def _row(aspect: str, found: dict) -> tuple[str, str, str]:
  height, width = found["size"]

  def percent(name: str) -> str:
    return ", ".join(
      f"{m} {share_text(found[name][m]).split(' ')[0]}" for m in MEASURES
    )

  return (
    f"{aspect} ({width} x {height})",
    f"{found['nats_per_token']:.3f} nats/token",
    f"{percent('model')}; tokenizer: {percent('tokenizer')}",
  )


def _stacked(sheets: list[Image.Image]) -> Image.Image:
  """One below the other on white."""
  size = max(s.width for s in sheets), sum(s.height + 8 for s in sheets)
  out, top = Image.new("RGB", size, "white"), 0
  for sheet in sheets:
    out.paste(sheet, (0, top))
    top += sheet.height + 8
  return out
