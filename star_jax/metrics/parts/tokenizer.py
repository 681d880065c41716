"""--what=tokenizer: reconstructions of held-out pictures, after every scale, to
several judges; use of the codebook."""

from __future__ import annotations

import math

import numpy as np

from star_jax.evaluation.collect import Extractor
from star_jax.metrics import heldout, judges, scale_quality
from star_jax.metrics.ceiling import measure_ceiling
from star_jax.metrics.context import Context, picture_grid
from star_jax.metrics.progress import Progress
from star_jax.metrics.reconstruction import (
  Pictures,
  evaluate_reconstruction,
  psnr,
)
from star_jax.metrics.report import Result
from star_jax.train.batches import heldout_pictures

SHEET_COLUMNS = 12
SCALE_COLUMNS = 8
ART = "art"
# Measure -> its row, digits.
TITLES = {
  scale_quality.SSIM: ("SSIM", 4),
  scale_quality.PERCEPTUAL: ("VGG16-HED perceptual distance", 4),
  scale_quality.KID: ("EfficientNet-lite0 KID", 4),
  scale_quality.FRECHET: ("EfficientNet-lite0 Frechet distance", 1),
  scale_quality.RFID: ("rFID", 2),
}
# They compare sets: two halves of the originals say what is near.
OF_SETS = ("efficientnet", "inception")


def run(ctx: Context) -> Result:
  """Measures, and writes reconstructions.png (pictures over copies) and
  scales.png (pictures, what the ceiling makes of them, and what they are after
  every scale)."""
  c = ctx.config
  chosen = judges.choose_judges(c.tokenizer.judges, ctx.bundle.notes)
  pictures, styles = _pictures(ctx)
  report = evaluate_reconstruction(
    ctx.vqvae,
    ctx.tokenizer_params,
    pictures,
    batch_size=c.batch_size,
    num_scale_pictures=c.tokenizer.num_scale_pictures,
    progress=Progress("tokenizer"),
  )
  values = report.to_dict()
  art = psnr(report.mse["art"])
  values["psnr_art_by_style"] = {
    str(s): {"psnr": float(art[styles == s].mean()), "n": int(n)}
    for s, n in zip(*np.unique(styles, return_counts=True))
  }
  if "codebook" in values:
    values["bits_per_pixel"] = scale_quality.bits(
      ctx.vqvae.config.schedule.lengths,
      values["codebook"]["entropy_per_scale"],
      ctx.vqvae.config.vocab_size,
      math.prod(ctx.image_size),
    )
  best = None
  if ctx.ceiling is not None:
    best, means = measure_ceiling(ctx.ceiling, pictures, c.batch_size)
    values["ceiling"] = {"bundle": ctx.ceiling.hash, "psnr": means}
  judged = _judged(ctx, pictures.image, chosen, best)
  quality = judged.pop("ceiling")
  if best is not None:
    values["ceiling"]["quality"] = quality
  values |= judged
  _save_sheet(ctx, pictures.image[: 3 * SHEET_COLUMNS])
  return Result(values, _rows(values))


def _pictures(ctx: Context) -> tuple[Pictures, np.ndarray]:
  """Held-out pictures and the style of each; of pictures that are no art on a
  background all pixels count, and the blank is their mean colour."""
  c = ctx.config
  if c.tokenizer.data == ART:
    numbers = heldout.pick(ctx.store, "heldout", c.n, c.seed)
    pictures = heldout.art_pictures(ctx.store, numbers, ctx.image_size, c.seed)
    styles = np.array([ctx.store.records[i].style for i in numbers])
    return pictures, styles
  image = heldout_pictures(
    c.data_options, c.tokenizer.data, ctx.image_size, c.n, c.seed
  )
  mean = np.round(image.mean((1, 2), keepdims=True)).astype(np.uint8)
  alpha = np.ones(image.shape[:3], np.float32)
  styles = np.full(len(image), c.tokenizer.data)
  return Pictures(image, alpha, np.broadcast_to(mean, image.shape)), styles


def _judged(
  ctx: Context,
  image: np.ndarray,
  chosen: dict[str, str],
  best: np.ndarray | None,
) -> dict:
  """What the judges say: of all pictures ("quality"), of the first ones after
  every scale ("after_scale"), of two halves of the originals ("floor"), of the
  ceiling's pictures ("ceiling").

  Args:
    image: the originals.
    chosen: judge -> why it does not measure, or "".
    best: the originals through the ceiling, if there is one.
  """
  c = ctx.config
  few = image[: c.tokenizer.num_scale_pictures]
  made, _ = ctx.reconstruct(image)
  after = scale_quality.scale_pictures(
    ctx.vqvae, ctx.tokenizer_params, few, c.batch_size
  )
  _save_scales(ctx, few, after, best)
  out = {"quality": {}, "after_scale": {}, "floor": {}, "not_measured": {}}
  out["ceiling"] = {}
  partial = judges.partial_judges(ctx.ceiling.notes) if ctx.ceiling else {}
  makers = {"ssim": scale_quality.similarity_judge}
  for judge, reason in chosen.items():
    if reason:
      out["not_measured"][judge] = reason
    else:
      makers[judge] = scale_quality.MAKERS[judge]
  if ctx.inception is not None:
    extractor = Extractor(ctx.inception, c.pictures.batch_size)
    makers["inception"] = scale_quality.inception_judge(extractor)
  half = len(image) // 2
  for name, make in makers.items():
    try:
      judge = make(image, c.batch_size)
      out["quality"] |= judge(made)
      if best is not None and name not in partial:
        out["ceiling"] |= judge(best)
      judge = make(few, c.batch_size)
      for found in map(judge, after):
        for key, value in found.items():
          out["after_scale"].setdefault(key, []).append(value)
      if name in OF_SETS:
        floor = make(image[:half], c.batch_size)
        out["floor"] |= floor(image[half : 2 * half])
    except (FileNotFoundError, ValueError) as error:
      # Its weights are not installed, or the pictures are too small for it.
      out["not_measured"][name] = str(error)
  return out


