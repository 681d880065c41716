"""A picture of which codes a tokenizer uses at which scale.

K: scales, V: codebook size.
"""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageDraw

from star_jax.scales import ScaleSchedule

ZOOM, GAP, LABEL = 2, 8, 28  # pixels
COLUMNS = 6
# Hits against a uniform choice that are drawn palest and darkest.
PALE, DARK = 0.1, 100.0


def code_sheet(
  usage_KV: np.ndarray, schedule: ScaleSchedule, used_share: float
) -> Image.Image:
  """One panel for all scales together and one for each, a dot a code.

  White: hardly or never chosen; the darker, the more common. Codes have the
  same place in every panel, those that are common in all scales come first.

  Args:
    usage_KV: hits of each code, in any unit.
    schedule: of the tokenizer.
    used_share: a code counts as used from this share of the mean hits on.
  """
  usage_KV = np.asarray(usage_KV, np.float64)
  order_V = np.argsort(-usage_KV.sum(0), kind="stable")
  names = [f"{h}x{w}" for h, w in schedule.grids]
  rows = [("all scales", usage_KV.sum(0)), *zip(names, usage_KV)]
  panels = [_panel(x_V[order_V], used_share) for _, x_V in rows]
  texts = [f"{name}\n{_figures(x_V, used_share)}" for name, x_V in rows]
  height, width = panels[0].shape
  # Room for the text under narrow panels.
  width = max(width, 112)
  lines = -(-len(panels) // COLUMNS)
  size = (min(len(panels), COLUMNS) * (width + GAP) + GAP,
          lines * (height + LABEL + GAP) + GAP)  # fmt: skip
  sheet = Image.new("L", size, 255)
  draw = ImageDraw.Draw(sheet)
  for i, (panel, text) in enumerate(zip(panels, texts)):
    left = GAP + i % COLUMNS * (width + GAP)
    top = GAP + i // COLUMNS * (height + LABEL + GAP)
    sheet.paste(Image.fromarray(panel), (left, top + LABEL))
    draw.multiline_text((left, top), text, fill=0, spacing=1)
  return sheet.convert("RGB")


def _panel(usage_V: np.ndarray, used_share: float) -> np.ndarray:
  """uint8 [height, width]; codes in rows, on light gray where there is none."""
  mean = max(usage_V.mean(), 1e-12)
  darkness_V = np.log(np.maximum(usage_V / mean, PALE) / PALE)
  gray_V = 225 * (1 - np.minimum(darkness_V / np.log(DARK / PALE), 1))
  gray_V = np.where(usage_V < max(used_share * mean, 1e-12), 255, gray_V)
  columns = 2 ** math.ceil(math.log2(len(usage_V)) / 2)
  full = np.full(-(-len(usage_V) // columns) * columns, 200.0)
  full[: len(usage_V)] = gray_V
  dots = np.round(full).astype(np.uint8).reshape(-1, columns)
  dots = np.pad(dots, 1, constant_values=128)
  return dots.repeat(ZOOM, 0).repeat(ZOOM, 1)


def _figures(usage_V: np.ndarray, used_share: float) -> str:
  used = (usage_V >= max(used_share * usage_V.mean(), 1e-12)).mean()
  p_V = usage_V / max(usage_V.sum(), 1e-12)
  entropy = -np.sum(p_V * np.log(np.maximum(p_V, 1e-30)))
  return f"{used:.0%} used, perp. {np.exp(entropy):.0f}"
