"""The two image tokenizers of the ablations: 32 px, 8 x 8 latent.

  python launch/train.py --config=configs/tokenizer_ablations.py \
    --workdir=runs/ablations/tokenizers/multi
  python launch/train.py --config=configs/tokenizer_ablations.py:single \
    --workdir=runs/ablations/tokenizers/single

`multi` has the scales (1, 2, 4, 8, 8), `single` the last one alone: the same
encoder, codebook size, pictures and steps, for the raster-order baseline.
launch/sweep.py runs both.
Two AMD EPYC cores: 0.65 GFLOP a picture, 300 pictures/s, 3 minutes each beside
little else. Expected: 28.2 dB over the whole picture for either, on held-out
scenes.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import common, tokenizer_scenes64

SINGLE = "single"
SCHEDULES = {"multi": (1, 2, 4, 8, 8), SINGLE: (8,)}
# Nats of code length against squared distance, for each scale.
RATES = {"multi": (0.003, 0.01, 0.02, 0.03, 0.015), SINGLE: (0.03,)}


def get_config(arg: str | None = None) -> ConfigDict:
  kind = SINGLE if arg == SINGLE else "multi"
  runlocal = kind == "multi" and common.parse_arg(arg, also=(SINGLE,))
  c = tokenizer_scenes64.get_config("runlocal" if runlocal else None)
  c.num_steps = 20 if runlocal else 3_000
  c.optimizer.schedule = "lin0"
  c.eval_every = c.sample_every = 10 if runlocal else 1_000
  c.data = "synthetic" if runlocal else "scenes"
  scenes32(c.data_options)
  c.tokenizer.schedule = SCHEDULES[kind]
  c.tokenizer.rate_weight = RATES[kind]
  return c


def scenes32(options: ConfigDict) -> ConfigDict:
  """Scenes of one or two objects in one drawing style, on 32 px."""
  options.size = (32, 32)
  options.scenes.max_objects = 2
  options.scenes.styles = ("twemoji",)
  options.scenes.default_style = "twemoji"
  options.scenes.style_share = 0.0
  return options
