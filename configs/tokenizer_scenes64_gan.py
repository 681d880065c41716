"""Stage 1 at 64 px with the full objective: pictures that look right.

The tokenizer of configs/tokenizer_scenes64.py, and beside its errors a
perceptual distance (VGG16-HED) and a patch discriminator from a third of the
run on. The networks of the losses never judge what comes out: it is measured
with EfficientNet-lite0 (docs/tokenizer.md).

  python launch/train.py --config=configs/tokenizer_scenes64_gan.py \
    --workdir=runs/tokenizer_scenes64_gan

`--config.init_from=star_jax/bundles/scenes64 --config.train_only=decoder` makes
a better decoder for the shipped model, no token of which changes. Two AMD EPYC
cores: not timed yet. Expected: not run yet.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import common, tokenizer_scenes64


def get_config(arg: str | None = None) -> ConfigDict:
  runlocal = common.parse_arg(arg)
  c = tokenizer_scenes64.get_config(arg)
  c.loss.update(perceptual=0.5, adversarial=0.3)
  c.adversary.discriminator.update(channels=32, layers=2)
  c.adversary.lecam = 0.01
  c.adversary.optimizer.learning_rate = 2e-4
  if runlocal:
    # Two of five groups of VGG16.
    c.perceptual.taps = 2
    c.adversary.discriminator.update(channels=16, layers=1, groups=16)
  else:
    c.adversary.start, c.adversary.ramp = 2_000, 500
  return c
