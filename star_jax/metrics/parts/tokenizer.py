"""--what=tokenizer: reconstruction of held-out art and use of the codebook."""

from __future__ import annotations

import numpy as np

from star_jax.metrics import heldout
from star_jax.metrics.context import Context, picture_grid
from star_jax.metrics.progress import Progress
from star_jax.metrics.reconstruction import evaluate_reconstruction, psnr
from star_jax.metrics.report import Result

SHEET_COLUMNS = 12


def run(ctx: Context) -> Result:
  """Measures, and writes reconstructions.png: pictures over copies."""
  c = ctx.config
  numbers = heldout.pick(ctx.store, "heldout", c.n, c.seed)
  pictures = heldout.art_pictures(ctx.store, numbers, ctx.image_size, c.seed)
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
  styles = np.array([ctx.store.records[i].style for i in numbers])
  values["psnr_art_by_style"] = {
    str(s): {"psnr": float(art[styles == s].mean()), "n": int(n)}
    for s, n in zip(*np.unique(styles, return_counts=True))
  }
  _save_sheet(ctx, pictures.image[: 3 * SHEET_COLUMNS])
  return Result(values, _rows(values))


def _rows(values: dict) -> list[tuple[str, str, str]]:
  psnrs, pooled = values["psnr"], values["psnr_pooled"]
  book = values["codebook"]

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
  shares = ", ".join(f"{100 * x:.0f}" for x in book["used_share_per_scale"])
  entropies = ", ".join(f"{x:.1f}" for x in book["entropy_per_scale"])
  return [
    *rows,
    ("PSNR over the art after each scale", after, "dB"),
    (
      "codebook in use",
      f"{100 * book['used_share']:.1f}%",
      f"of {book['size']}, by {book['tokens']} tokens",
    ),
    ("codebook in use at each scale", shares, "%"),
    ("codebook perplexity", f"{book['perplexity']:.0f}", ""),
    ("entropy of a token at each scale", entropies, "nats"),
  ]


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
