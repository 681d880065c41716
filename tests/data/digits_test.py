import numpy as np
import pytest

from star_jax.data.digits import CLASSES, DigitSource


def test_digits_are_split_by_picture_with_all_classes_on_both_sides():
  train, held = DigitSource((28, 28), "train"), DigitSource((28, 28), "heldout")
  assert len(train) == 4500 and len(held) == 500
  labels = [held.example(i, 0)[1] for i in range(len(held))]
  assert all(labels.count(name) == 50 for name in CLASSES)
  pictures = {train.example(i, 0)[0].tobytes() for i in range(len(train))}
  assert not any(held.example(i, 0)[0].tobytes() in pictures for i in range(50))


def test_a_digit_is_white_on_black_in_the_middle():
  source = DigitSource((32, 40), "train")
  image, caption, meta = source.example(0, 3)
  assert image.shape == (32, 40, 3) and image.dtype == np.uint8
  assert caption == meta["label"] == "0"
  assert image[:2].max() == image[:, :6].max() == 0 and image.max() > 200


def test_too_small_a_picture():
  with pytest.raises(ValueError, match=r"28 x 28 pixels.*\(16, 16\)"):
    DigitSource((16, 16), "train")
