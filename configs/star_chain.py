"""From 64 over 128 to 256 px: the shipped model grown twice, in all shapes.

Rotary positions alone: a model of 64 px starts from the shipped weights without
their learned positions and learns nine shapes of pictures; growing then adds
nothing but rows of the level embedding, by the size of the map. The tokenizer
is the shipped one under larger schedules, with the same weights; on 32 scenes
of held-out combinations it reaches 28.0 dB at 64, 28.2 at 128 and 30.4 dB at
256 px, and 54 to 97% of the tokens of a scale are the same at 64 and 128 px. A
second scale of 32 x 32 would make 30.6 dB of the 28.2, at 2,389 tokens instead
of 1,365.

  python launch/grow_tokenizer.py --schedule=1,2,4,8,16,32 \
    --out=runs/chain_128_tokenizer
  python launch/grow_tokenizer.py --schedule=1,2,4,8,16,32,64 \
    --out=runs/chain_256_tokenizer
  for size in 64 128 256; do
    python launch/encode_dataset.py --config=configs/star_chain.py:$size
    python launch/train.py --config=configs/star_chain.py:$size \
      --workdir=runs/chain_$size
  done

Without an argument --config=configs/star_chain.py is the model of 64 px; at
128 and 256 px config.init_from is the run before. Controls of the same budget:
`64square` sees squares alone, `64axes` divides each axis by its own length (the
official coordinates), `128scratch` starts from nothing.

7.3M parameters; a step looks at 181, 277 and 525 of the 597, 1,365 and 5,461
tokens of a square. 8.7 GFLOP a picture at 64 px, 13.1 at 128 px: 20 and 14
pictures/s of two AMD EPYC cores, so that the 32,000 of 64 px take 30 minutes.
Expected: held-out loss 1.52 nats a token at 64 px, over eight shapes. At 128 px
(--config.cache.examples=15000 --config.num_steps=1400, an hour and fifty
minutes of one core) the grown model starts at 2.31 and ends at 1.24, a fresh
one goes from 7.63 to 1.49. At 256 px (--config.cache.examples=960
--config.num_steps=80, ten minutes) from 1.13 to 1.03. Curves and pictures are
in docs/high_resolution.md.
"""

from __future__ import annotations

import dataclasses

from ml_collections import ConfigDict

from configs import common, star_scenes64
from configs.presets import PRESETS
from star_jax.scales import ASPECTS


@dataclasses.dataclass(frozen=True)
class Stage:
  """What differs between the resolutions.

  schedule: of tokens of 4 px. tokenizer: bundle. parent: the run, or bundle,
  before. token_drop: see configs/common.py. examples: pictures in the token
  cache. aspects: shapes of pictures. rope_coords: of the model.
  """

  schedule: tuple[int, ...]
  tokenizer: str
  parent: str
  token_drop: dict
  batch_size: int
  num_steps: int
  learning_rate: float
  examples: int
  aspects: tuple[str, ...] = ("1:1", "16:9", "9:16")
  rope_coords: str = "longer_side"


STAGES = {
  "64": Stage(
    (1, 2, 4, 8, 16, 16),
    "star_jax/bundles/scenes64",
    "star_jax/bundles/scenes64",
    dict(way="rarity", tail=(64, 32)),  # 181 tokens of 597
    batch_size=32,
    num_steps=1_000,
    learning_rate=2e-3,
    examples=36_000,
    aspects=ASPECTS,
  ),
  "128": Stage(
    (1, 2, 4, 8, 16, 32),
    "runs/chain_128_tokenizer",
    "runs/chain_64",
    dict(way="rarity", tail=(96, 96)),  # 277 tokens of 1,365
    batch_size=32,
    num_steps=2_000,
    learning_rate=2e-3,
    examples=60_000,
  ),
  # Rarity compares all tokens of a scale with each other, too many here.
  "256": Stage(
    (1, 2, 4, 8, 16, 32, 64),
    "runs/chain_256_tokenizer",
    "runs/chain_128",
    dict(way="crop", sides=(10, 12, 14), edge=1),  # 525 tokens of 5,461
    batch_size=16,
    num_steps=2_000,
    learning_rate=2e-3,
    examples=12_000,
  ),
}
CONTROLS = {
  "64square": dataclasses.replace(STAGES["64"], aspects=()),
  "64axes": dataclasses.replace(STAGES["64"], rope_coords="checkpoint"),
  "128scratch": dataclasses.replace(STAGES["128"], parent=""),
}


def get_config(arg: str | None = None) -> ConfigDict:
  stages = STAGES | CONTROLS
  stage = stages.get(arg or "64")
  runlocal = common.parse_arg(None if stage else arg, also=tuple(stages))
  c = star_scenes64.get_config(arg if runlocal else None)
  if runlocal:
    c.model.position = "rope"
    return c
  c.batch_size = stage.batch_size
  c.num_steps = stage.num_steps
  c.optimizer.learning_rate = stage.learning_rate
  c.optimizer.ema_decay = 0.99
  c.token_drop = common.token_drop()
  c.token_drop.update(stage.token_drop)
  c.scale_weights = (4.0, 4.0, 2.0, *[1.0] * (len(stage.schedule) - 3))
  c.aspects = stage.aspects
  c.model = ConfigDict(model(stage))
  c.tokenizer_path = stage.tokenizer
  c.init_from = stage.parent
  c.grow = "side" if stage.parent else ""
  side = 4 * stage.schedule[-1]
  c.data_options.size = (side, side)
  shapes = "" if stage.aspects else "_square"
  c.cache.directory = f"data_cache/tokens_chain_{side}{shapes}"
  c.cache.source = "scenes"
  c.cache.examples = stage.examples
  return c


def model(stage: Stage) -> dict:
  """The shipped size, without learned positions."""
  return {
    **PRESETS["scenes64"],
    "schedule": stage.schedule,
    "position": "rope",
    "rope_coords": stage.rope_coords,
  }
