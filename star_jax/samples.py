"""What a call of the sampler gives to people: pictures and their recipes.

B: pictures, K: scales, L: tokens of all scales, H W: pixels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from PIL import Image

from star_jax import pictures
from star_jax.pictures import Recipe
from star_jax.sampling.sampler import SampleOutput


@dataclasses.dataclass(frozen=True)
class Samples:
  """What `StarPipeline.sample_all` returns, one entry a prompt.

  Attributes:
    images: PIL images, RGB.
    recipes: what made each of them.
    tokens_BL: int32 [B, L].
    scales: per image the pictures after every scale; None unless asked for.
  """

  images: list[Image.Image]
  recipes: list[Recipe]
  tokens_BL: np.ndarray
  scales: list[list[Image.Image]] | None

  @classmethod
  def of(
    cls,
    recipes: Sequence[Recipe],
    out: SampleOutput,
    image_KBHW3: np.ndarray | None = None,
  ) -> Samples:
    """The first rows of a batch, one a recipe.

    Args:
      recipes: of these rows.
      out: of the sampler.
      image_KBHW3: pictures after every scale but the last.
    """
    n = len(recipes)
    images = [pictures.to_pil(x) for x in np.asarray(out.image_BHW3)[:n]]
    scales = None
    if image_KBHW3 is not None:
      by_image = np.moveaxis(np.asarray(image_KBHW3), 0, 1)
      scales = [
        [pictures.to_pil(x) for x in image_KHW3] + [image]
        for image_KHW3, image in zip(by_image, images)
      ]
    return cls(images, list(recipes), np.asarray(out.idx_BL)[:n], scales)

  @classmethod
  def joined(cls, parts: Sequence[Samples]) -> Samples:
    """One after the other."""
    scales = None
    if parts[0].scales is not None:
      scales = [s for part in parts for s in part.scales]
    return cls(
      images=[image for part in parts for image in part.images],
      recipes=[recipe for part in parts for recipe in part.recipes],
      tokens_BL=np.concatenate([part.tokens_BL for part in parts]),
      scales=scales,
    )

  def row(self, i: int) -> Samples:
    """One of them alone."""
    part = slice(i, i + 1)
    scales = None if self.scales is None else self.scales[part]
    return Samples(
      self.images[part], self.recipes[part], self.tokens_BL[part], scales
    )
