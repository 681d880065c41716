"""How much detail a given number of latent values can hold, linearly.

Before a tokenizer is trained: cut the pictures into patches, keep the first
principal components of each, and look at the PSNR over the art. No code is
quantized, so this is what a linear encoder could reach with unlimited bits; a
network that sees the neighbours does somewhat better.

  python -m star_jax.metrics.linear_bound
"""

from __future__ import annotations

import numpy as np
from einops import rearrange, repeat

from star_jax.data.art.store import load_art
from star_jax.metrics.heldout import art_pictures, pick
from star_jax.metrics.reconstruction import Pictures

PATCHES = {8: (16, 32, 64), 4: (4, 8, 16)}  # side: components kept


def patches(image_NHWC: np.ndarray, side: int) -> np.ndarray:
  """[N, H, W, C] -> float32 [patches, side * side * C]."""
  return rearrange(
    np.asarray(image_NHWC, np.float32),
    "n (h p) (w q) c -> (n h w) (p q c)",
    p=side,
    q=side,
  )


def linear_bound(
  train: Pictures, heldout: Pictures, side: int, kept: int
) -> float:
  """PSNR in dB, the mean over held-out pictures, weighted by alpha.

  Args:
    train: pictures that give the components.
    heldout: pictures that are measured.
    side: of a patch in pixels.
    kept: components kept a patch.
  """
  x = patches(train.image, side) / 255
  mean = x.mean(0)
  _, vectors = np.linalg.eigh(np.cov((x - mean).T))
  basis = vectors[:, ::-1][:, :kept].astype(np.float32)
  y = patches(heldout.image, side) / 255 - mean
  weight = patches(repeat(heldout.alpha, "n h w -> n h w c", c=3), side)
  error = weight * np.square(y - y @ basis @ basis.T)
  n = len(heldout)
  per_picture = error.reshape(n, -1).sum(1) / weight.reshape(n, -1).sum(1)
  return float(np.mean(-10 * np.log10(np.maximum(per_picture, 1e-10))))


def main() -> None:
  store = load_art()
  train, heldout = (
    art_pictures(store, pick(store, split, count, seed=0), (64, 64), seed=0)
    for split, count in (("train", 2000), ("heldout", 500))
  )
  print("| patch | kept a patch | numbers a picture | PSNR over the art |")
  print("|---|---|---|---|")
  for side, counts in PATCHES.items():
    for kept in counts:
      psnr = linear_bound(train, heldout, side, kept)
      total = kept * (64 // side) ** 2
      print(f"| {side} px | {kept} | {total:,} | {psnr:.1f} dB |")


if __name__ == "__main__":
  main()
