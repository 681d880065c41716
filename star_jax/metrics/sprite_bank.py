"""Every object of the scenes in every style and colour, as templates.

Templates live in OKLab, where equal distances look equally different, and are
multiplied by their alpha. N: templates, q: side of a template in the pixels
of the scale it is used at.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
from scipy import ndimage

from star_jax.data.recolor import COLOURS, rgb_to_oklab
from star_jax.data.scenes import CONCEPTS, SceneGenerator

BASE = 64  # pixels a side of the stored sprites
FLOAT32_UP_TO = 15  # pixels a side; larger templates are kept as float16
HALF = 32  # pixels a side of the copy that small templates are made from


@dataclasses.dataclass(frozen=True)
class Entry:
  """colour None: as drawn."""

  concept: str
  style: str
  colour: str | None


@dataclasses.dataclass
class Templates:
  """All templates at one size, with the sums that their cost needs.

  filters: [N, 4 q q], colour times alpha and minus alpha; float16 when the
    templates were kept, float32 from `take`.
  energy: float32 [N], sum of |alpha * colour|^2.
  mixed: float32 [3, N], sum of alpha * (alpha * colour).
  coverage: float32 [N], sum of alpha^2.
  """

  filters: np.ndarray
  energy: np.ndarray
  mixed: np.ndarray
  coverage: np.ndarray

  def take(self, chosen: np.ndarray) -> Templates:
    """Only the templates with these numbers."""
    return Templates(
      self.filters[chosen].astype(np.float32),
      self.energy[chosen],
      self.mixed[:, chosen],
      self.coverage[chosen],
    )


@functools.lru_cache(maxsize=256)
def shrink_matrix(n_in: int, n_out: int) -> np.ndarray:
  """float32 [n_out, n_in], antialiased linear resampling of one axis."""
  scale = n_in / n_out
  reach = max(scale, 1.0)
  centre = (np.arange(n_out) + 0.5) * scale
  away = np.abs(np.arange(n_in) + 0.5 - centre[:, None])
  weight = np.maximum(0, 1 - away / reach)
  return (weight / weight.sum(1, keepdims=True)).astype(np.float32)


class SpriteBank:
  """Templates of all concepts x styles x colours that a generator draws."""

  def __init__(self, generator: SceneGenerator):
    self.entries: list[Entry] = []
    sprites = []
    for style in generator.styles:
      for concept in CONCEPTS.values():
        drawn = (style, concept.key) in generator.store
        if style not in concept.styles or not drawn:
          continue
        for colour in (None, *COLOURS):
          self.entries.append(Entry(concept.name, style, colour))
          sprites.append(generator.sprite(concept.name, style, colour, BASE))
    self._full = np.concatenate(
      [
        _to_planes(np.stack(sprites[i : i + 128])).astype(np.float16)
        for i in range(0, len(sprites), 128)
      ]
    )
    self._half = np.concatenate(
      [
        _resize(self._full[i : i + 128].astype(np.float32), HALF)
        for i in range(0, len(sprites), 128)
      ]
    ).astype(np.float16)
    self._cache: dict[int, Templates] = {}
    names = list(CONCEPTS)
    colours = [None, *COLOURS]
    self.concepts = np.array([names.index(e.concept) for e in self.entries])
    self.colours = np.array([colours.index(e.colour) for e in self.entries])
    self.styles = np.array([e.style for e in self.entries])

  def __len__(self) -> int:
    return len(self.entries)

  def at(self, side: int) -> Templates:
    """All templates, `side` <= 32 pixels wide; kept for the next call."""
    if side not in self._cache:
      parts = [
        _templates(_resize(self._half[i : i + 128].astype(np.float32), side))
        for i in range(0, len(self), 128)
      ]
      fields = [f.name for f in dataclasses.fields(Templates)]
      self._cache[side] = Templates(
        *(
          np.concatenate(
            [getattr(p, f) for p in parts], axis=1 if f == "mixed" else 0
          )
          for f in fields
        )
      )
      if side > FLOAT32_UP_TO:
        kept = self._cache[side]
        kept.filters = kept.filters.astype(np.float16)
    return self._cache[side]

  def build(self, side: int, chosen: np.ndarray, blur: float) -> Templates:
    """The chosen templates from the large sprites, blurred, not kept."""
    planes = _resize(self._full[chosen].astype(np.float32), side)
    return _templates(
      ndimage.gaussian_filter(planes, (0, blur, blur, 0), mode="constant")
    )


def _to_planes(sprites: np.ndarray) -> np.ndarray:
  """uint8 RGBA -> float32 [N, y, x, 4], OKLab times alpha, and alpha."""
  alpha = sprites[..., 3:].astype(np.float32) / 255
  return np.concatenate([rgb_to_oklab(sprites[..., :3]) * alpha, alpha], -1)


def _resize(planes: np.ndarray, side: int) -> np.ndarray:
  """[N, n, n, 4] -> [N, side, side, 4]."""
  matrix = shrink_matrix(planes.shape[1], side)
  planes = np.einsum("qy,nyxc->nqxc", matrix, planes, optimize=True)
  return np.einsum("qx,nyxc->nyqc", matrix, planes, optimize=True)


def _templates(planes: np.ndarray) -> Templates:
  colour, alpha = planes[..., :3], planes[..., 3:]
  filters = np.concatenate([colour, -alpha], axis=-1)
  return Templates(
    filters.reshape(len(planes), -1),
    (colour**2).sum((1, 2, 3)),
    (colour * alpha).sum((1, 2)).T,
    (alpha**2).sum((1, 2, 3)),
  )
