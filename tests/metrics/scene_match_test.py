"""The matcher finds what was painted, and nothing where nothing is."""

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from star_jax.data.concepts import CONCEPTS
from star_jax.data.recolor import COLOURS
from star_jax.data.scenes import blend
from star_jax.metrics import scene_match, sprite_bank
from star_jax.metrics.background import fit_background
from star_jax.metrics.scene_match import SceneMatcher
from star_jax.metrics.sprite_bank import BASE, SpriteBank

NAMES = ("star", "heart", "door", "moon", "key")


def _shape(name):
  """A plain drawing of a thing, RGBA 64 x 64 in its box."""
  image = Image.new("RGBA", (256, 256))
  draw = ImageDraw.Draw(image)
  if name == "star":
    turn = np.arange(10) * np.pi / 5 - np.pi / 2
    radius = np.where(np.arange(10) % 2, 50, 127)
    draw.polygon(
      [
        (128 + r * np.cos(t), 128 + r * np.sin(t)) for r, t in zip(radius, turn)
      ],
      fill="white",
    )
  elif name == "heart":
    draw.ellipse([4, 20, 136, 150], fill="white")
    draw.ellipse([120, 20, 252, 150], fill="white")
    draw.polygon([(12, 116), (244, 116), (128, 250)], fill="white")
  elif name == "door":
    draw.rectangle([2, 2, 253, 253], fill="white")
  elif name == "moon":
    draw.ellipse([2, 2, 253, 253], fill="white")
    draw.ellipse([90, -20, 330, 220], fill=(0, 0, 0, 0))
  else:
    draw.ellipse([2, 80, 100, 178], fill="white")
    draw.rectangle([90, 115, 250, 140], fill="white")
    draw.rectangle([210, 130, 230, 180], fill="white")
  return np.asarray(image.resize((BASE, BASE), Image.Resampling.BOX))


