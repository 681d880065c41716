"""From files to model input: decoding, cropping, value range, caption text.

Numpy and Pillow only. Pictures are uint8 RGB [H, W, 3] until the last step;
models take float32 in [-1, 1].
"""

from __future__ import annotations

import re
import unicodedata

import numpy as np
from PIL import Image, ImageOps

CROPS = ("centre", "random")


def to_unit_range(image: np.ndarray) -> np.ndarray:
  """uint8 [0, 255] -> float32 [-1, 1], same shape."""
  return image.astype(np.float32) / 127.5 - 1.0


def to_uint8(image: np.ndarray) -> np.ndarray:
  """float [-1, 1] -> uint8 [0, 255], clipped and rounded."""
  scaled = (np.asarray(image, np.float32) + 1.0) * 127.5
  return np.round(np.clip(scaled, 0, 255)).astype(np.uint8)


def to_rgb(image: Image.Image, background=(255, 255, 255)) -> Image.Image:
  """Any Pillow image as 8-bit RGB, upright.

  Transparent parts show `background`; gray is repeated over the channels;
  CMYK is converted; 16-bit and float gray is scaled to 8 bits.
  """
  image = ImageOps.exif_transpose(image)
  if image.mode.startswith("I") or image.mode == "F":
    image = _deep_gray(image)
  if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or (
    "transparency" in image.info
  ):
    image = image.convert("RGBA")
    canvas = Image.new("RGBA", image.size, (*background, 255))
    image = Image.alpha_composite(canvas, image)
  return image.convert("RGB")


def _deep_gray(image: Image.Image) -> Image.Image:
  """Gray of more than 8 bits as mode "L"."""
  values = np.asarray(image, dtype=np.float64)
  if image.mode.startswith("I;16"):
    top = 65535.0
  elif image.mode == "F" and values.max(initial=0) <= 1:
    top = 1.0
  else:  # the smallest usual range that holds the values
    top = 65535.0 if values.max(initial=0) > 255 else 255.0
  gray = np.round(np.clip(values / top, 0, 1) * 255)
  return Image.fromarray(gray.astype(np.uint8), "L")


def resize_and_crop(
  image: Image.Image,
  size: tuple[int, int],
  *,
  crop: str = "centre",
  rng: np.random.Generator | None = None,
) -> np.ndarray:
  """The largest part of the right aspect ratio, resized.

  Args:
    image: RGB.
    size: (H, W) wanted. A smaller image is enlarged.
    crop: "centre", or "random" along the side that is too long.
    rng: needed for "random".

  Returns:
    uint8 [H, W, 3].

  Raises:
    ValueError: for an unknown `crop`.
  """
  if crop not in CROPS:
    raise ValueError(f"crop is one of {', '.join(CROPS)}, got {crop!r}.")
  height, width = size
  scale = min(image.height / height, image.width / width)
  part_h, part_w = height * scale, width * scale
  at_y, at_x = (0.5, 0.5) if crop == "centre" else rng.random(2)
  top = (image.height - part_h) * at_y
  left = (image.width - part_w) * at_x
  box = (left, top, left + part_w, top + part_h)
  resized = image.resize(
    (width, height), Image.Resampling.LANCZOS, box=box, reducing_gap=3.0
  )
  return np.asarray(resized)


def cropped_share(image: Image.Image, size: tuple[int, int]) -> float:
  """Which share of the image `resize_and_crop` to (H, W) cuts off."""
  height, width = size
  scale = min(image.height / height, image.width / width)
  return 1 - scale**2 * height * width / (image.height * image.width)


def is_smaller(image: Image.Image, size: tuple[int, int]) -> bool:
  """Whether `resize_and_crop` to (H, W) would enlarge the image."""
  return image.height < size[0] or image.width < size[1]


def clean_caption(text: str) -> str:
  """One lower-case line: composed characters, single spaces, no controls."""
  text = unicodedata.normalize("NFC", text)
  text = "".join(
    " " if unicodedata.category(c) in ("Cc", "Zl", "Zp") else c
    for c in text
    if unicodedata.category(c) != "Cf"
  )
  return re.sub(r"\s+", " ", text).strip().lower()
