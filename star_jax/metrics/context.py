"""What every part of the evaluation works with, opened when first needed."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from star_jax.api import StarPipeline
from star_jax.bundle import Bundle
from star_jax.data.art.store import (
  MANIFEST,
  ArtStore,
  default_art_dir,
  load_art,
)
from star_jax.data.scenes import SceneConfig, SceneGenerator
from star_jax.evaluation.best_of import BestOf
from star_jax.evaluation.networks import EFFICIENTNET, Network, load_network
from star_jax.evaluation.scorers import build_scorer
from star_jax.metrics.ceiling import load_ceiling
from star_jax.metrics.reconstruction import reconstruct
from star_jax.tokenizer.vqvae import VQVAE


@dataclasses.dataclass
class Context:
  """bundle: the model. config: configs/evaluate.py. folder: for results."""

  bundle: Bundle
  config: ConfigDict
  folder: Path

  @functools.cached_property
  def store(self) -> ArtStore:
    return load_art(self.config.art_dir or None)

  @property
  def art_hash(self) -> str:
    """Which art is measured on; empty when there is none."""
    folder = Path(self.config.art_dir or default_art_dir())
    try:
      manifest = (folder / MANIFEST).read_bytes()
    except OSError:
      return ""
    return hashlib.sha256(manifest).hexdigest()[:16]

  @functools.cached_property
  def pipeline(self) -> StarPipeline:
    """The model; with `best_of` one that draws several and keeps the best."""
    pipeline, best = StarPipeline(self.bundle), self.config.best_of
    if best.n == 1:
      return pipeline
    return BestOf(pipeline, build_scorer(best.score, self), best.n)

  @property
  def image_size(self) -> tuple[int, int]:
    return self.bundle.tokenizer_config.image_size

  def scenes(
    self, split: str, size: tuple[int, int] | None = None
  ) -> SceneGenerator:
    """Scenes as in training, of the seed of the measurement.

    Args:
      split: see `SceneConfig`.
      size: (H, W) in pixels, by default the model's own.
    """
    options = dict(self.config.data_options.scenes)
    options |= {
      "size": size or self.image_size,
      "seed": self.config.seed,
      "split": split,
      "styles": tuple(options["styles"]),
    }
    return SceneGenerator(self.store, SceneConfig(**options))

  @functools.cached_property
  def vqvae(self) -> VQVAE:
    return VQVAE(self.bundle.tokenizer_config)

  @functools.cached_property
  def tokenizer_params(self):
    return jax.device_put(self.bundle.params["tokenizer"])

  @functools.cached_property
  def _reconstruct(self):
    return reconstruct(
      self.vqvae, self.tokenizer_params, self.config.batch_size
    )

  def reconstruct(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """uint8 [N, H, W, 3] -> the same through the tokenizer, tokens [N, L]."""
    return self._reconstruct(image)

  @functools.cached_property
  def ceiling(self) -> Bundle | None:
    """The continuous autoencoder that a tokenizer is compared with, if any."""
    path = self.config.tokenizer.ceiling
    return load_ceiling(path, self.image_size) if path else None

  @functools.cached_property
  def inception(self) -> Network | None:
    """InceptionV3, if that is the network which pictures are compared by."""
    c = self.config.pictures
    if c.network == EFFICIENTNET:
      return None
    return load_network(c.network, c.weights)

  def need_star(self) -> None:
    """Raises ValueError when the bundle is a tokenizer alone."""
    if self.bundle.star_config is None:
      raise ValueError(
        f"The bundle {self.bundle.path} holds a tokenizer alone; only"
        " --what=tokenizer can be measured on it."
      )


def picture_grid(
  image: np.ndarray, columns: int, scale: int = 1, gap: int = 2
) -> Image.Image:
  """Pictures uint8 [N, H, W, 3] side by side on white."""
  n, height, width, _ = image.shape
  rows = -(-n // columns)
  sheet = np.full(
    (rows * (height + gap) - gap, columns * (width + gap) - gap, 3),
    255,
    np.uint8,
  )
  for i in range(n):
    y, x = (i // columns) * (height + gap), (i % columns) * (width + gap)
    sheet[y : y + height, x : x + width] = image[i]
  out = Image.fromarray(sheet)
  size = (out.width * scale, out.height * scale)
  return out.resize(size, Image.Resampling.NEAREST)
