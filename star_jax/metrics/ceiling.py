"""A continuous autoencoder beside a tokenizer: what it loses of a picture, no
quantizer between the same encoder and decoder can keep."""

from __future__ import annotations

import numpy as np

from star_jax.bundle import Bundle, load_bundle
from star_jax.metrics.reconstruction import (
  Pictures,
  evaluate_reconstruction,
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
  made, _ = reconstruct(vqvae, params, batch_size)(pictures.image)
  report = evaluate_reconstruction(
    vqvae, params, pictures, batch_size=batch_size, num_scale_pictures=0
  )
  means = {key: float(psnr(report.mse[key]).mean()) for key in ("art", "whole")}
  return made, means
