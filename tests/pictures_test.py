"""PNG with a recipe, contact sheet, strip and GIF."""

import numpy as np
import pytest
from PIL import Image

from star_jax import pictures

RECIPE = pictures.Recipe(
  prompt="a red ❤, “quoted”",
  seed=4294967295,
  index=3,
  settings={"cfg_scale": 4.0, "top_k": 0},
  weights="0123456789abcdef",
  batch=4,
  slot=3,
)


def flat(colour, size=(8, 8)):
  return Image.new("RGB", size, colour)


def test_levels_are_rounded_and_clamped():
  values = np.asarray([-1.5, -1.0, -0.998, 0.0, 1.0, 2.0], np.float32)
  image = pictures.to_pil(np.tile(values[None, :, None], (1, 1, 3)))
  assert np.asarray(image)[0, :, 0].tolist() == [0, 0, 0, 128, 255, 255]


def test_png_keeps_pixels_and_recipe(tmp_path):
  rng = np.random.default_rng(0)
  image = Image.fromarray(rng.integers(0, 256, (6, 9, 3), np.uint8))
  pictures.save_png(image, tmp_path / "x.png", RECIPE)
  assert pictures.read_recipe(tmp_path / "x.png") == RECIPE
  with Image.open(tmp_path / "x.png") as again:
    np.testing.assert_array_equal(again, image)
    assert again.text["prompt"] == RECIPE.prompt
    assert again.text["seed"] == "4294967295"
    assert again.text["weights"] == RECIPE.weights
    assert '"cfg_scale": 4.0' in again.text["settings"]


def test_pictures_without_a_recipe_are_refused_in_one_sentence(tmp_path):
  flat("red").save(tmp_path / "plain.png")
  with pytest.raises(ValueError, match="does not say how it was made"):
    pictures.read_recipe(tmp_path / "plain.png")
  (tmp_path / "text.png").write_text("no picture")
  with pytest.raises(ValueError, match=r"text\.png is not a readable picture"):
    pictures.read_recipe(tmp_path / "text.png")
  pictures.save_png(flat("red"), tmp_path / "cut.png", RECIPE)
  data = (tmp_path / "cut.png").read_bytes()
  (tmp_path / "cut.png").write_bytes(data[: len(data) // 2])
  with pytest.raises((ValueError, OSError)):
    pictures.read_recipe(tmp_path / "cut.png")
  with pytest.raises(OSError):
    pictures.read_recipe(tmp_path / "absent.png")
  with pytest.raises(ValueError, match="Not a recipe"):
    pictures.Recipe.from_json('{"prompt": "a"}')


def test_contact_sheet_shows_every_picture_and_its_mark():
  images = [flat(c) for c in ("red", "lime", "blue", "yellow", "cyan")]
  labels = ["a"] * 4 + ["a very long label " * 20]
  sheet = pictures.contact_sheet(images, labels, columns=3, cell=64)
  colours = {c for _, c in sheet.getcolors(1 << 20)}
  assert {(255, 0, 0), (0, 255, 0), (0, 0, 255)} <= colours
  assert {(255, 255, 0), (0, 255, 255)} <= colours
  marked = pictures.contact_sheet(
    images, labels, marks=["", "held out", "", "", ""], columns=3, cell=64
  )
  assert marked.height > sheet.height
  assert np.any(np.asarray(marked)[..., 0] != np.asarray(marked)[..., 1])
  with pytest.raises(ValueError, match="as many labels"):
    pictures.contact_sheet(images, labels[:2])


def test_strip_is_in_order_from_left_to_right():
  colours = [(10, 0, 0), (120, 0, 0), (240, 0, 0)]
  strip = np.asarray(pictures.scale_strip([flat(c) for c in colours], cell=32))
  middle = strip[strip.shape[0] // 2]
  found = [x for x in middle.tolist() if tuple(x) != (255, 255, 255)]
  assert found == sorted(found) and len(found) == 3 * 32


def test_gif_has_one_frame_a_scale_and_rests_on_the_last(tmp_path):
  frames = [flat(c) for c in ("red", "lime", "blue")]
  pictures.save_gif(frames, tmp_path / "x.gif", cell=16)
  with Image.open(tmp_path / "x.gif") as gif:
    assert (gif.n_frames, gif.size) == (3, (16, 16))
    durations = []
    for i in range(3):
      gif.seek(i)
      durations.append(gif.info["duration"])
      assert gif.convert("RGB").getpixel((5, 5)) == frames[i].getpixel((0, 0))
    assert durations[0] < durations[2]
