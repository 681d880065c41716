"""Sample sheets of a training run: rows of small pictures in one image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

GAP = 2


def sheet(rows: Sequence[np.ndarray], zoom: int = 1) -> Image.Image:
  """Tiles rows of pictures.

  Args:
    rows: each float [n, H, W, 3] in [-1, 1]; rows may differ in n.
    zoom: every pixel becomes zoom x zoom.
  """
  height, width = rows[0].shape[1:3]
  columns = max(row.shape[0] for row in rows)
  canvas = np.full(
    (len(rows) * (height + GAP), columns * (width + GAP), 3), 255, np.uint8
  )
  for i, row in enumerate(rows):
    for j, picture in enumerate(to_uint8(row)):
      top, left = i * (height + GAP), j * (width + GAP)
      canvas[top : top + height, left : left + width] = picture
  canvas = canvas[:-GAP, :-GAP]
  return Image.fromarray(canvas.repeat(zoom, axis=0).repeat(zoom, axis=1))


def to_uint8(image: np.ndarray) -> np.ndarray:
  """[-1, 1] -> uint8, rounded."""
  scaled = (np.asarray(image, np.float32) + 1.0) * 127.5
  return np.clip(np.round(scaled), 0, 255).astype(np.uint8)