def _rows(values: dict) -> list[tuple[str, str, str]]:
  psnrs, pooled = values["psnr"], values["psnr_pooled"]

  def line(name, key, blank):
    return (
      name,
      f"{psnrs[key]:.2f} dB",
      f"pooled {pooled[key]:.2f}, blank {psnrs[blank]:.2f}",
    )

  rows = [
    line("PSNR over the art", "art", "blank_art"),
    line("PSNR of the whole picture", "whole", "blank_whole"),
  ]
  for style, entry in values["psnr_art_by_style"].items():
    rows.append(
      (f"  art, {style}", f"{entry['psnr']:.2f} dB", f"n = {entry['n']}")
    )
  after = ", ".join(f"{x:.1f}" for x in values["psnr_art_after_scale"])
  rows.append(("PSNR over the art after each scale", after, "dB"))
  if "codebook" in values:
    rows += _usage_rows(values["codebook"], values["bits_per_pixel"])
  rows += _judged_rows(values)
  if "ceiling" in values:
    rows.append(_ceiling_row(values["ceiling"]))
  return rows


def _usage_rows(book: dict, bits: dict) -> list[tuple[str, str, str]]:
  shares = ", ".join(f"{100 * x:.0f}" for x in book["used_share_per_scale"])
  entropies = ", ".join(f"{x:.1f}" for x in book["entropy_per_scale"])
  return [
    (
      "codebook in use",
      f"{100 * book['used_share']:.1f}%",
      f"of {book['size']}, by {book['tokens']} tokens",
    ),
    ("codebook in use at each scale", shares, "%"),
    ("codebook perplexity", f"{book['perplexity']:.0f}", ""),
    ("entropy of a token at each scale", entropies, "nats"),
    (
      "bits per pixel",
      f"{bits['plain']:.3f}",
      f"{bits['coded']:.3f} as frequencies allow",
    ),
  ]


def _ceiling_row(ceiling: dict) -> tuple[str, str, str]:
  """All of the ceiling in one row; it has no tokens."""
  parts = [f"whole picture {ceiling['psnr']['whole']:.2f} dB"]
  for key, value in ceiling["quality"].items():
    title, digits = TITLES[key]
    parts.append(f"{title} {value:.{digits}f}")
  return "KL ceiling", f"{ceiling['psnr']['art']:.2f} dB", ", ".join(parts)


def _judged_rows(values: dict) -> list[tuple[str, str, str]]:
  rows = []
  for key, value in values["quality"].items():
    title, digits = TITLES[key]
    floor = values["floor"].get(key)
    remark = (
      ""
      if floor is None
      else f"two halves of the originals: {floor:.{digits}f}"
    )
    rows.append((title, f"{value:.{digits}f}", remark))
    after = ", ".join(f"{x:.{digits}f}" for x in values["after_scale"][key])
    rows.append((f"  after each scale, {title}", after, ""))
  rows += [
    (f"not measured: {judge}", "-", reason)
    for judge, reason in values["not_measured"].items()
  ]
  return rows


def _save_sheet(ctx: Context, image: np.ndarray) -> None:
  """Rows of pictures, each with the row of its reconstructions below."""
  recon, _ = ctx.reconstruct(image)
  rows = []
  for start in range(0, len(image), SHEET_COLUMNS):
    part = slice(start, start + SHEET_COLUMNS)
    rows += [image[part], recon[part]]
  sheet = picture_grid(np.concatenate(rows), min(SHEET_COLUMNS, len(image)))
  ctx.folder.mkdir(parents=True, exist_ok=True)
  sheet.save(ctx.folder / "reconstructions.png")


def _save_scales(
  ctx: Context, image: np.ndarray, after: np.ndarray, best: np.ndarray | None
) -> None:
  """Top row: originals; below them what the ceiling makes of them, if there is
  one; then the pictures after every scale, the last row is the reconstruction.
  """
  columns = min(SCALE_COLUMNS, len(image))
  rows = [image[:columns], *after[:, :columns]]
  if best is not None:
    rows.insert(1, best[:columns])
  sheet = picture_grid(np.concatenate(rows), columns)
  sheet.save(ctx.folder / "scales.png")
