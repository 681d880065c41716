"""A model of classes behind the same front door."""

import numpy as np
import pytest

import star_jax
from star_jax import testing
from star_jax.classes import ClassLabels


@pytest.fixture(scope="module")
def star(tmp_path_factory):
  folder = tmp_path_factory.mktemp("bundle")
  testing.save_tiny_class_bundle(folder)
  return star_jax.load(folder)


@pytest.fixture(scope="module")
def named(star):
  return star.sample(["aa", "CC", ""], seed=1, return_tokens=True)


def test_names_and_numbers_are_the_same_classes(star, named):
  numbered = star.sample(["0", "2", ""], seed=1, return_tokens=True)
  np.testing.assert_array_equal(named.tokens_BL, numbered.tokens_BL)
  assert [image.size for image in named.images] == [(12, 12)] * 3


@pytest.mark.long
def test_the_class_decides(star, named):
  tokens = named.tokens_BL[0]
  values = [star.log_prob(tokens, name) for name in ("aa", "bb", "")]
  assert len(set(values)) == 3
  out = star.edit(star.decode(tokens), "bb", box=(0, 0.6, 1, 1))
  kept = star.encode(star.decode(tokens))[out.keep_L]
  np.testing.assert_array_equal(out.tokens_BL[0, out.keep_L], kept)


@pytest.mark.long
@pytest.mark.parametrize("outpaint", [False, True])
def test_an_edit_keeps_the_tokens_of_every_scale(star, outpaint):
  rng = np.random.default_rng(0)
  picture = rng.integers(0, 255, (12, 12, 3), np.uint8)
  given = star.encode(picture)
  out = star.edit(
    picture, "cc", 2, box=(0, 0.5, 1, 1), outpaint=outpaint, temperature=9.0
  )
  # Of 1 x 1 all, then the columns of a half: one of two; of three the left two
  # (1.5 cells round to 2) or the right one.
  kept, drawn = [0], []
  for begin, side, left in ((1, 2, 1), (5, 3, 2)):
    for cell in range(side * side):
      keep = (cell % side < left) != outpaint
      (kept if keep else drawn).append(begin + cell)
  np.testing.assert_array_equal(out.tokens_BL[0, kept], given[kept])
  assert (out.tokens_BL[0, drawn] != given[drawn]).any()
  other = star.edit(
    picture, "aa", 2, box=(0, 0.5, 1, 1), outpaint=outpaint, temperature=9.0
  )
  assert (out.tokens_BL != other.tokens_BL).any()


@pytest.mark.parametrize("prompt", ["dog", "3", "-1", "1.5"])
@pytest.mark.parametrize("call", ["sample", "edit", "log_prob"])
def test_what_is_no_class_is_refused_by_every_call(star, call, prompt):
  picture = np.zeros((12, 12, 3), np.uint8)
  message = rf"from 0 to 2 or a name \(aa, bb, cc\), got '{prompt}'"
  with pytest.raises(ValueError, match=message):
    if call == "sample":
      star.sample([prompt])
    elif call == "edit":
      star.edit(picture, prompt, box=(0, 0.5, 1, 1))
    else:
      star.log_prob(picture, prompt)


def test_labels():
  labels = ClassLabels(3)
  np.testing.assert_array_equal(labels.encode(["1", " 0 ", ""]), [1, 0, 3])
  np.testing.assert_array_equal(labels.null(), [3])


@pytest.mark.parametrize(
  ("names", "prompt", "message"),
  [
    (None, "3", "a number from 0 to 2, got '3'"),
    (None, "-1", "got '-1'"),
    (None, "dog", "a number from 0 to 2, got 'dog'"),
    (("a", "b", "c"), "d", r"or a name \(a, b, c\), got 'd'"),
  ],
)
def test_what_is_no_class(names, prompt, message):
  with pytest.raises(ValueError, match=message):
    ClassLabels(3, names).encode([prompt])


def test_another_number_of_names():
  with pytest.raises(ValueError, match="3 classes has as many names, got 1"):
    ClassLabels(3, ["a"])


def test_a_model_of_classes_has_no_text_encoder(star):
  with pytest.raises(ValueError, match="a model of classes, not texts"):
    _ = star.text_encoder
