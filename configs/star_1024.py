"""STAR at 1024 px: the published 1.68B model, grown from 512 px.

Sizes, batch, rates and the RoPE constants are the authors' (STAR-T2I,
configs/config_d30_1024.json): depth 30, batch 64, AdamW at 2e-5, lin0, and a
step that looks at 8,800 of the 9,451 tokens, the others dropped at random from
the last scale. The levels of the ten scales of 512 px become the first ten of
fourteen, as utils/weights.py there does. How many steps their two epochs are is
not published: steps and average are ours.

  python launch/grow_tokenizer.py --ckpt=runs/tokenizer_512/bundle \
    --schedule=1024 --out=runs/tokenizer_1024/bundle
  python launch/encode_dataset.py --config=configs/star_1024.py \
    --config.text.path=stable-diffusion-2-1
  python launch/train.py --config=configs/star_1024.py \
    --config.text.path=stable-diffusion-2-1 --config.init_from=runs/star_512

Nested squares instead, about half of the tokens (the sides are those of a line
that the authors left commented out): --config.token_drop.way=crop
--config.token_drop.tokens=0 "--config.token_drop.sides=(31,26)". Expected:
official, not run here; sizes are checked by shape only.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import common, star_512
from configs.presets import PRESETS


def get_config(arg: str | None = None) -> ConfigDict:
  runlocal = common.parse_arg(arg)
  c = star_512.get_config(arg)
  if runlocal:
    # 24 of the 30 tokens of the tiny model.
    c.token_drop.update(way="random", tokens=24)
    return c
  c.batch_size = 64
  c.num_steps = 50_000
  c.optimizer.learning_rate = 2e-5
  c.optimizer.warmup_steps = c.num_steps // 50
  c.token_drop.update(way="random", tokens=8_800)
  c.init_from = "runs/star_512"
  c.model = ConfigDict(PRESETS["star_d30_1024"])
  c.tokenizer_path = "runs/tokenizer_1024/bundle"
  c.data_options.size = (1024, 1024)
  c.cache.directory = "data_cache/tokens_1024"
  return c
