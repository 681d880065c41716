"""From 64 over 128 to 256 px: one small model grown twice, on scenes.

Rotary positions alone, so that growing adds nothing but rows of the level
embedding, by the side of the map. The tokenizer is the shipped one under larger
schedules, with the same weights; on 32 scenes of held-out combinations (8 at
256 px) it reaches 28.0 dB at 64, 28.2 at 128 and 29.8 dB at 256 px, and 54 to
97% of the tokens of a scale are the same at 64 and 128 px. A
second scale of 32 x 32 would make 30.6 dB of the 28.2, at 2,389 tokens instead
of 1,365.

  python launch/grow_tokenizer.py --schedule=1,2,4,8,16,32 \
    --out=runs/chain_128_tokenizer
  python launch/grow_tokenizer.py --schedule=1,2,4,8,16,32,64 \
    --out=runs/chain_256_tokenizer
  for size in 64 128 256; do
    python launch/cache_tokens.py --config=configs/star_chain.py:$size
    python launch/train.py --config=configs/star_chain.py:$size \
      --workdir=runs/chain_$size
  done

Without an argument, --config=configs/star_chain.py is the model of 64 px; at
128 and 256 px config.init_from is the run before.

3.1M parameters. GFLOP a picture: 3.5, 5.6 and 12.3, of 181, 277 and 525 of the
597, 1,365 and 5,461 tokens; at the 160 GFLOP/s that the shipped model reaches
on two AMD EPYC cores each run takes about an hour, beside its token cache.
Expected: not run here beyond two steps of each.
"""

from __future__ import annotations

import dataclasses

from ml_collections import ConfigDict

from configs import common, star_scenes64
from configs.presets import PRESETS


@dataclasses.dataclass(frozen=True)
class Stage:
  """What differs between the resolutions.

  schedule: of tokens of 4 px. tokenizer: bundle. parent: the run before.
  token_drop: see configs/common.py. examples: pictures in the token cache.
  """

  schedule: tuple[int, ...]
  tokenizer: str
  parent: str
  token_drop: dict
  batch_size: int
  num_steps: int
  learning_rate: float
  examples: int


STAGES = {
  "64": Stage(
    (1, 2, 4, 8, 16, 16),
    "star_jax/bundles/scenes64",
    "",
    dict(way="rarity", tail=(64, 32)),  # 181 tokens of 597
    batch_size=32,
    num_steps=5_000,
    learning_rate=4e-3,
    examples=100_000,
  ),
  "128": Stage(
    (1, 2, 4, 8, 16, 32),
    "runs/chain_128_tokenizer",
    "runs/chain_64",
    dict(way="rarity", tail=(96, 96)),  # 277 tokens of 1,365
    batch_size=32,
    num_steps=3_000,
    learning_rate=2e-3,
    examples=50_000,
  ),
  # Rarity compares all tokens of a scale with each other, too many here.
  "256": Stage(
    (1, 2, 4, 8, 16, 32, 64),
    "runs/chain_256_tokenizer",
    "runs/chain_128",
    dict(way="crop", sides=(10, 12, 14), edge=1),  # 525 tokens of 5,461
    batch_size=16,
    num_steps=3_000,
    learning_rate=2e-3,
    examples=20_000,
  ),
}


def get_config(arg: str | None = None) -> ConfigDict:
  stage = STAGES.get(arg or "64")
  runlocal = common.parse_arg(None if stage else arg, also=tuple(STAGES))
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
  c.model = ConfigDict(model(stage.schedule))
  c.tokenizer_path = stage.tokenizer
  c.init_from = stage.parent
  c.grow = "side" if stage.parent else ""
  side = 4 * stage.schedule[-1]
  c.data_options.size = (side, side)
  c.cache.directory = f"data_cache/tokens_chain_{side}"
  c.cache.source = "scenes"
  c.cache.examples = stage.examples
  return c


def model(schedule: tuple[int, ...]) -> dict:
  """Depth 4, width 192, for the codes of the shipped tokenizer."""
  return {
    **PRESETS["scenes64"],
    "schedule": schedule,
    "depth": 4,
    "width": 192,
    "num_heads": 3,
    "position": "rope",
  }
