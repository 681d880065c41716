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
# Every base colour by the name that captions give it.
NAMED: dict[str, Rgb] = {
  "white": (255, 255, 255),
  "cream": (246, 241, 226),
  "pale blue": (214, 231, 248),
  "pale green": (220, 240, 214),
  "pale pink": (252, 226, 232),
  "lavender": (234, 224, 246),
  "pale yellow": (255, 244, 202),
  "light gray": (227, 229, 233),
  "navy": (24, 36, 68),
  "dark green": (22, 58, 44),
  "wine": (66, 26, 50),
  "dark gray": (58, 62, 70),
  "dark purple": (46, 30, 74),
  "sky blue": (128, 176, 214),
  "sage green": (152, 190, 146),
  "sand": (206, 178, 148),
  "mauve": (196, 160, 196),
}
_NAMES = {rgb: name for name, rgb in NAMED.items()}
_COLOURS = tuple(NAMED.values())
WHITE = _COLOURS[0]
LIGHT, DARK, MIDDLE = _COLOURS[1:8], _COLOURS[8:13], _COLOURS[13:]
# Length of a pair of stripes, as a share of the shorter side.
PERIODS = (0.25, 0.5)
SHIFT = (0.035, 0.07)  # in OKLab lightness, between the tones of a pattern


def check_background(share: float, default: str) -> None:
  """ValueError for what `draw_told_or_default` cannot be given."""
  if not 0 <= share <= 1:
    raise ValueError(f"background_share is in [0, 1], got {share!r}.")
  if default and default not in NAMED:
    raise ValueError(
      f"default_background is empty or one of {', '.join(NAMED)}, got"
      f" {default!r}."
    )


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


def draw_told_or_default(
  rng: np.random.Generator,
  avoid: Sequence[Rgb],
  *,
  told_share: float,
  default: str,
  min_distance: float = 0.2,
  **options,
) -> tuple[Background, bool]:
  """A background, and whether the caption is to name it.

  Args:
    rng, avoid, min_distance: as of `draw_background`.
    told_share: how often a random background is drawn and named.
    default: the plain one of all others, a key of `NAMED`; where that is too
      near to `avoid`, sky blue or dark gray. Empty: they are random as well.
    **options: of `draw_background`.
  """
  told = bool(rng.random() < told_share)
  if told or not default:
    drawn = draw_background(rng, avoid, min_distance=min_distance, **options)
    return drawn, told
  choices = [NAMED[name] for name in (default, "sky blue", "dark gray")]
  base = max(
    choices,
    key=lambda c: min([min_distance, *(distance(c, other) for other in avoid)]),
  )
  return Background("plain", base, base, 0.0, 1.0), False


def with_background(caption: str, background: Background) -> str:
  """The caption with ", on a navy background" and the like behind it."""
  first, second = (_NAMES.get(c) for c in (background.first, background.second))
  words = {
    "plain": first,
    "gradient": f"{first} to {second}" if first != second else first,
    "stripes": f"striped {first}",
    "checker": f"checkered {first}",
  }[background.kind]
  return f"{caption}, on a {words} background"


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
