"""A sheet of scenes in all shapes: small ones, larger ones of more objects.

python -m star_jax.scene_shapes --out=docs/images/scenes_shapes.png
"""

from __future__ import annotations

import argparse

from PIL import Image, ImageOps

from configs import data
from star_jax import pictures
from star_jax.data.art.store import load_art
from star_jax.data.scenes import SceneConfig, SceneGenerator
from star_jax.scales import ASPECTS, ScaleSchedule

TOKENS = 16  # a side of the square
# Side of the square and objects at most.
ROWS = ((64, 3), (128, 9))


def shape(side: int, aspect: str) -> tuple[int, int]:
  """(height, width) of the pictures of a ratio, whole tokens of a square."""
  square = ScaleSchedule.from_patch_nums([TOKENS])
  height, width = square.with_aspect(aspect).final_grid
  return height * side // TOKENS, width * side // TOKENS


def sheet(store) -> Image.Image:
  """One picture for every ratio, of each of ROWS.

  Args:
    store: an `ArtStore`.
  """
  options = data.options().scenes.to_dict()
  images, captions = [], []
  for side, most in ROWS:
    options |= {"max_objects": most, "many_share": 1.0}
    for number, aspect in enumerate(ASPECTS):
      config = SceneConfig(size=shape(side, aspect), **options)
      make = SceneGenerator(store, config)
      scene = make.scene(number)
      # A line around it: many are white.
      image = Image.fromarray(make.render(scene))
      images.append(ImageOps.expand(image, 1, "gray"))
      height, width = scene.size
      captions.append(f"{width} x {height}: {scene.caption}")
  return pictures.contact_sheet(images, captions, columns=9, cell=160)


def main(argv: list[str] | None = None) -> None:
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--out", default="scenes_shapes.png", help="The picture.")
  args = parser.parse_args(argv)
  try:
    store = load_art(None)
  except ValueError as error:
    raise SystemExit(f"scene_shapes: {error}") from None
  sheet(store).quantize(128).save(args.out, optimize=True)
  print(args.out)


if __name__ == "__main__":
  main()
