"""Differentiable augmentation of what a discriminator sees (arXiv 2006.10738).

Real pictures and reconstructions are changed alike, with gradients through the
change, so that a discriminator with few pictures cannot learn them by heart.
Every picture draws from a key of its own: what happens to it does not depend on
the batch around it.

B: batch, H W: pixels.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
  """Strengths; 0 is the identity.

  Attributes:
    brightness: the value that is added is uniform between -half and half of
      it (the picture's range is -1 to 1).
    saturation: distance from the grey of each pixel times a factor uniform in
      1 - saturation to 1 + saturation.
    contrast: distance from the mean of the picture times a factor uniform in
      1 - contrast / 2 to 1 + contrast / 2.
    translation: most of a shift, as a share of the side; zeros come in.
    cutout: side of a square of zeros, as a share of the picture's; its middle
      is anywhere in the picture.
    probability: share of the pictures that are changed at all.
  """

  brightness: float = 1.0
  saturation: float = 1.0
  contrast: float = 1.0
  translation: float = 0.125
  cutout: float = 0.5
  probability: float = 1.0

  def __post_init__(self):
    largest = {"contrast": 2.0, "brightness": 2.0}
    for field in dataclasses.fields(self):
      value, most = getattr(self, field.name), largest.get(field.name, 1.0)
      if not 0 <= value <= most:
        raise ValueError(
          f"{field.name} of the augmentation is a number from 0 to {most:g},"
          f" got {value}."
        )


def augment(
  config: AugmentConfig, key: jax.Array, image_BHW3: jax.Array
) -> jax.Array:
  """Changed pictures, of the same shape and dtype.

  Args:
    key: picture i draws from fold_in(key, i); two batches with one key are
      changed in the same way.
    image_BHW3: in [-1, 1]; the result may leave that range.
  """
  rows_B = jnp.arange(image_BHW3.shape[0])
  keys_B = jax.vmap(lambda i: jax.random.fold_in(key, i))(rows_B)
  return jax.vmap(lambda key, image: _one(config, key, image))(
    keys_B, image_BHW3
  )


def _one(
  config: AugmentConfig, key: jax.Array, image_HW3: jax.Array
) -> jax.Array:
  colour_key, shift_key, hole_key, whether_key = jax.random.split(key, 4)
  x = image_HW3
  if config.brightness or config.saturation or config.contrast:
    x = _colour(config, colour_key, x)
  if config.translation:
    x = _shift(config.translation, shift_key, x)
  if config.cutout:
    x = _cut(config.cutout, hole_key, x)
  if config.probability < 1:
    changed = jax.random.bernoulli(whether_key, config.probability)
    x = jnp.where(changed, x, image_HW3)
  return x.astype(image_HW3.dtype)


def _colour(config: AugmentConfig, key, x_HW3: jax.Array) -> jax.Array:
  """Brightness, then saturation, then contrast."""
  brightness, saturation, contrast = jax.random.uniform(
    key, (3,), minval=-1.0, maxval=1.0
  )
  x = x_HW3 + 0.5 * config.brightness * brightness
  grey_HW1 = jnp.mean(x, axis=-1, keepdims=True)
  x = grey_HW1 + (x - grey_HW1) * (1 + config.saturation * saturation)
  mean = jnp.mean(x)
  return mean + (x - mean) * (1 + 0.5 * config.contrast * contrast)


def _shift(share: float, key, x_HW3: jax.Array) -> jax.Array:
  """By whole pixels along both axes."""
  height, width, _ = x_HW3.shape
  most = [int(side * share + 0.5) for side in (height, width)]
  padded = jnp.pad(x_HW3, (*((n, n) for n in most), (0, 0)))
  y, x = (
    jax.random.randint(k, (), 0, 2 * n + 1)
    for k, n in zip(jax.random.split(key), most)
  )
  return jax.lax.dynamic_slice(padded, (y, x, 0), x_HW3.shape)


def _cut(share: float, key, x_HW3: jax.Array) -> jax.Array:
  """Zeros in a square, cut off at the edges."""
  inside = jnp.ones((1, 1), bool)
  for axis, k in enumerate(jax.random.split(key)):
    side = x_HW3.shape[axis]
    size = int(side * share + 0.5)
    # The middle lies on any pixel.
    begin = jax.random.randint(k, (), 0, side) - size // 2
    place = jnp.arange(side)
    within = (place >= begin) & (place < begin + size)
    inside = inside & jnp.expand_dims(within, 1 - axis)
  return jnp.where(inside[..., None], 0.0, x_HW3)
