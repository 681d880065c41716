"""Repaint the fill of a sprite so that "a blue dog" is plainly blue.

An icon has one dominant fill (a hue with its shades, or a gray / white body)
and details: outlines, eyes, wheels, a stem. Only the fill is repainted, in
OKLab, where a hue can be exchanged while its shading stays: each pixel keeps
its distance in lightness from the middle of the fill.

H W: pixels of a sprite. Sprites are uint8 RGBA with straight alpha.
"""

from __future__ import annotations

import numpy as np

# The colour words of the scenes, each far from the others in OKLab.
COLOURS: dict[str, tuple[int, int, int]] = {
  "red": (218, 36, 44),
  "orange": (248, 132, 24),
  "yellow": (250, 212, 48),
  "green": (58, 162, 70),
  "blue": (40, 104, 220),
  "purple": (134, 62, 184),
  "pink": (248, 136, 190),
  "brown": (124, 76, 42),
  "gray": (146, 150, 156),
  "black": (46, 46, 52),
}

# OKLab (B. Ottosson 2020): linear sRGB -> cone response -> Lab.
_RGB_TO_LMS = np.array(
  [
    [0.4122214708, 0.5363325363, 0.0514459929],
    [0.2119034982, 0.6806995451, 0.1073969566],
    [0.0883024619, 0.2817188376, 0.6299787005],
  ],
  np.float32,
)
_LMS_TO_LAB = np.array(
  [
    [0.2104542553, 0.7936177850, -0.0040720468],
    [1.9779984951, -2.4285922050, 0.4505937099],
    [0.0259040371, 0.7827717662, -0.8086757660],
  ],
  np.float32,
)
_LAB_TO_LMS = np.linalg.inv(_LMS_TO_LAB).astype(np.float32)
_LMS_TO_RGB = np.linalg.inv(_RGB_TO_LMS).astype(np.float32)
_LEVELS = np.arange(256, dtype=np.float32) / 255
_SRGB_TO_LINEAR = np.where(
  _LEVELS <= 0.04045, _LEVELS / 12.92, ((_LEVELS + 0.055) / 1.055) ** 2.4
).astype(np.float32)

# What counts as gray, as outline, and as the same fill.
_GRAY_CHROMA = 0.045
_INK_LIGHTNESS = 0.34
_HUE_FULL, _HUE_ZERO = 45.0, 65.0  # degrees from the dominant hue


def rgb_to_oklab(rgb: np.ndarray) -> np.ndarray:
  """uint8 [..., 3] sRGB -> float32 [..., 3] OKLab."""
  linear = _SRGB_TO_LINEAR[rgb]
  return np.cbrt(linear @ _RGB_TO_LMS.T) @ _LMS_TO_LAB.T


def oklab_to_rgb(lab: np.ndarray) -> np.ndarray:
  """float32 [..., 3] OKLab -> uint8 [..., 3] sRGB, clipped to the gamut."""
  linear = np.clip((lab @ _LAB_TO_LMS.T) ** 3 @ _LMS_TO_RGB.T, 0, 1)
  srgb = np.where(
    linear <= 0.0031308,
    linear * 12.92,
    1.055 * linear ** (1 / 2.4) - 0.055,
  )
  return np.round(srgb * 255).astype(np.uint8)


def _ramp(x: np.ndarray, zero: float, one: float) -> np.ndarray:
  """0 at `zero`, 1 at `one`, linear in between (either may be larger)."""
  return np.clip((x - zero) / (one - zero), 0, 1)


def _hue_distance(hue: np.ndarray, centre: float) -> np.ndarray:
  """Degrees in [0, 180] between hues in degrees."""
  return np.abs((hue - centre + 180) % 360 - 180)


