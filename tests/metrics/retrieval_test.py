"""Retrieval on hand-made features, cut-outs on painted pictures."""

import types

import numpy as np
import pytest

from star_jax.data.backgrounds import Background, paint
from star_jax.metrics import retrieval
from star_jax.metrics.cutout import object_alpha, on_white
from star_jax.metrics.retrieval import Gallery, chance, retrieve


def record(key, style, merged=None, split="train"):
  return types.SimpleNamespace(
    key=key, style=style, merged_concept=merged or key, split=split
  )


# Two styles; "b1" and "b2" are tones of one concept.
RECORDS = [
  record("a", "flat"),
  record("b1", "flat", "b"),
  record("b2", "flat", "b"),
  record("a", "line"),
  record("b1", "line", "b", split="heldout"),
]


@pytest.fixture
def gallery():
  return Gallery(np.eye(5, dtype=np.float32), RECORDS)


def _query(*weights):
  return retrieval.normalised(np.array(weights, np.float32))


def test_strict_merged_and_style(gallery):
  features = _query(
    [1, 0.2, 0, 0, 0],  # a, flat: right
    [0, 0.1, 1, 0, 0],  # b2 for b1: right up to the tone
    [1, 0.5, 0, 0, 0],  # a for b1: wrong
    [1, 0, 0, 0.9, 0],  # a in flat style for a in line style
  )
  asked = [RECORDS[0], RECORDS[1], RECORDS[1], RECORDS[3]]
  out = retrieve(gallery, features, asked)
  assert out.strict.tolist() == [True, False, False, True]
  assert out.merged.tolist() == [True, True, False, True]
  assert out.style.tolist() == [True, True, True, False]
  assert out.nearest.tolist() == [0, 2, 0, 3]


def test_chance_is_the_share_of_right_pictures(gallery):
  out = chance(gallery, [RECORDS[0], RECORDS[1]])
  assert out["strict"] == pytest.approx(1 / 3)
  assert out["merged"] == pytest.approx((1 / 3 + 2 / 3) / 2)
  assert out["style"] == pytest.approx(3 / 5)


def test_long_lists_are_taken_in_blocks(gallery, monkeypatch):
  monkeypatch.setattr(retrieval, "BLOCK", 2)
  features = np.eye(5, dtype=np.float32)
  assert retrieve(gallery, features, RECORDS).strict.all()


def _picture(background, colour=(200, 40, 40), box=(20, 12, 50, 40)):
  image = paint(background, (64, 64))
  y0, x0, y1, x1 = box
  image[y0:y1, x0:x1] = colour
  # A hole that looks like the background but lies inside the object.
  image[y0 + 8 : y0 + 14, x0 + 8 : x0 + 14] = image[0, 0]
  return image


BACKGROUNDS = [
  Background("plain", (214, 231, 248), (214, 231, 248), 0.0, 1.0),
  Background("gradient", (255, 244, 202), (227, 229, 233), 0.7, 1.0),
  Background("stripes", (234, 224, 246), (220, 210, 232), 0.8, 0.3),
  Background("plain", (24, 36, 68), (24, 36, 68), 0.0, 1.0),
]


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_object_is_found_on_its_background(background):
  alpha = object_alpha(_picture(background))
  expected = np.zeros((64, 64))
  expected[20:50, 12:40] = 1
  np.testing.assert_allclose(alpha, expected, atol=0.1)


def test_cut_out_forgets_place_size_and_background():
  small = _picture(BACKGROUNDS[1], box=(4, 30, 32, 58))
  large = _picture(BACKGROUNDS[0], box=(2, 2, 58, 58))
  for image in (small, large):
    image[:] = on_white(image)
    assert (image[0] == 255).all() and (image[:, -1] == 255).all()
    np.testing.assert_allclose(image[44, 44], (200, 40, 40), atol=2)
    np.testing.assert_allclose(image[56, 56], (200, 40, 40), atol=2)


def test_blank_picture_is_left_alone():
  blank = paint(BACKGROUNDS[1], (64, 64))
  np.testing.assert_array_equal(on_white(blank), blank)


def test_cached_features_are_used_and_repaired(tmp_path, monkeypatch):
  calls = []

  def network(image):
    calls.append(len(image))
    return image.reshape(len(image), -1)[:, :6].astype(np.float32) + 1

  folder = tmp_path / "art"
  folder.mkdir()
  (folder / "manifest.json").write_text("{}")
  rgba = np.full((32, 32, 4), 90, np.uint8)

  class Store:
    records = RECORDS

    def __len__(self):
      return len(RECORDS)

    def rgba(self, i):
      return rgba

  Store.folder = folder
  first = retrieval.load_gallery(Store(), (16, 16), network, 0.0)
  again = retrieval.load_gallery(Store(), (16, 16), network, 0.0)
  assert calls == [5]
  np.testing.assert_array_equal(first.features_MF, again.features_MF)
  (file,) = tmp_path.glob("features-*.npy")
  file.write_bytes(file.read_bytes()[:40])
  retrieval.load_gallery(Store(), (16, 16), network, 0.0)
  assert calls == [5, 5]
  # Other pictures or another size are other features.
  retrieval.load_gallery(Store(), (8, 8), network, 0.0)
  (folder / "manifest.json").write_text("{ }")
  retrieval.load_gallery(Store(), (16, 16), network, 0.0)
  retrieval.load_gallery(Store(), (16, 16), network, 2.0)
  assert calls == [5] * 5


def test_softening_scales_with_the_picture():
  small = np.zeros((1, 32, 32, 3), np.uint8)
  small[:, 8:24, 8:24] = 240
  large = small.repeat(4, 1).repeat(4, 2)
  assert retrieval.soften(small, 0) is small
  soft = retrieval.soften(large, 4.0)[0, 2::4, 2::4].astype(int)
  np.testing.assert_allclose(
    soft, retrieval.soften(small, 4.0)[0].astype(int), atol=12
  )
  assert 90 < soft[8, 16, 0] < 160  # the edge is no longer an edge
