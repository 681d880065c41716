"""Art on backgrounds: masks, blanks and which pictures are taken."""

import types

import numpy as np
import pytest

from star_jax.metrics import heldout


class Store:
  def __init__(self):
    self.records = [
      types.SimpleNamespace(
        split="heldout" if i % 3 == 0 else "train",
        style="flat" if i % 2 else "line",
      )
      for i in range(12)
    ]

  def select(self, keep):
    return np.array([i for i, r in enumerate(self.records) if keep(r)])

  def rgba(self, i):
    out = np.zeros((128, 128, 4), np.uint8)
    out[32:96, 32:96] = (200, 30, 10 * i, 255)
    out[..., 0][out[..., 3] == 0] = 255  # colour under nothing
    return out


def test_pick_is_a_shuffle_of_the_split():
  store = Store()
  a, b = (heldout.pick(store, "heldout", 9, seed) for seed in (0, 1))
  assert sorted(a) == sorted(b) == [0, 3, 6, 9]
  assert sorted(heldout.pick(store, "train", 9, 0, ["flat"])) == [1, 5, 7, 11]
  assert len(heldout.pick(store, "heldout", 2, 0)) == 2
  with pytest.raises(ValueError, match="no heldout pictures of the styles x"):
    heldout.pick(store, "heldout", 2, 0, ["x"])


@pytest.mark.parametrize("size", [(64, 64), (32, 48)])
def test_pictures_blend_art_and_background(size):
  out = heldout.art_pictures(Store(), [0, 3], size, seed=0)
  assert out.image.shape == (2, *size, 3) and len(out) == 2
  inside = out.alpha == 1
  outside = out.alpha == 0
  side = min(size)
  assert inside.sum() == 2 * (side // 2) ** 2
  np.testing.assert_array_equal(out.image[outside], out.blank[outside])
  assert (out.image[0][inside[0]] == (200, 30, 0)).all()
  assert (out.image[1][inside[1]] == (200, 30, 30)).all()


def test_background_depends_on_the_picture_alone():
  both = heldout.art_pictures(Store(), [0, 3], (32, 32), seed=0)
  alone = heldout.art_pictures(Store(), [3], (32, 32), seed=0)
  np.testing.assert_array_equal(both.image[1], alone.image[0])
  other = heldout.art_pictures(Store(), [3], (32, 32), seed=1)
  assert (other.blank != alone.blank).any()


def test_colour_under_transparent_pixels_does_not_bleed():
  rgba = np.zeros((64, 64, 4), np.uint8)
  rgba[..., 0] = 255
  rgba[20:41, 20:41] = (0, 0, 255, 255)
  out = heldout.resize_rgba(rgba, (24, 24))
  assert out[..., 0].max() == 0
  np.testing.assert_allclose(out[..., 2], out[..., 3], atol=1e-6)
