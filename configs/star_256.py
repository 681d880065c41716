"""STAR at 256 px: published sizes, a recipe in the manner of VAR's.

Depth 16 (274M parameters) as written; `:d30` is the 1.68B model. AdamW
(0.9, 0.95), the lin0 schedule and 1e-4 per 256 images are VAR's
(arXiv 2404.02905); batch, steps and average are ours and have not been
compared with STAR's own runs.

  python launch/encode_dataset.py --config=configs/star_256.py \
    --config.text.path=stable-diffusion-2-1
  python launch/train.py --config=configs/star_256.py --workdir=runs/star_256 \
    --config.text.path=stable-diffusion-2-1

It needs a tokenizer of the same schedule in config.tokenizer_path, a folder of
captioned pictures, and the text encoder in a local folder of Hugging Face's
layout (text_encoder/ and tokenizer/ of Stable Diffusion 2.1 are enough). With
Flan-T5 XL: --config.text.name=t5 --config.text.max_tokens=120
--config.model.text_dim=2048. Expected: not run here; sizes are checked by shape
only.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import common
from configs.presets import PRESETS
from configs.star_scenes64 import cache, sampling

SIZES = {"": "star_d16", "d16": "star_d16", "d30": "star_d30"}


def get_config(arg: str | None = None) -> ConfigDict:
  size = SIZES.get(arg or "")
  runlocal = common.parse_arg(None if size else arg, also=tuple(SIZES)[1:])
  c = common.training("transformer")
  c.batch_size = 512
  c.num_steps = 250_000
  c.optimizer.schedule = "lin0"
  c.optimizer.learning_rate = 1e-4 * c.batch_size / 256
  c.optimizer.warmup_steps = c.num_steps // 50
  c.optimizer.ema_decay = 0.9999
  c.cond_drop_rate = 0.1
  c.scale_weights = ()
  c.model = ConfigDict(PRESETS["test" if runlocal else size])
  c.tokenizer_path = "runs/tokenizer_256/bundle"
  # Width 1024 belongs to the CLIP of Stable Diffusion 2.1.
  c.text = ConfigDict(dict(name="clip", max_tokens=77, path=""))
  c.data = "cache"
  c.data_options.size = (256, 256)
  c.cache = cache("data_cache/tokens_256")
  c.cache.source = "folder"
  c.sampling = sampling()
  if runlocal:
    common.shorten(c)
    c.data = "synthetic"
    c.sampling.prompts = c.sampling.prompts[:2]
  return c
