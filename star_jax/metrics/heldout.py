"""Art on backgrounds, as the measures of tokenizer and icons see it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from star_jax.data.art.store import ArtStore
from star_jax.data.backgrounds import draw_background, paint
from star_jax.metrics.reconstruction import Pictures

WHITE_SHARE = 0.25


def pick(
  store: ArtStore, split: str, n: int, seed: int, styles: Sequence[str] = ()
) -> np.ndarray:
  """`n` record numbers of a split in an order that the seed shuffles.

  Args:
    store: the art.
    split: "train" or "heldout".
    n: how many at most.
    seed: of the shuffle.
    styles: only these; empty for all.

  Raises:
    ValueError: the store has no picture of that split and style.
  """
  numbers = store.select(
    lambda r: r.split == split and (not styles or r.style in styles)
  )
  if not len(numbers):
    raise ValueError(
      f"The art store has no {split} pictures"
      + (f" of the styles {', '.join(styles)}." if styles else ".")
    )
  return np.random.default_rng((seed, 1)).permutation(numbers)[:n]


def resize_rgba(rgba: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  """Straight-alpha uint8 RGBA scaled to fit `size` (rows, columns), centred.

  Colours are averaged with their alpha as weight, so that what lies under
  transparent pixels does not bleed in. Returns float32 in [0, 1],
  premultiplied.
  """
  side = min(size)
  premultiplied = rgba.astype(np.float32) / 255
  premultiplied[..., :3] *= premultiplied[..., 3:]
  planes = [
    Image.fromarray(np.ascontiguousarray(premultiplied[..., c])).resize(
      (side, side),
      Image.Resampling.BOX
      if rgba.shape[0] % side == 0
      else Image.Resampling.BICUBIC,
    )
    for c in range(4)
  ]
  out = np.zeros((*size, 4), np.float32)
  top, left = (size[0] - side) // 2, (size[1] - side) // 2
  out[top : top + side, left : left + side] = np.clip(
    np.stack([np.asarray(p) for p in planes], -1), 0, 1
  )
  return out


def art_pictures(
  store: ArtStore, numbers: Sequence[int], size: tuple[int, int], seed: int
) -> Pictures:
  """Each picture in full size on a random background.

  The background depends on the seed and on the picture, not on the others.
  """
  shape = (len(numbers), *size)
  image = np.zeros((*shape, 3), np.uint8)
  blank = np.zeros((*shape, 3), np.uint8)
  alpha = np.zeros(shape, np.float32)
  for row, number in enumerate(numbers):
    rng = np.random.default_rng((seed, 2, int(number)))
    blank[row] = paint(draw_background(rng, (), WHITE_SHARE), size)
    art = resize_rgba(store.rgba(int(number)), size)
    alpha[row] = art[..., 3]
    mixed = art[..., :3] * 255 + (1 - art[..., 3:]) * blank[row]
    image[row] = np.round(mixed).astype(np.uint8)
  return Pictures(image, alpha, blank)
