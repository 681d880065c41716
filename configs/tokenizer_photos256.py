"""Stage 1 on a folder of photographs: the official layout, a tenth as wide.

  python launch/train.py --config=configs/tokenizer_photos256.py \
    --config.data_options.folder.path=photos --workdir=runs/photos256

The folder holds pictures, in folders of its own if you like; captions are not
needed. Each file is one photograph: its crops are all trained on or all held
out (15%, by a hash of the name). 256 px, 16 pixels a position, ten scales, 1024
codes; the full objective, the discriminator from half of the run on. Two AMD
EPYC cores: not timed yet. Expected: not run yet.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import common, tokenizer_256, tokenizer_scenes64


def get_config(arg: str | None = None) -> ConfigDict:
  runlocal = common.parse_arg(arg)
  c = tokenizer_256.get_config(arg)
  c.grow = ""
  if runlocal:
    return c
  c.batch_size = 4
  c.num_steps = 2_000
  c.log_every = 20
  c.eval_every = c.sample_every = c.checkpoint_every = 250
  c.optimizer.learning_rate = 5e-4
  c.optimizer.warmup_steps = 100
  c.optimizer.ema_decay = 0.995
  c.loss.update(perceptual=0.5, adversarial=0.3)
  c.adversary.start, c.adversary.ramp = c.num_steps // 2, 200
  c.adversary.discriminator.channels = 32
  c.adversary.optimizer.learning_rate = 2e-4
  c.adversary.optimizer.warmup_steps = 0
  c.tokenizer.update(ch=16, vocab_size=1024, dtype="float32")
  c.codebook = tokenizer_scenes64.codebook()
  c.codebook.update(init_batches=32, revive_every=100)
  c.data_options.folder.heldout_share = 0.15
  return c
