"""Lifts the one object of an icon off its background.

Generated icons stand anywhere on any background; features are compared on
white, with the object filling the frame.
"""

from __future__ import annotations

import numpy as np
from PIL import Image
from scipy import ndimage

from star_jax.data.recolor import rgb_to_oklab
from star_jax.metrics.background import fit_background

# OKLab distance from the background: surely background, surely not.
NEAR, FAR = 0.04, 0.08
MARGIN = 2  # pixels around the object at the size of the picture
MIN_PIXELS = 16


def object_alpha(image: np.ndarray) -> np.ndarray:
  """How much each pixel belongs to the object, float32 [H, W] in [0, 1].

  Background is what looks like the fitted plane and hangs together with the
  rim; the same colour inside the object stays.
  """
  lab = rgb_to_oklab(image)
  away = np.sqrt(((lab - fit_background(lab)) ** 2).sum(-1))
  label, _ = ndimage.label(away < FAR)
  rim = np.concatenate([label[0], label[-1], label[:, 0], label[:, -1]])
  background = np.isin(label, np.unique(rim[rim > 0]))
  soft = np.clip((away - NEAR) / (FAR - NEAR), 0, 1)
  return np.where(background, soft, 1).astype(np.float32)


def on_white(image: np.ndarray, alpha: np.ndarray | None = None) -> np.ndarray:
  """The object on white, filling the frame.

  Args:
    image: uint8 [H, W, 3].
    alpha: float [H, W] of the object; None to find it.

  Returns:
    uint8 [H, W, 3]; the picture as it is when no object stands out.
  """
  if alpha is None:
    alpha = object_alpha(image)
  rows = np.flatnonzero((alpha > 0.5).any(1))
  columns = np.flatnonzero((alpha > 0.5).any(0))
  if (alpha > 0.5).sum() < MIN_PIXELS:
    return image
  white = image * alpha[..., None] + 255 * (1 - alpha[..., None])
  top, bottom = rows[0] - MARGIN, rows[-1] + 1 + MARGIN
  left, right = columns[0] - MARGIN, columns[-1] + 1 + MARGIN
  side = max(bottom - top, right - left)
  y, x = (top + bottom - side) / 2, (left + right - side) / 2
  # A wide white border, so that the crop never leaves the picture.
  pad = max(image.shape[:2])
  padded = np.pad(
    np.round(white).astype(np.uint8),
    ((pad, pad), (pad, pad), (0, 0)),
    constant_values=255,
  )
  return np.asarray(
    Image.fromarray(padded).resize(
      image.shape[1::-1],
      Image.Resampling.BICUBIC,
      box=(x + pad, y + pad, x + side + pad, y + side + pad),
    )
  )
