import numpy as np
import pytest
from PIL import Image

from star_jax.data import transforms


def test_value_range_and_back():
  levels = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
  unit = transforms.to_unit_range(levels)
  assert unit.dtype == np.float32
  assert unit.min() == -1 and unit.max() == 1
  np.testing.assert_array_equal(transforms.to_uint8(unit), levels)
  np.testing.assert_array_equal(transforms.to_uint8([-9.0, 9.0]), [0, 255])


def test_gray_becomes_three_equal_channels():
  rgb = transforms.to_rgb(Image.new("L", (3, 2), 77))
  assert rgb.mode == "RGB" and rgb.getpixel((0, 0)) == (77, 77, 77)


def test_transparent_parts_show_the_background():
  image = Image.new("RGBA", (2, 1), (255, 0, 0, 255))
  image.putpixel((0, 0), (0, 0, 0, 0))
  rgb = transforms.to_rgb(image)
  assert rgb.getpixel((0, 0)) == (255, 255, 255)
  assert rgb.getpixel((1, 0)) == (255, 0, 0)
  assert transforms.to_rgb(image, (0, 0, 9)).getpixel((0, 0)) == (0, 0, 9)


def test_gray_with_alpha_and_palette_with_transparency():
  assert transforms.to_rgb(Image.new("LA", (1, 1), (10, 0))).getpixel(
    (0, 0)
  ) == (255, 255, 255)
  palette = Image.new("P", (1, 1), 0)
  palette.putpalette([10, 20, 30])
  palette.info["transparency"] = 0
  assert transforms.to_rgb(palette).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize(
  "values, mode",
  [
    (np.array([[0, 32768, 65535]], np.uint16), "I;16"),
    (np.array([[0, 32768, 65535]], np.int32), "I"),
    (np.array([[0, 0.5, 1.0]], np.float32), "F"),
  ],
)
def test_more_than_eight_bits(values, mode):
  image = Image.fromarray(values)
  assert image.mode == mode
  rgb = np.asarray(transforms.to_rgb(image))
  np.testing.assert_array_equal(rgb[0, :, 0], [0, 128, 255])


def test_cmyk():
  rgb = transforms.to_rgb(Image.new("CMYK", (1, 1), (0, 255, 255, 0)))
  red, green, blue = rgb.getpixel((0, 0))
  assert red > 200 and green < 60 and blue < 60


def test_photos_are_turned_upright():
  image = Image.new("RGB", (4, 2))
  image.getexif()[0x0112] = 6  # rotated by 90 degrees
  assert transforms.to_rgb(image).size == (2, 4)


def halves(width, height):
  """Left half red, right half blue."""
  image = Image.new("RGB", (width, height), (255, 0, 0))
  image.paste((0, 0, 255), (width // 2, 0, width, height))
  return image


def test_centre_crop_keeps_the_middle():
  out = transforms.resize_and_crop(halves(40, 10), (10, 10))
  assert out.shape == (10, 10, 3) and out.dtype == np.uint8
  assert tuple(out[5, 1]) == (255, 0, 0) and tuple(out[5, 8]) == (0, 0, 255)


def test_random_crop_moves_along_the_long_side_only():
  image = halves(40, 10)
  reds = set()
  for seed in range(30):
    out = transforms.resize_and_crop(
      image, (10, 10), crop="random", rng=np.random.default_rng(seed)
    )
    assert out.shape == (10, 10, 3)
    reds.add(int((out[5, :, 0] > 127).sum()))
  assert {0, 10} <= reds and len(reds) > 3


def test_aspect_ratio_and_enlarging():
  out = transforms.resize_and_crop(halves(8, 8), (16, 32))
  assert out.shape == (16, 32, 3)
  assert transforms.is_smaller(halves(8, 8), (16, 8))
  assert not transforms.is_smaller(halves(8, 16), (16, 8))


def test_unknown_crop():
  with pytest.raises(ValueError, match="crop is one of centre, random"):
    transforms.resize_and_crop(halves(8, 8), (4, 4), crop="left")


@pytest.mark.parametrize(
  "text, clean",
  [
    ("  A Red\tCar\r\n", "a red car"),
    ("cafe\u0301", "caf\u00e9"),
    ("a\u200b star\x00!", "a star !"),
    ("\u2028", ""),
  ],
)
def test_clean_caption(text, clean):
  assert transforms.clean_caption(text) == clean
