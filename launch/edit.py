"""Draws a part of a picture anew (zero-shot editing).

  python launch/edit.py picture.png "a green car" --box=0,0.5,1,1
  python launch/edit.py picture.png --mask=mask.png --count=4
  python launch/edit.py picture.png "a tree" --box=0.2,0.2,0.8,0.8 --outpaint

A box is y0,x0,y1,x1 as shares of height and width; a mask is a picture of the
same size, white where to draw anew. Writes edit_<i>.png and edit.png (before,
mask, after) into --out. Without a prompt the model draws what suits the rest.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from absl import flags

from star_jax.cli import run_main

BOX = flags.DEFINE_list("box", None, "y0,x0,y1,x1 as shares of the sides.")
MASK = flags.DEFINE_string("mask", None, "A picture, white where to draw.")
OUTPAINT = flags.DEFINE_boolean(
  "outpaint", False, "Keep the inside of the box or mask, draw the outside."
)
COUNT = flags.DEFINE_integer("count", 1, "How many results.")
OUT = flags.DEFINE_string("out", "outputs", "Folder for the pictures.")
CKPT = flags.DEFINE_string("ckpt", None, "Bundle; the shipped one if absent.")
TEXT = flags.DEFINE_string(
  "text", None, "Folder of the text encoder, if the bundle does not bring it."
)
SEED = flags.DEFINE_integer("seed", 0, "Result i draws from (seed, i).")
# None: the bundle says what suits its model.
CFG_SCALE = flags.DEFINE_float("cfg_scale", None, "Guidance, 0 = off.")
TOP_K = flags.DEFINE_integer("top_k", None, "Tokens kept a draw, 0 = all.")
TOP_P = flags.DEFINE_float("top_p", None, "Nucleus in (0, 1], 1 = all.")
TEMPERATURE = flags.DEFINE_float("temperature", None, "Above 0; 1 = as is.")
ASPECT = flags.DEFINE_string(
  "aspect", None, "Width : height that the picture is cropped to."
)


def main(argv):
  from star_jax import commands

  if not 2 <= len(argv) <= 3:
    raise ValueError(
      f"Give a picture and at most one prompt, got {len(argv) - 1} arguments."
    )
  commands.edit_to_folder(
    *argv[1:],
    bundle=CKPT.value,
    text=TEXT.value,
    out=OUT.value,
    box=commands.read_box(BOX.value),
    mask=MASK.value,
    outpaint=OUTPAINT.value,
    count=COUNT.value,
    seed=SEED.value,
    cfg_scale=CFG_SCALE.value,
    top_k=TOP_K.value,
    top_p=TOP_P.value,
    temperature=TEMPERATURE.value,
    aspect=ASPECT.value,
  )


if __name__ == "__main__":
  run_main(main)
