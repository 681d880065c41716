"""A tokenizer's training step: errors alone, perceptual loss, discriminator.

Command:
  python launch/benchmark.py --config=configs/benchmark/tokenizer_step.py \
    --out=results/tokenizer_step

The step of configs/tokenizer_scenes64_gan.py after its discriminator came in,
one objective after the other in every round; each adds to the one before it.
`:photos256` is that of configs/tokenizer_photos256.py, `:runlocal` a tiny one.
Pictures are synthetic, their reading is not timed. Time: not known, it was not
run.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import common, tokenizer_photos256, tokenizer_scenes64_gan

PHOTOS = "photos256"
# Name of what is new, what differs from the full objective.
CASES = (
  (
    "squared error",
    {"loss.l1": 0.0, "loss.perceptual": 0.0, "loss.adversarial": 0.0},
  ),
  ("perceptual loss", {"loss.l1": 0.0, "loss.adversarial": 0.0}),
  ("discriminator", {"loss.l1": 0.0}),
)


def get_config(arg: str | None = None) -> ConfigDict:
  photos = arg == PHOTOS
  runlocal = not photos and common.parse_arg(arg, also=(PHOTOS,))
  c = ConfigDict()
  c.kind = "tokenizer_step"
  c.rounds = 1 if runlocal else 9
  source = tokenizer_photos256 if photos else tokenizer_scenes64_gan
  c.training = source.get_config(common.RUNLOCAL if runlocal else None)
  c.training.data = "synthetic"
  c.cases = tuple(
    # A key with a dot in it is no key of a ConfigDict.
    dict(name=name, changes=changes)
    for name, changes in CASES
  )
  return c
