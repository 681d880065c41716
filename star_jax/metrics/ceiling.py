"""A continuous autoencoder beside a tokenizer: what it loses of a picture, no
quantizer between the same encoder and decoder can keep."""

from __future__ import annotations

import numpy as np

from star_jax.bundle import Bundle, load_bundle
from star_jax.metrics.reconstruction import (
  Pictures,
  picture_errors,
  psnr,
  reconstruct,
)
from star_jax.tokenizer.vqvae import VQVAE


def load_ceiling(path: str, image_size: tuple[int, int]) -> Bundle:
  """The bundle of a continuous autoencoder.

  Args:
    path: its folder.
    image_size: (H, W) in pixels that it has to take.

  Raises:
    ValueError: no bundle, one with tokens, or of pictures of another size.
  """
  bundle = load_bundle(path)
  config = bundle.tokenizer_config
  if config.quantizer != "none":
    raise ValueError(
      "config.tokenizer.ceiling is the bundle of a continuous autoencoder"
      f" (quantizer 'none'), got {path} with the quantizer"
      f" {config.quantizer!r}."
    )
  if tuple(config.image_size) != tuple(image_size):
    theirs, ours = (
      f"{height} x {width}" for height, width in (config.image_size, image_size)
    )
    raise ValueError(
      f"The ceiling {path} takes pictures of {theirs} pixels, the tokenizer"
      f" that is measured {ours}."
    )
  return bundle


def measure_ceiling(
  bundle: Bundle, pictures: Pictures, batch_size: int
) -> tuple[np.ndarray, dict[str, float]]:
  """Its reconstructions, uint8 [N, H, W, 3], and their PSNR in dB over the art
  ("art") and the whole picture ("whole"), means over the pictures."""
  vqvae = VQVAE(bundle.tokenizer_config)
  params = bundle.params["tokenizer"]
  run = reconstruct(vqvae, params, batch_size)
  made, psnrs = [], {"art": [], "whole": []}
  for start in range(0, len(pictures), batch_size):
    part = slice(start, start + batch_size)
    made.append(run(pictures.image[part])[0])
    errors = picture_errors(pictures, part, made[-1])
    for key, found in psnrs.items():
      found.append(psnr(errors[key].astype(np.float64)))
  means = {k: float(np.concatenate(v).mean()) for k, v in psnrs.items()}
  return np.concatenate(made), means
