"""One SVG -> one square RGBA PNG, checked; corrupt drawings are named."""

from __future__ import annotations

import hashlib
import io

import numpy as np
from PIL import Image


class RenderError(Exception):
  """The drawing cannot be used; the message says why."""


def render_svg(svg: str, size: int) -> bytes:
  """PNG bytes, size x size RGBA, transparent where nothing is drawn.

  A drawing that is not square is centred. Raises RenderError for a drawing
  that does not parse or draws nothing.
  """
  import resvg_py

  try:
    png = bytes(
      resvg_py.svg_to_bytes(
        svg_string=svg, width=size, height=size, skip_system_fonts=True
      )
    )
  except (KeyboardInterrupt, SystemExit):
    raise
  except BaseException as error:  # a Rust panic is not an Exception
    raise RenderError(f"does not render ({error})") from None
  image = Image.open(io.BytesIO(png))
  if image.size != (size, size) or image.mode != "RGBA":
    png = _centred(image.convert("RGBA"), size)
  if not decode_png(png)[..., 3].any():
    raise RenderError("draws nothing")
  return png


def _centred(image: Image.Image, size: int) -> bytes:
  image.thumbnail((size, size), Image.Resampling.LANCZOS)
  square = Image.new("RGBA", (size, size))
  square.paste(image, ((size - image.width) // 2, (size - image.height) // 2))
  out = io.BytesIO()
  square.save(out, "PNG")
  return out.getvalue()


def decode_png(png: bytes) -> np.ndarray:
  """uint8 [size, size, 4]."""
  return np.asarray(Image.open(io.BytesIO(png)).convert("RGBA"))


def pixel_digest(rgba_HW4: np.ndarray) -> str:
  """Equal for pictures that look the same: hidden colours do not count."""
  visible = np.where(rgba_HW4[..., 3:] > 0, rgba_HW4, 0)
  return hashlib.sha256(visible.astype(np.uint8).tobytes()).hexdigest()


def thumbnail(rgba_HW4: np.ndarray, side: int) -> np.ndarray:
  """Perceptual hash: premultiplied colour and alpha, averaged over cells.

  Integer arithmetic, so that it is the same on every machine.

  Args:
    rgba_HW4: uint8, both sides divisible by `side`.

  Returns:
    int32 [side * side * 4], each 0..255.
  """
  size = rgba_HW4.shape[0]
  cell = size // side
  rgba = rgba_HW4.astype(np.int64)
  alpha = rgba[..., 3:]
  rgba = np.concatenate([rgba[..., :3] * alpha // 255, alpha], axis=-1)
  rgba = rgba[: cell * side, : cell * side]
  sums = rgba.reshape(side, cell, side, cell, 4).sum((1, 3))
  return (sums // (cell * cell)).reshape(-1).astype(np.int32)