def fill_weight(lab: np.ndarray, alpha: np.ndarray) -> np.ndarray:
  """How much each pixel belongs to the dominant fill.

  Args:
    lab: float32 [H, W, 3] OKLab of the sprite.
    alpha: uint8 [H, W].

  Returns:
    float32 [H, W] in [0, 1].
  """
  light = lab[..., 0]
  chroma = np.hypot(lab[..., 1], lab[..., 2])
  hue = np.degrees(np.arctan2(lab[..., 2], lab[..., 1])) % 360
  solid = alpha >= 128
  coloured = solid & (chroma > _GRAY_CHROMA)
  neutral = solid & (chroma <= _GRAY_CHROMA) & (light > _INK_LIGHTNESS)
  counts, _ = np.histogram(hue[coloured], bins=36, range=(0, 360))
  # Mass within +-40 degrees of each 10 degree bin.
  mass = sum(np.roll(counts, s) for s in range(-4, 5))
  peak = int(np.argmax(mass * 10_000 + counts))
  if mass[peak] == 0 and not neutral.any():
    return solid.astype(np.float32)  # a black shape: all of it is fill
  # Colour wins over an equally large white or gray part: that is trim.
  if mass[peak] * 1.3 >= neutral.sum():
    near = coloured & (_hue_distance(hue, peak * 10 + 5) < 45)
    # Centre on what is really there, not on the bin.
    centre = np.degrees(
      np.arctan2(lab[..., 2][near].mean(), lab[..., 1][near].mean())
    )
    weight = _ramp(_hue_distance(hue, centre), _HUE_ZERO, _HUE_FULL)
    return weight * _ramp(chroma, 0.02, _GRAY_CHROMA)
  weight = _ramp(chroma, 2 * _GRAY_CHROMA, _GRAY_CHROMA)
  return weight * _ramp(light, _INK_LIGHTNESS - 0.1, _INK_LIGHTNESS + 0.05)


def recolor(rgba: np.ndarray, colour: str) -> np.ndarray:
  """Repaints the dominant fill of a sprite.

  Args:
    rgba: uint8 [H, W, 4], straight alpha.
    colour: a key of `COLOURS`.

  Returns:
    uint8 [H, W, 4], same alpha.

  Raises:
    ValueError: for a colour that is not in `COLOURS`.
  """
  if colour not in COLOURS:
    raise ValueError(f"colour is one of {', '.join(COLOURS)}, got {colour!r}.")
  lab = rgb_to_oklab(rgba[..., :3])
  weight = fill_weight(lab, rgba[..., 3])
  members = (weight > 0.5) & (rgba[..., 3] >= 128)
  target = rgb_to_oklab(np.array(COLOURS[colour], np.uint8))
  middle = np.median(lab[..., 0][members]) if members.any() else 0.6
  # Shading is kept a little flatter, so that dark shades of orange do not
  # turn brown and light ones of red do not turn pink.
  light = target[0] + 0.75 * (lab[..., 0] - middle)
  light = np.clip(light, max(target[0] - 0.22, 0.1), min(target[0] + 0.2, 1.0))
  # Chroma shrinks towards black and white as paint does.
  shrink = np.minimum(light / target[0], (1.06 - light) / (1.06 - target[0]))
  shrink = np.clip(shrink, 0, 1)[..., None]
  painted = np.concatenate([light[..., None], target[1:] * shrink], axis=-1)
  mixed = lab + weight[..., None] * (painted - lab)
  return np.concatenate([oklab_to_rgb(mixed), rgba[..., 3:]], axis=-1)


def colour_share(rgba: np.ndarray, colour: str) -> float:
  """Share of the visible, non-outline pixels whose nearest word is `colour`."""
  lab = rgb_to_oklab(rgba[..., :3])
  visible = rgba[..., 3] >= 128
  if colour != "black":
    visible &= lab[..., 0] > _INK_LIGHTNESS
  palette = rgb_to_oklab(np.array(list(COLOURS.values()), np.uint8))
  nearest = np.argmin(((lab[visible][:, None] - palette) ** 2).sum(-1), axis=-1)
  return float((nearest == list(COLOURS).index(colour)).mean())