class Drawings:
  """Stands in for a scene generator over an art store."""

  styles = ("twemoji",)

  def __init__(self):
    self.store = {("twemoji", CONCEPTS[name].key) for name in NAMES}
    self._shapes = {name: _shape(name) for name in NAMES}

  def sprite(self, concept, style, colour, size):
    rgba = self._shapes[concept].copy()
    rgba[..., :3] = COLOURS.get(colour, (250, 250, 160))
    # A darker lower half, as drawings have shading.
    rgba[BASE // 2 :, :, :3] = rgba[BASE // 2 :, :, :3] * 0.8
    image = Image.fromarray(rgba, "RGBA")
    return np.asarray(image.resize((size, size), Image.Resampling.LANCZOS))


@pytest.fixture(scope="module")
def drawings():
  return Drawings()


@pytest.fixture(scope="module")
def matcher(drawings):
  return SceneMatcher(SpriteBank(drawings))


@pytest.fixture(scope="module")
def many_matcher(matcher):
  return SceneMatcher(matcher.bank, 9)


def _paint(drawings, things, size=(64, 64), background=(225, 236, 246)):
  image = np.zeros((*size, 3), np.uint8)
  image[:] = background
  # A gradient from left to right.
  image[..., 2] -= (np.arange(size[1]) * 30 // size[1]).astype(np.uint8)
  for concept, colour, x, y, side in things:
    blend(image, drawings.sprite(concept, "twemoji", colour, side), x, y)
  return image


SCENES = (
  [("star", "red", 20, 9, 40)],
  [("heart", "blue", 3, 20, 28), ("key", "green", 34, 18, 26)],
  [("moon", "purple", 2, 2, 24), ("star", "orange", 6, 34, 26)],
  [
    *(("door", "pink", 2, 3, 19), ("heart", "black", 40, 5, 20)),
    *(("star", "brown", 6, 40, 21), ("door", "gray", 38, 38, 22)),
  ],
  [("star", "red", 1, 22, 19), ("star", "blue", 23, 21, 19)],
)


def _named(detections):
  return sorted((d.entry.concept, d.entry.colour) for d in detections)


@pytest.mark.parametrize("things", SCENES)
def test_finds_what_was_painted(drawings, matcher, things):
  detections = matcher.find(_paint(drawings, things))
  assert _named(detections) == sorted(t[:2] for t in things)
  for d in detections:
    _, _, x, y, side = next(
      t for t in things if t[:2] == (d.entry.concept, d.entry.colour)
    )
    np.testing.assert_allclose(d.box, (x, y, x + side, y + side), atol=2)
    assert d.explained > 0.8


def test_survives_blur_and_noise(drawings, matcher):
  things = SCENES[1]
  image = Image.fromarray(_paint(drawings, things))
  blurred = np.asarray(image.filter(ImageFilter.GaussianBlur(0.8)))
  noise = np.random.default_rng(0).normal(0, 8, blurred.shape)
  damaged = np.clip(blurred + noise, 0, 255).astype(np.uint8)
  assert _named(matcher.find(damaged)) == sorted(t[:2] for t in things)


@pytest.mark.parametrize("size, factor", [((128, 128), 2), ((64, 96), 1)])
def test_other_picture_sizes(drawings, matcher, size, factor):
  things = [
    (c, k, x * factor, y * factor, s * factor) for c, k, x, y, s in SCENES[1]
  ]
  detections = matcher.find(_paint(drawings, things, size))
  assert _named(detections) == sorted(t[:2] for t in things)
  heart = next(d for d in detections if d.entry.concept == "heart")
  np.testing.assert_allclose(
    heart.box, np.array([3, 20, 31, 48]) * factor, atol=2 * factor
  )


EIGHT = [
  (NAMES[i % 5], colour, x, y, 34)
  for i, (colour, (y, x)) in enumerate(
    zip(
      ("red", "blue", "green", "purple", "orange", "black", "pink", "brown"),
      ((r * 42 + 3, c * 42 + 3) for r in range(3) for c in range(3)),
    )
  )
]
CLOSE = [
  ("star", "red", 0, 0, 24),
  ("moon", "blue", 0, 24, 24),
  ("heart", "gray", 24, 24, 24),
  ("key", "black", 60, 12, 24),
]


def _check(detections, things, atol):
  assert _named(detections) == sorted(t[:2] for t in things)
  for d in detections:
    _, _, x, y, side = next(
      t for t in things if t[:2] == (d.entry.concept, d.entry.colour)
    )
    np.testing.assert_allclose(d.box, (x, y, x + side, y + side), atol=atol)


@pytest.mark.long
@pytest.mark.parametrize("size, factor", [((128, 128), 1), ((256, 256), 2)])
def test_finds_many_objects_in_larger_pictures(
  drawings, many_matcher, size, factor
):
  things = [
    (c, k, x * factor, y * factor, s * factor) for c, k, x, y, s in EIGHT
  ]
  detections = many_matcher.find(_paint(drawings, things, size))
  _check(detections, things, atol=2 * factor)


def test_small_objects_are_found_on_the_finer_copy(drawings, many_matcher):
  """24 pixels of 128 are 12 of 64, less than a template there."""
  things = [
    (name, colour, 4 + 25 * i, 50, 24)
    for i, (name, colour) in enumerate(
      zip(NAMES, ("red", "green", "blue", "black", "orange"))
    )
  ]
  things.append(("heart", "purple", 4, 84, 40))
  detections = many_matcher.find(_paint(drawings, things, (128, 128)))
  _check(detections, things, atol=2)


@pytest.mark.parametrize("turn", [False, True])
def test_finds_what_touches_in_rectangles(drawings, matcher, turn):
  size, things = (48, 84), CLOSE
  if turn:
    size = size[::-1]
    things = [(c, k, y, x, side) for c, k, x, y, side in CLOSE]
  detections = matcher.find(_paint(drawings, things, size))
  _check(detections, things, atol=2)


def test_no_more_than_it_may(drawings, matcher, many_matcher):
  image = _paint(drawings, EIGHT, (128, 128))
  assert len(matcher.find(image)) == 4
  assert len(many_matcher.find(image)) == 8


def test_empty_pictures_hold_nothing(drawings, matcher):
  assert matcher.find(_paint(drawings, [])) == []
  assert matcher.find(np.full((64, 64, 3), 255, np.uint8)) == []


def test_unknown_style_finds_nothing_else(drawings, matcher):
  image = _paint(drawings, SCENES[0])
  assert len(matcher.find(image, "twemoji")) == 1
  with pytest.raises(ValueError, match="'crayon'"):
    matcher.find(image, "crayon")


def test_bad_picture(matcher):
  with pytest.raises(ValueError, match="uint8 pictures"):
    matcher.find(np.zeros((64, 64, 4), np.uint8))


def test_background_is_fitted_around_a_large_object(drawings):
  image = _paint(drawings, [("heart", "red", 2, 2, 58)])
  blank = _paint(drawings, [])
  lab = sprite_bank.rgb_to_oklab(image)
  fitted = fit_background(lab)
  np.testing.assert_allclose(fitted, sprite_bank.rgb_to_oklab(blank), atol=0.03)


def test_gain_is_the_drop_of_the_squared_error(matcher):
  """The score against its definition, by laying a template down."""
  rng = np.random.default_rng(1)
  difference = rng.normal(0, 0.1, (20, 22, 3)).astype(np.float32)
  background = np.broadcast_to(
    np.array([0.8, 0.02, -0.03], np.float32), difference.shape
  )
  level = scene_match._Level(difference, background)
  templates = matcher.bank.at(7)
  gains = level.gains(templates, 7, range(3, 6), range(2, 4))
  planes = templates.filters[11].reshape(7, 7, 4)
  colour, alpha = planes[..., :3], -planes[..., 3:]
  laid = colour - alpha * background[0, 0]
  part = difference[4:11, 3:10]
  drop = (part**2).sum() - ((part - laid) ** 2).sum()
  np.testing.assert_allclose(gains[1, 1, 11], drop, rtol=1e-4)
