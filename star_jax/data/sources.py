"""Where training examples come from, each behind the same two methods.

A source has `len(source)` and `example(index, seed) -> (image, caption,
meta)`: image uint8 [H, W, 3], caption a str, meta a dict of facts, among them
"id": a str that names the original, whatever its augmentation. An example is a
pure function of (seed, index); `seed` varies the augmentation (and, for
generated pictures, the picture).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from PIL import Image

from star_jax.data import backgrounds, layouts
from star_jax.data.art.captions import canonical_caption, icon_caption
from star_jax.data.position import ENDLESS
from star_jax.data.recolor import COLOURS
from star_jax.data.scene_config import SPLITS
from star_jax.data.scene_text import with_article
from star_jax.data.scenes import SceneConfig, SceneGenerator
from star_jax.data.sprites import blend

Example = tuple[np.ndarray, str, dict[str, Any]]


class Source(Protocol):
  """What the pipeline reads from."""

  def __len__(self) -> int: ...

  def example(self, index: int, seed: int) -> Example:
    """(image uint8 [H, W, 3], caption, facts), pure in (seed, index)."""
    ...


def check_split(split: str) -> str:
  """The split, or ValueError for an unknown one."""
  if split not in SPLITS:
    raise ValueError(f"A split is one of {', '.join(SPLITS)}, got {split!r}.")
  return split


class IconSource:
  """Single pictures of the art store on random backgrounds.

  Args:
    store: `ArtStore`.
    size: (H, W).
    split: "train" and "seen" are the training pictures, "heldout" the others.
    styles: art sets to use; empty for all.
    white_share: how often the background is white.
    min_scale: smallest side of the picture as a share of the shorter side.
    lattice: places and sizes are multiples of so many 64ths of the side, as in
      `SceneConfig`.
    background_share, default_background: as in `SceneConfig`.
    canonical: no augmentation at all: centred, full size, on white, with the
      caption used for measuring.
    classes: the caption of a picture is its category, one of
      `art.names.CATEGORIES`; it tells nothing else.
  """

  def __init__(
    self,
    store,
    size: tuple[int, int],
    split: str,
    *,
    styles: Sequence[str],
    white_share: float,
    min_scale: float,
    lattice: int = 1,
    background_share: float = 0.0,
    default_background: str = "",
    canonical: bool = False,
    classes: bool = False,
  ):
    wanted = "heldout" if check_split(split) == "heldout" else "train"
    known = {record.style for record in store.records}
    if unknown := set(styles) - known:
      raise ValueError(
        f"The art store has the styles {', '.join(sorted(known))}, not"
        f" {', '.join(sorted(unknown))}."
      )
    if not 0 < min_scale <= 1:
      raise ValueError(f"min_scale is in (0, 1], got {min_scale!r}.")
    backgrounds.check_background(background_share, default_background)
    self.background_share = background_share
    self.default_background = default_background
    self.store = store
    self.size = tuple(size)
    self.white_share = white_share
    self.min_scale = min_scale
    self.step = layouts.lattice_step(lattice, self.size)
    self.canonical = canonical
    self.classes = classes
    self.positions = [
      i
      for i, record in enumerate(store.records)
      if record.split == wanted and (not styles or record.style in styles)
    ]
    if not self.positions:
      raise ValueError(
        f"The art store has no {wanted} pictures in the styles {styles!r}."
      )

  def __len__(self) -> int:
    return len(self.positions)

  def example(self, index: int, seed: int) -> Example:
    image, caption, meta = self._captioned(index, seed)
    if self.classes:
      caption = self.store.records[meta["record"]].category
    return image, caption, meta

  def _captioned(self, index: int, seed: int) -> Example:
    position = self.positions[index]
    record = self.store.records[position]
    rgba = self.store.rgba(position)
    meta = {
      "id": f"{record.style}/{record.key}",
      "source": "icons",
      "record": position,
      "style": record.style,
    }
    if self.canonical:
      white = backgrounds.WHITE
      background = backgrounds.Background("plain", white, white, 0.0, 1.0)
      image = self._compose(rgba, background, min(self.size), (0.5, 0.5))
      return image, canonical_caption(record), meta
    rng = np.random.default_rng([seed, index])
    caption = icon_caption(record, rng)
    background, told = self._background(rng, rgba, record.style)
    if told:
      caption = backgrounds.with_background(caption, background)
    share = rng.uniform(self.min_scale, 1.0)
    most = min(self.size) // self.step
    steps = min(max(round(min(self.size) * share / self.step), 1), most)
    side = steps * self.step
    image = self._compose(rgba, background, side, rng.random(2))
    return image, caption, meta

  def _background(self, rng, rgba: np.ndarray, style: str):
    """One on which the picture stays visible, and whether it is told."""
    few = rgba[::4, ::4]
    solid = few[..., 3] > 127
    avoid = []
    if solid.any():
      mean = few[solid][:, :3].mean(axis=0)
      avoid.append(tuple(int(v) for v in mean))
    dark = ()
    if style in ("line art", "openmoji"):  # black outlines
      dark = backgrounds.DARK
    return backgrounds.draw_told_or_default(
      rng,
      avoid,
      told_share=self.background_share,
      default=self.default_background,
      white_share=self.white_share,
      min_distance=0.12,
      without=dark,
    )

  def _compose(self, rgba, background, side: int, at) -> np.ndarray:
    """The picture at `side` pixels, `at` (y, x) in the free room."""
    canvas = backgrounds.paint(background, self.size)
    sprite = Image.fromarray(rgba, "RGBA")
    if side != rgba.shape[0]:
      sprite = sprite.resize((side, side), Image.Resampling.LANCZOS)
    # Every place on the lattice is as likely.
    y, x = (
      int(share * ((room - side) // self.step + 1)) * self.step
      for room, share in zip(self.size, at)
    )
    blend(canvas, np.asarray(sprite), x, y)
    return canvas


class SceneSource:
  """Generated scenes; see `scenes.py`.

  Args:
    store: `ArtStore`.
    config: what is drawn. Its seed is combined with that of `example`.
  """

  def __init__(self, store, config: SceneConfig):
    self._generator = SceneGenerator(store, config)

  def __len__(self) -> int:
    return ENDLESS

  def example(self, index: int, seed: int) -> Example:
    generator = self._generator.with_seed(self._generator.config.seed + seed)
    scene = generator.scene(index)
    config = generator.config
    meta = {
      "id": f"scenes/{config.split}/{config.seed}/{index}",
      "source": "scenes",
      "style": scene.style,
      "scene": scene,
    }
    return generator.render(scene), scene.caption, meta


class SyntheticSource:
  """Plain shapes that need no data: for trying out a configuration."""

  SHAPES = ("square", "circle")

  def __init__(self, size: tuple[int, int], split: str):
    self.size = tuple(size)
    self._split = SPLITS.index(check_split(split))

  def __len__(self) -> int:
    return ENDLESS

  def example(self, index: int, seed: int) -> Example:
    rng = np.random.default_rng([seed, self._split, index])
    colour = list(COLOURS)[rng.integers(len(COLOURS))]
    shape = self.SHAPES[rng.integers(2)]
    rgb = COLOURS[colour]
    canvas = backgrounds.paint(
      backgrounds.draw_background(rng, [rgb], white_share=0.3), self.size
    )
    radius = min(self.size) * rng.uniform(0.15, 0.4)
    y, x = (rng.uniform(radius, side - radius) for side in self.size)
    dy = np.abs(np.arange(self.size[0])[:, None] + 0.5 - y)
    dx = np.abs(np.arange(self.size[1])[None, :] + 0.5 - x)
    far = np.hypot(dy, dx) if shape == "circle" else np.maximum(dy, dx)
    canvas[far <= radius] = rgb
    caption = with_article(f"{colour} {shape}")
    name = f"synthetic/{SPLITS[self._split]}/{seed}/{index}"
    return canvas, caption, {"id": name, "source": "synthetic"}


@dataclasses.dataclass(frozen=True)
class Weighted:
  """A source and its share of a mixture."""

  source: Source
  weight: float
