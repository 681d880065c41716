"""Differentiable augmentation: what may change, and what may not."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from star_jax.adversarial import AugmentConfig, augment

NONE = AugmentConfig(0.0, 0.0, 0.0, 0.0, 0.0)
SHAPE = (6, 8, 12, 3)


def _image(seed=0):
  rng = np.random.default_rng(seed)
  return rng.uniform(0.1, 1, SHAPE).astype(np.float32)


def _apply(image, seed=0, **strengths):
  config = dataclasses.replace(NONE, **strengths)
  changed = jax.jit(augment, static_argnums=0)
  return np.asarray(changed(config, jax.random.key(seed), image))


def test_strength_zero_is_the_identity():
  image = _image()
  np.testing.assert_array_equal(_apply(image), image)
  np.testing.assert_array_equal(
    _apply(image, brightness=1.0, cutout=0.5, probability=0.0), image
  )


def test_a_picture_does_not_depend_on_its_batch():
  image, full = _image(), dataclasses.asdict(AugmentConfig())
  whole = _apply(image, **full)
  np.testing.assert_allclose(_apply(image[:2], **full), whole[:2], atol=1e-6)
  other = np.concatenate([image[:1], _image(1)[1:]])
  found = _apply(other, **full)
  np.testing.assert_array_equal(found[0], whole[0])
  # Pictures are changed differently from each other, and from key to key.
  same = np.broadcast_to(image[:1], SHAPE)
  found = _apply(same, **full)
  assert len(np.unique(found.reshape(6, -1), axis=0)) == 6
  assert np.any(_apply(image, seed=1, **full) != whole)


def test_colours():
  image = _image()
  shift = _apply(image, brightness=1.0) - image
  np.testing.assert_allclose(np.ptp(shift.reshape(6, -1), axis=1), 0, atol=1e-6)
  assert 0.05 < np.abs(shift).max() <= 0.5
  grey = _apply(image, saturation=1.0)
  np.testing.assert_allclose(grey.mean(-1), image.mean(-1), atol=1e-6)
  contrast = _apply(image, contrast=1.0)
  mean = image.mean((1, 2, 3), keepdims=True)
  factor = (contrast - mean) / (image - mean)
  np.testing.assert_allclose(
    np.ptp(factor.reshape(6, -1), axis=1), 0, atol=1e-2
  )
  assert factor.min() >= 0.5 and factor.max() <= 1.5


def test_translation_is_by_whole_pixels():
  image = _image()
  moved, most_y, most_x = _apply(image, translation=0.25), 2, 3
  padded = np.pad(image, ((0, 0), (2, 2), (3, 3), (0, 0)))
  shifts = []
  for i in range(len(image)):
    here = [
      (y, x)
      for y in range(2 * most_y + 1)
      for x in range(2 * most_x + 1)
      if np.array_equal(moved[i], padded[i, y : y + 8, x : x + 12])
    ]
    assert len(here) == 1, i
    shifts += here
  assert len(set(shifts)) > 1


def test_cutout_is_one_rectangle_of_zeros():
  holes = np.all(_apply(_image(), cutout=0.5) == 0, axis=-1)
  for hole in holes:
    rows, columns = hole.any(1), hole.any(0)
    np.testing.assert_array_equal(hole, np.outer(rows, columns))
    # Half of it at least stays inside the edges.
    assert 2 <= rows.sum() <= 4 and 3 <= columns.sum() <= 6


def test_gradient_flows_to_every_picture_and_is_right():
  """All of it is affine in a picture: a difference is the gradient exactly."""
  config, key = AugmentConfig(), jax.random.key(3)
  weights = _image(5)
  image, step = _image(), _image(6)

  @jax.jit
  def objective(image):
    return jnp.sum(weights * augment(config, key, image), axis=(1, 2, 3))

  gradient = jax.jit(jax.grad(lambda x: jnp.sum(objective(x))))(image)
  assert np.all(np.abs(gradient).sum((1, 2, 3)) > 0)
  np.testing.assert_allclose(
    (gradient * step).sum((1, 2, 3)),
    objective(image + step) - objective(image),
    rtol=1e-4,
    atol=1e-3,
  )


@pytest.mark.parametrize(
  "name, value, most", [("cutout", 1.5, "1"), ("contrast", -0.1, "2")]
)
def test_bad_strengths(name, value, most):
  with pytest.raises(
    ValueError, match=f"{name} of .* 0 to {most}, got {value}"
  ):
    AugmentConfig(**{name: value})
