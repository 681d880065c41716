"""Backgrounds for icons and scenes: plain, gradient, soft stripes, checker.

A `Background` is a small description; `paint` turns it into pixels. All
lengths are shares of the shorter side, so that the same description works at
any size and aspect ratio.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from star_jax.data.recolor import oklab_to_rgb, rgb_to_oklab

Rgb = tuple[int, int, int]
WHITE: Rgb = (255, 255, 255)
LIGHT: tuple[Rgb, ...] = (
  (246, 241, 226),  # cream
  (214, 231, 248),  # pale blue
  (220, 240, 214),  # pale green
  (252, 226, 232),  # pale pink
  (234, 224, 246),  # lavender
  (255, 244, 202),  # pale yellow
  (227, 229, 233),  # pale gray
)
DARK: tuple[Rgb, ...] = (
  (24, 36, 68),  # navy
  (22, 58, 44),  # dark green
  (66, 26, 50),  # wine
  (58, 62, 70),  # slate
  (46, 30, 74),  # dark purple
)
MIDDLE: tuple[Rgb, ...] = (
  (128, 176, 214),  # sky
  (152, 190, 146),  # sage
  (206, 178, 148),  # sand
  (196, 160, 196),  # mauve
)
# Length of a pair of stripes, as a share of the shorter side.
PERIODS = (0.25, 0.5)
SHIFT = (0.035, 0.07)  # in OKLab lightness, between the tones of a pattern


@dataclasses.dataclass(frozen=True)
class Background:
  """kind: "plain", "gradient", "stripes" or "checker".

  first, second: the two colours (equal when plain). angle: radians; for a
  checker, its phase in tiles. period: length of one stripe pair as a share of
  the shorter side.
  """

  kind: str
  first: Rgb
  second: Rgb
  angle: float
  period: float


@functools.lru_cache(maxsize=4096)
def _lab(rgb: Rgb) -> np.ndarray:
  return rgb_to_oklab(np.array(rgb, np.uint8))


def distance(a: Rgb, b: Rgb) -> float:
  """OKLab distance; colours under 0.15 apart are easily confused."""
  return float(np.sqrt(((_lab(a) - _lab(b)) ** 2).sum()))


def draw_background(
  rng: np.random.Generator,
  avoid: Sequence[Rgb],
  white_share: float,
  min_distance: float = 0.2,
  without: Sequence[Rgb] = (),
) -> Background:
  """A random background whose colours are far from all of `avoid`.

  Args:
    rng: source of randomness.
    avoid: colours of the objects that will stand on it.
    white_share: how often plain white is taken (if it is not to be avoided).
    min_distance: OKLab distance kept from each colour of `avoid`.
    without: backgrounds that are not used at all.
  """

  def far(rgb: Rgb) -> bool:
    return rgb not in without and all(
      distance(rgb, other) >= min_distance for other in avoid
    )

  if rng.random() < white_share and far(WHITE):
    return Background("plain", WHITE, WHITE, 0.0, 1.0)
  families = [[c for c in family if far(c)] for family in (LIGHT, DARK, MIDDLE)]
  # Light ones most often: dark outlines show on them.
  order = np.searchsorted((0.55, 0.8), rng.random(), side="right")
  family = next(
    (families[(order + i) % 3] for i in range(3) if families[(order + i) % 3]),
    None,
  )
  if family is None:  # nothing is far from all: take what is farthest
    nearest = {
      c: min(distance(c, other) for other in avoid)
      for c in LIGHT + DARK
      if c not in without
    }
    family = [max(nearest, key=nearest.get)]
  base = family[rng.integers(len(family))]
  other = family[rng.integers(len(family))]
  pattern, eighths = rng.random(), int(rng.integers(8))
  if pattern < 0.8:
    return Background("plain", base, base, 0.0, 1.0)
  angle, period = eighths * np.pi / 4, PERIODS[rng.integers(len(PERIODS))]
  if pattern < 0.9:
    return Background("gradient", base, other, angle, 1.0)
  # Soft: the second tone is the first, a little lighter or darker.
  shift = float(rng.uniform(*SHIFT))
  lab = _lab(base) + np.array([-shift if _lab(base)[0] > 0.5 else shift, 0, 0])
  second = tuple(int(v) for v in oklab_to_rgb(lab.astype(np.float32)))
  if pattern < 0.95:
    return Background("stripes", base, second, angle, period)
  return Background("checker", base, second, float(eighths % 2), period)


@functools.lru_cache(maxsize=16)
def _grid(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
  """Row and column of each pixel's middle in units of the shorter side."""
  unit = min(height, width)
  y = (np.arange(height, dtype=np.float32) + 0.5) / unit
  x = (np.arange(width, dtype=np.float32) + 0.5) / unit
  return y[:, None], x[None, :]


def paint(background: Background, size: tuple[int, int]) -> np.ndarray:
  """Pixels of a background: uint8 [H, W, 3]."""
  height, width = size
  if background.kind == "plain":
    return np.full((height, width, 3), background.first, np.uint8)
  y, x = _grid(height, width)
  if background.kind == "checker":
    phase = background.angle
    tile = 2 / background.period
    share = (np.sin(np.pi * (tile * x + phase)) > 0) != (
      np.sin(np.pi * (tile * y + phase)) > 0
    )
  else:
    along = np.cos(background.angle) * x + np.sin(background.angle) * y
    if background.kind == "gradient":
      low, high = along.min(), along.max()
      share = (along - low) / (high - low)
    else:
      wave = np.sin(2 * np.pi * along / background.period)
      share = np.clip(wave * 4 + 0.5, 0, 1)
  first = np.array(background.first, np.float32)
  second = np.array(background.second, np.float32)
  mixed = first + share[..., None].astype(np.float32) * (second - first)
  return np.round(mixed).astype(np.uint8)
