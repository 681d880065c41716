"""Sprites: one object of the scenes in one style and colour.

Pictures of the art store are cropped to what is visible, centred in a square,
repainted, and kept at 64 pixels; a sprite of any size is resized from there.
"""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
from PIL import Image

from star_jax.data.concepts import CONCEPTS
from star_jax.data.recolor import recolor

_KEPT = 64  # pixels a side of a kept sprite; larger ones keep the original
_LARGE_BYTES = 2**28  # of the large ones that are kept


class Sprites:
  """Cuts, repaints and resizes pictures of an art store.

  Every one that was asked for is kept: all of them at 64 px take 60 MB; of the
  larger ones the latest, 256 MB.
  """

  def __init__(self, store):
    self._store = store
    self._small: OrderedDict[tuple, np.ndarray] = OrderedDict()
    self._large: OrderedDict[tuple, np.ndarray] = OrderedDict()

  def sprite(
    self, concept: str, style: str, colour: str | None, size: int
  ) -> np.ndarray:
    """The object alone: uint8 RGBA [size, size, 4], straight alpha.

    Args:
      concept: a key of `CONCEPTS`.
      style: one of the styles that draw it.
      colour: a key of `COLOURS`, or None for the original colours.
      size: side in pixels; the longer side of the object fills it.

    Raises:
      ValueError: the style does not draw it, or an unknown colour.
    """
    base = self._base(concept, style, colour, large=size > _KEPT)
    return _resize(base, size)

  def _base(self, concept, style, colour, large: bool) -> np.ndarray:
    """A square sprite at 64 pixels a side, or as it is cut out (`large`)."""
    key, kept = (concept, style, colour), self._large if large else self._small
    if (found := kept.get(key)) is not None:
      return found
    try:
      position = self._store.index(style, CONCEPTS[concept].key)
    except KeyError:
      raise ValueError(
        f"The style {style!r} has no picture of {concept!r}."
      ) from None
    rgba = _crop_square(self._store.rgba(position))
    if colour is not None:
      rgba = recolor(rgba, colour)
    if not large:
      rgba = _resize(rgba, _KEPT)
    kept[key] = rgba
    if large and len(kept) > _LARGE_BYTES // (4 * self._store.size**2):
      kept.popitem(last=False)
    return rgba


def _resize(rgba: np.ndarray, side: int) -> np.ndarray:
  image = Image.fromarray(rgba, "RGBA")
  return np.asarray(image.resize((side, side), Image.Resampling.LANCZOS))


def _crop_square(rgba: np.ndarray) -> np.ndarray:
  """The visible part of a sprite in the middle of the smallest square."""
  rows = np.flatnonzero((rgba[..., 3] > 16).any(axis=1))
  columns = np.flatnonzero((rgba[..., 3] > 16).any(axis=0))
  part = rgba[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
  height, width = part.shape[:2]
  side = max(height, width)
  square = np.zeros((side, side, 4), np.uint8)
  top, left = (side - height) // 2, (side - width) // 2
  square[top : top + height, left : left + width] = part
  return square


def blend(canvas: np.ndarray, sprite: np.ndarray, x: int, y: int) -> None:
  """Lays an RGBA sprite over an RGB canvas, in place."""
  height, width = sprite.shape[:2]
  part = canvas[y : y + height, x : x + width]
  alpha = sprite[..., 3:].astype(np.uint16)
  mixed = sprite[..., :3] * alpha + part * (255 - alpha) + 127
  part[...] = mixed // 255
