"""STAR at 512 px: the published 1.68B model, grown from 256 px.

Sizes, batch, rates and the RoPE constants are the authors' (STAR-T2I,
configs/config_d30_512.json): depth 30, batch 192, AdamW at 5e-5 whatever the
batch, lin0, no decay of the weight decay, clipping at 2. The schedule has as
many scales as that of 256 px and starts from its levels by index, as
utils/weights.py there does. How many steps their five epochs are is not
published: steps and average are ours.

  python launch/grow_tokenizer.py --ckpt=runs/tokenizer_256/bundle \
    --schedule=512 --out=runs/tokenizer_512/bundle
  python launch/encode_dataset.py --config=configs/star_512.py \
    --config.text.path=stable-diffusion-2-1
  python launch/train.py --config=configs/star_512.py \
    --config.text.path=stable-diffusion-2-1 --config.init_from=runs/star_256

Expected: official, not run here; sizes are checked by shape only.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import common, star_256
from configs.presets import PRESETS


def get_config(arg: str | None = None) -> ConfigDict:
  runlocal = common.parse_arg(arg)
  c = star_256.get_config(arg if runlocal else "d30")
  if runlocal:
    return c
  c.batch_size = 192
  c.num_steps = 100_000
  c.optimizer.learning_rate = 5e-5
  c.optimizer.warmup_steps = c.num_steps // 50
  c.init_from = "runs/star_256"
  c.grow = "index"
  c.model = ConfigDict(PRESETS["star_d30_512"])
  c.tokenizer_path = "runs/tokenizer_512/bundle"
  c.data_options.size = (512, 512)
  c.cache.directory = "data_cache/tokens_512"
  return c
