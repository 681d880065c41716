"""Prompts, pictures and tokens as users hand them in."""

import numpy as np
import pytest
from PIL import Image

from star_jax import inputs, testing


def test_one_prompt_is_a_list_of_one():
  assert inputs.prompt_list("a heart") == ["a heart"]
  assert inputs.prompt_list(("a", "")) == ["a", ""]
  with pytest.raises(ValueError, match="At least one prompt"):
    inputs.prompt_list([])
  with pytest.raises(ValueError, match="strings, got 3"):
    inputs.prompt_list(["a", 3])
  with pytest.raises(ValueError, match="strings, got 7"):
    inputs.prompt_list(7)


@pytest.mark.parametrize(
  "tokens, message",
  [
    ([[0] * 13], "A picture is 14 tokens"),
    ([], "A picture is 14 tokens"),
    ([[0.5] * 14], "integers"),
    ([[24] + [0] * 13], r"in \[0, 24\)"),
    ([[-1] + [0] * 13], r"in \[0, 24\)"),
    ([[0] * 14, [0] * 3], "different lengths"),
  ],
)
def test_tokens_that_are_none_are_refused(tokens, message):
  with pytest.raises(ValueError, match=message):
    inputs.check_tokens(tokens, testing.tiny_tokenizer_config())


def test_a_picture_of_the_right_size_is_not_resampled(tmp_path):
  rng = np.random.default_rng(0)
  pixels = rng.integers(0, 256, (6, 9, 3), np.uint8)
  expected = pixels.astype(np.float32) / 127.5 - 1
  np.testing.assert_array_equal(inputs.to_model_input(pixels, (6, 9)), expected)
  Image.fromarray(pixels).save(tmp_path / "x.png")
  np.testing.assert_array_equal(
    inputs.to_model_input(tmp_path / "x.png", (6, 9)), expected
  )


def test_other_sizes_are_cropped_around_the_centre():
  pixels = np.zeros((10, 30, 3), np.uint8)
  pixels[:, 10:20] = 255
  out = inputs.to_model_input(pixels, (5, 5))
  assert out.shape == (5, 5, 3) and out.dtype == np.float32
  np.testing.assert_allclose(out, 1.0, atol=0.25)  # the filter sees the edge
  assert inputs.to_model_input(pixels.swapaxes(0, 1), (5, 5)).min() > 0.75


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "CMYK", "1", "I;16"])
def test_every_mode_becomes_rgb(mode):
  image = Image.new("RGB", (8, 8), "white")
  if mode == "I;16":
    image = Image.fromarray(np.full((8, 8), 65535, np.uint16))
  else:
    image = image.convert(mode)
  out = inputs.to_model_input(image, (4, 4))
  np.testing.assert_allclose(out, 1.0)


def test_transparency_goes_onto_white():
  image = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
  np.testing.assert_allclose(inputs.to_model_input(image, (4, 4)), 1.0)


@pytest.mark.parametrize("shape", [(0, 4, 3), (4, 0, 3)])
def test_a_picture_without_a_pixel_is_refused(shape):
  with pytest.raises(ValueError, match="one pixel a side or more, got"):
    inputs.to_model_input(np.zeros(shape, np.uint8), (4, 4))


def test_what_is_no_picture_is_refused(tmp_path):
  with pytest.raises(ValueError, match=r"uint8 \(height, width, 3\)"):
    inputs.to_model_input(np.zeros((4, 4, 3)), (4, 4))
  (tmp_path / "x.png").write_bytes(b"nothing")
  with pytest.raises(ValueError, match="not a readable picture"):
    inputs.to_model_input(tmp_path / "x.png", (4, 4))
