"""Whether a perceptual distance orders damage as an eye would.

Held-out art is blurred, made noisy, compressed and moved, more and more; a
distance that is of use grows along each row of strengths for nearly every
picture, and finds another picture farther than any damage.

  python -m star_jax.metrics.damage
  python -m star_jax.metrics.damage --distance=lpips --trunk=vgg16.pth

S: strengths of all kinds of damage, N: pictures, H W: pixels.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Callable

import jax
import numpy as np
from PIL import Image
from scipy import ndimage

from star_jax.data.art.store import load_art
from star_jax.metrics.heldout import art_pictures, pick
from star_jax.metrics.progress import Progress
from star_jax.metrics.reconstruction import padded_batches, psnr
from star_jax.metrics.report import table
from star_jax.perceptual import NAMES, PerceptualConfig, load
from star_jax.perceptual.vgg16 import TAPS

SEED = 0
# Pictures at once, each with all that was made of it.
BATCH = 2

Damage = Callable[[np.ndarray, float], np.ndarray]


def blur(image_NHW3: np.ndarray, pixels: float) -> np.ndarray:
  """Gaussian, of that standard deviation."""
  return ndimage.gaussian_filter(image_NHW3, (0, pixels, pixels, 0))


def noise(image_NHW3: np.ndarray, levels: float) -> np.ndarray:
  """Gaussian, of that standard deviation in levels of 255."""
  rng = np.random.default_rng(SEED)
  return image_NHW3 + levels * rng.standard_normal(image_NHW3.shape)


def jpeg(image_NHW3: np.ndarray, quality: float) -> np.ndarray:
  """Compressed and read back."""
  out = np.empty_like(image_NHW3)
  for i, picture in enumerate(image_NHW3):
    file = io.BytesIO()
    Image.fromarray(picture.astype(np.uint8)).save(
      file, "JPEG", quality=int(quality)
    )
    out[i] = np.asarray(Image.open(file))
  return out


def shift(image_NHW3: np.ndarray, pixels: float) -> np.ndarray:
  """To the right; the left column is repeated."""
  moved = np.roll(image_NHW3, int(pixels), axis=2)
  moved[:, :, : int(pixels)] = image_NHW3[:, :, :1]
  return moved


def exchange(image_NHW3: np.ndarray, places: float) -> np.ndarray:
  """Another picture of the lot."""
  return np.roll(image_NHW3, int(places), axis=0)


# Name -> (what is done, its strengths from the mildest on).
DAMAGES: dict[str, tuple[Damage, tuple[float, ...]]] = {
  "blur, px": (blur, (0.5, 1, 2, 4)),
  "noise, levels": (noise, (4, 8, 16, 32)),
  "JPEG, quality": (jpeg, (90, 60, 30, 10)),
  "shift, px": (shift, (1, 2, 4)),
  "another picture": (exchange, (1,)),
}


def measure(
  distance: Callable[[np.ndarray, np.ndarray], np.ndarray],
  image_NHW3: np.ndarray,
) -> list[tuple[str, float, float, float, float]]:
  """One row for each damage and strength.

  Args:
    distance: float32 in [-1, 1], damaged [S, N, H, W, 3] and clean [N, H, W, 3]
      -> [S, N].
    image_NHW3: uint8.

  Returns:
    Name, strength, mean PSNR in dB, mean distance, and the share of pictures
    farther than at the strength before (at the first one: than themselves).
  """
  clean = image_NHW3.astype(np.float32)
  kinds = [
    (name, damage, strength)
    for name, (damage, strengths) in DAMAGES.items()
    for strength in strengths
  ]
  damaged_SNHW3 = np.stack(
    [
      np.clip(np.round(damage(clean, strength)), 0, 255)
      for _, damage, strength in kinds
    ]
  )
  found_SN = distance(_unit(damaged_SNHW3), _unit(clean))
  rows, last = [], ""
  for (name, _, strength), damaged_NHW3, found_N in zip(
    kinds, damaged_SNHW3, found_SN
  ):
    if name != last:
      before_N, last = np.zeros(len(clean)), name
    mse_N = np.mean(np.square((damaged_NHW3 - clean) / 255), axis=(1, 2, 3))
    farther = np.mean(found_N > before_N)
    rows.append((name, strength, psnr(mse_N).mean(), found_N.mean(), farther))
    before_N = found_N
  return rows


def _unit(image_NHW3: np.ndarray) -> np.ndarray:
  return (image_NHW3 / 127.5 - 1).astype(np.float32)


def in_batches(
  fn, frozen, progress: Callable[[int, int], None] = lambda done, total: None
) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
  """A jitted distance over any number of pictures, for `measure`.

  Args:
    fn: (frozen, x_NHW3, y_NHW3) -> [N], see `perceptual.load`.
    frozen: its parameters.
    progress: called with (pictures done, pictures in all).
  """

  @jax.jit
  def step(frozen, x_SNHW3, y_NHW3):
    # The clean pictures are no part of the map: their features are found once,
    # not once for every strength.
    return jax.vmap(lambda x_NHW3: fn(frozen, x_NHW3, y_NHW3))(x_SNHW3)

  def distance(x_SNHW3, y_NHW3):
    parts = []
    for index, valid in padded_batches(len(y_NHW3), BATCH):
      found_SN = step(frozen, x_SNHW3[:, index], y_NHW3[index])
      parts.append(np.asarray(found_SN)[:, :valid])
      progress(int(index[valid - 1]) + 1, len(y_NHW3))
    return np.concatenate(parts, axis=1)

  return distance


def main(argv: list[str] | None = None) -> None:
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--distance", default="vgg16-hed", choices=NAMES)
  parser.add_argument("--trunk", default="", help="File of the VGG16.")
  parser.add_argument("--taps", type=int, default=TAPS, help="Groups compared.")
  parser.add_argument("--number", type=int, default=32, help="Of pictures.")
  parser.add_argument("--size", type=int, default=64, help="Pixels a side.")
  args = parser.parse_args(argv)
  try:
    config = PerceptualConfig(args.distance, args.trunk, taps=args.taps)
    fn, frozen = load(config)
    store = load_art()
    numbers = pick(store, "heldout", args.number, SEED)
    pictures = art_pictures(store, numbers, (args.size, args.size), SEED)
    distance = in_batches(fn, jax.device_put(frozen), Progress("damage"))
    rows = measure(distance, pictures.image)
  except (ValueError, OSError) as error:
    sys.exit(str(error))
  print(f"{config.name}, {len(pictures)} held-out pictures of {args.size} px\n")
  print(
    table(
      [
        (name, f"{strength:g}", f"{db:.1f}", f"{mean:.4f}", f"{farther:.0%}")
        for name, strength, db, mean, farther in rows
      ],
      ("damage", "strength", "PSNR, dB", "distance", "farther than before"),
    )
  )


if __name__ == "__main__":
  main()
