import numpy as np
import pytest

from star_jax.data.recolor import (
  COLOURS,
  colour_share,
  oklab_to_rgb,
  recolor,
  rgb_to_oklab,
)


def disc(colour, eye=(255, 255, 255)):
  """uint8 [64, 64, 4]: a shaded disc with a black outline and an eye."""
  y, x = np.mgrid[:64, :64] - 31.5
  far = np.hypot(y, x)
  rgba = np.zeros((64, 64, 4), np.uint8)
  rgba[..., :3] = np.clip(
    np.asarray(colour) * (1 - 0.2 * (x / 30))[..., None], 0, 255
  )
  rgba[far > 27, :3] = 0
  rgba[np.hypot(y, x) < 4, :3] = eye
  rgba[far <= 30, 3] = 255
  return rgba


def test_oklab_of_known_colours():
  # From the table in the article that defines OKLab.
  np.testing.assert_allclose(
    rgb_to_oklab(np.array([255, 255, 255], np.uint8)), [1, 0, 0], atol=1e-3
  )
  red = rgb_to_oklab(np.array([255, 0, 0], np.uint8))
  np.testing.assert_allclose(red, [0.628, 0.225, 0.126], atol=2e-3)


def test_oklab_round_trip():
  rgb = np.random.default_rng(0).integers(0, 256, (500, 3)).astype(np.uint8)
  back = oklab_to_rgb(rgb_to_oklab(rgb)).astype(int)
  assert np.abs(back - rgb).max() <= 1


def test_colours_are_far_apart():
  lab = rgb_to_oklab(np.array(list(COLOURS.values()), np.uint8))
  apart = np.linalg.norm(lab[:, None] - lab[None], axis=-1)
  apart[np.diag_indices(len(lab))] = 1
  assert apart.min() > 0.1


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize(
  "fill", [(200, 120, 60), (90, 170, 240), (235, 235, 235)]
)
def test_the_fill_takes_the_colour_and_its_shading_stays(fill, colour):
  rgba = disc(fill)
  painted = recolor(rgba, colour)
  assert colour_share(painted, colour) > 0.85
  np.testing.assert_array_equal(painted[..., 3], rgba[..., 3])
  # The left is lit in the original.
  light = rgb_to_oklab(painted[..., :3])[32, :, 0]
  assert light[14] > light[48] + 0.01


def test_outline_and_other_hues_are_left_alone():
  rgba = disc((200, 120, 60), eye=(30, 60, 220))
  painted = recolor(rgba, "green")
  np.testing.assert_array_equal(painted[32, 32], rgba[32, 32])
  assert painted[32, 2, :3].max() < 30  # outline


def test_a_black_shape_is_repainted_whole():
  rgba = disc((10, 10, 10), eye=(10, 10, 10))
  assert colour_share(recolor(rgba, "yellow"), "yellow") > 0.9


def test_unknown_colour():
  with pytest.raises(ValueError, match=r"colour is one of red, .*'teal'"):
    recolor(disc((200, 0, 0)), "teal")
