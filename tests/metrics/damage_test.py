"""Damage of pictures: its strength grows, and the table says how much."""

import jax.numpy as jnp
import numpy as np

from star_jax.metrics import damage


def test_rows_of_a_plain_distance():
  """With the squared error as distance every strength is farther."""
  rng = np.random.default_rng(0)
  image = np.zeros((3, 32, 32, 3), np.uint8)
  for picture in image:
    y, x = rng.integers(4, 12, 2)
    picture[y : y + 14, x : x + 14] = rng.integers(60, 255, 3)

  def squared(x, y):
    assert x.dtype == np.float32 and x.min() >= -1 and x.max() <= 1
    assert x.shape[1:] == y.shape
    return np.mean(np.square(x - y), axis=(2, 3, 4))

  rows = damage.measure(squared, image)
  assert [r[:2] for r in rows] == [
    (name, s) for name, (_, all_s) in damage.DAMAGES.items() for s in all_s
  ]
  for name, strength, db, mean, farther in rows:
    assert farther == 1, (name, strength)
    # Of values in [-1, 1]: four times the error of those in [0, 1].
    assert np.isclose(db, -10 * np.log10(mean / 4), atol=2)


def test_batches_of_all_strengths():
  """Over batches that the last one does not fill."""
  rng = np.random.default_rng(0)
  x = rng.standard_normal((4, 5, 2, 2, 3)).astype(np.float32)
  y = rng.standard_normal((5, 2, 2, 3)).astype(np.float32)
  seen = []
  distance = damage.in_batches(
    lambda scale, x, y: scale * jnp.mean(jnp.abs(x - y), axis=(1, 2, 3)),
    np.float32(3),
    lambda done, total: seen.append((done, total)),
  )
  want = 3 * np.abs(x - y).mean((2, 3, 4))
  np.testing.assert_allclose(distance(x, y), want, rtol=1e-5)
  assert seen == [(2, 5), (4, 5), (5, 5)]


def test_damage_is_what_it_says():
  image = np.full((2, 16, 16, 3), 100, np.float32)
  image[1, :, 8:] = 200
  np.testing.assert_allclose(damage.blur(image, 2)[0], 100, rtol=1e-5)
  step = damage.blur(image, 1)[1, 8, :, 0]
  assert np.all(np.diff(step) >= 0) and 130 < step[7] < 170
  found = damage.noise(image, 8) - image
  assert 7 < found.std() < 9
  moved = damage.shift(image, 3)
  np.testing.assert_array_equal(moved[:, :, 3:], image[:, :, :-3])
  assert np.all(moved[1, :, :11] == 100)
  np.testing.assert_array_equal(damage.exchange(image, 1)[0], image[1])
  assert np.abs(damage.jpeg(image, 90) - image).max() < 30
