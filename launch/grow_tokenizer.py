"""Makes the tokenizer of a bundle one of another resolution, untrained.

  python launch/grow_tokenizer.py --schedule=1,2,4,8,16,32 \
    --out=runs/tokenizer_128/bundle
  python launch/grow_tokenizer.py --ckpt=bundles/var_d30 --schedule=1024 \
    --phi=official --images=a.jpg,b.jpg --out=runs/tokenizer_1024/bundle

The weights stay, the size of the pictures follows from the last grid. Prints
which phi each scale uses before and after, how many tokens of scales with equal
grids are the same at both resolutions, and the PSNR at both; the bundle it
writes (a tokenizer alone) is what config.tokenizer_path of a higher resolution
points to, and --ckpt of a next step. Without --images it measures on generated
scenes, which need the art (launch/prepare_data.py).
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from absl import flags

from star_jax.cli import run_main

_CKPT = flags.DEFINE_string("ckpt", None, "Bundle; the shipped one if absent.")
_SCHEDULE = flags.DEFINE_string(
  "schedule", None, "Grids: 256, 512, 1024, or sides such as 1,2,4 or 1,2x3."
)
_PHI = flags.DEFINE_string(
  "phi",
  "position",
  "The phi of each scale: by its place k / (K - 1), by the side of its map, or"
  " by the official list of 14: position, side or official.",
)
_N = flags.DEFINE_integer("n", 32, "Scenes to measure on; 0: none.", 0)
_IMAGES = flags.DEFINE_list("images", [], "Pictures to measure on instead.")
_OUT = flags.DEFINE_string("out", None, "Folder of the bundle to write.")


def main(argv):
  if len(argv) > 1:
    raise ValueError(f"Unexpected argument {argv[1]!r}; see --help.")
  for name, value in (("schedule", _SCHEDULE.value), ("out", _OUT.value)):
    if not value:
      raise ValueError(f"--{name} is needed; see --help.")
  from configs import data
  from star_jax.data.scenes import SceneConfig
  from star_jax.metrics.growth import grow_bundle
  from star_jax.scales import ScaleSchedule

  grow_bundle(
    _CKPT.value,
    ScaleSchedule.from_text(_SCHEDULE.value),
    _PHI.value,
    _OUT.value,
    n=_N.value,
    images=_IMAGES.value,
    scenes=SceneConfig(**data.options().scenes),
  )


if __name__ == "__main__":
  run_main(main)
