import numpy as np
import pytest

from star_jax.data import backgrounds
from star_jax.data.backgrounds import DARK, WHITE, Background
from star_jax.data.recolor import COLOURS


def draw(seed, avoid=(), **options):
  rng = np.random.default_rng(seed)
  return backgrounds.draw_background(
    rng, list(avoid), **{"white_share": 0.3, **options}
  )


def test_colours_keep_their_distance():
  for seed in range(300):
    colour = list(COLOURS.values())[seed % len(COLOURS)]
    drawn = draw(seed, [colour])
    # Jitter and the second tone may come a little nearer.
    assert backgrounds.distance(drawn.first, colour) > 0.14
    assert backgrounds.distance(drawn.second, colour) > 0.1


def test_every_kind_is_drawn_and_white_as_often_as_told():
  drawn = [draw(seed) for seed in range(600)]
  assert {d.kind for d in drawn} == {"plain", "gradient", "stripes", "checker"}
  white = sum(d.first == WHITE for d in drawn)
  assert 130 < white < 230


def test_excluded_backgrounds_are_not_used_even_in_need():
  everything = [*COLOURS.values(), *backgrounds.LIGHT, *backgrounds.MIDDLE]
  for seed in range(100):
    drawn = draw(seed, everything, without=DARK, white_share=0)
    for dark in DARK:
      assert backgrounds.distance(drawn.first, dark) > 0.1


def test_plain_and_gradient_pixels():
  red, blue = (200, 0, 0), (0, 0, 200)
  plain = backgrounds.paint(Background("plain", red, red, 0.0, 1.0), (3, 5))
  assert plain.shape == (3, 5, 3) and plain.dtype == np.uint8
  assert (plain == red).all()
  image = backgrounds.paint(Background("gradient", red, blue, 0.0, 1.0), (4, 9))
  assert tuple(image[2, 0]) == red and tuple(image[2, -1]) == blue
  assert (np.diff(image[0, :, 2].astype(int)) > 0).all()


@pytest.mark.parametrize("kind", ["stripes", "checker"])
def test_patterns_look_the_same_at_twice_the_size(kind):
  pattern = Background(kind, (240, 240, 240), (210, 210, 210), 0.0, 0.4)
  small = backgrounds.paint(pattern, (40, 60)).astype(int)
  large = backgrounds.paint(pattern, (80, 120)).astype(int)
  halved = large.reshape(40, 2, 60, 2, 3).mean((1, 3))
  assert np.abs(halved - small).mean() < 2
  assert len(np.unique(small[..., 0])) > 1


def test_the_default_gives_way_where_it_cannot_be_seen():
  def default(*avoid):
    rng = np.random.default_rng(0)
    return backgrounds.draw_told_or_default(
      rng, avoid, told_share=0.0, default="white", white_share=0.0
    )

  plain, told = default()
  assert (plain.kind, plain.first, told) == ("plain", WHITE, False)
  assert default((250, 250, 250))[0].first == backgrounds.NAMED["sky blue"]
  both = default((250, 250, 250), backgrounds.NAMED["sky blue"])[0]
  assert both.first == backgrounds.NAMED["dark gray"]


@pytest.mark.parametrize(
  ("kind", "words"),
  [
    ("plain", "navy"),
    ("gradient", "navy to wine"),
    ("stripes", "striped navy"),
    ("checker", "checkered navy"),
  ],
)
def test_captions_name_what_is_painted(kind, words):
  first, wine = backgrounds.NAMED["navy"], backgrounds.NAMED["wine"]
  second = wine if kind == "gradient" else (1, 2, 3)
  told = backgrounds.with_background(
    "a dog", Background(kind, first, second, 0.0, 0.5)
  )
  assert told == f"a dog, on a {words} background"
