"""Stage 1 at the official size: VAR's tokenizer, trained by our recipe.

Layout: ch 160, 4096 codes of 32 channels, 16 pixels a position, ten scales at
256 px (`vae_ch160v4096z32`, 109M parameters). VAR published the weights but no
recipe for them; ours is VQGAN's (arXiv 2012.09841) with the losses of VAR's
equation 5 and has not been compared with theirs.

  python launch/train.py --config=configs/tokenizer_256.py \
    --config.data_options.folder.path=photos --workdir=runs/tokenizer_256

`:512` and `:1024` fine-tune a trained one, official ones among them, to the
schedules of VAR and STAR:

  python launch/train.py --config=configs/tokenizer_256.py:512 \
    --config.init_from=bundles/var_d16 --workdir=runs/tokenizer_512 \
    --config.data_options.folder.path=photos

with `--config.train_only=decoder` (no token changes) or `quantizer`. Expected:
not run here; sizes are checked by shape only.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import common, tokenizer_scenes64
from configs.presets import TOKENIZERS

# Schedule, side in pixels, batch, phi that scales of a longer schedule use.
SIZES = {
  "256": (256, 256, ""),
  "512": (512, 64, "position"),
  "1024": (1024, 16, "official"),
}


def get_config(arg: str | None = None) -> ConfigDict:
  name = arg if arg in SIZES else "256"
  runlocal = arg not in SIZES and common.parse_arg(arg, also=tuple(SIZES))
  side, batch, grow = SIZES[name]
  c = common.training("tokenizer")
  c.batch_size = batch
  c.num_steps = 250_000 if name == "256" else 50_000
  c.grow = grow
  c.eval_every = c.sample_every = c.checkpoint_every = 5_000
  c.optimizer.schedule = "lin"
  c.optimizer.learning_rate = 1e-4
  c.optimizer.warmup_steps = 5_000
  c.optimizer.beta1, c.optimizer.beta2 = 0.5, 0.9
  c.optimizer.ema_decay = 0.9999
  c.loss.update(perceptual=1.0, adversarial=0.5)
  c.adversary.start, c.adversary.ramp = c.num_steps // 10, 5_000
  c.adversary.lecam = 0.001
  c.adversary.optimizer.schedule = "lin"
  c.tokenizer = official(name)
  c.codebook = tokenizer_scenes64.codebook()
  c.codebook.update(init_batches=4, revive_every=1_000)
  c.data = "folder"
  c.data_options.size = (side, side)
  c.data_options.folder.update(captions=False, flip=True)
  # Of the exported weights: that of your pictures.
  c.licence = "none stated"
  if runlocal:
    common.shorten(c)
    c.data, c.data_options.size = "synthetic", (32, 32)
    c.tokenizer = ConfigDict(c.tokenizer.to_dict() | dict(schedule=(1, 2)))
    c.tokenizer.update(vocab_size=64, ch=8)
    c.perceptual.taps = 2
    c.adversary.discriminator.update(channels=16, layers=1, groups=16)
    c.codebook.update(revive_every=5, init_batches=2, init_iterations=1)
  return c


def official(schedule: str) -> ConfigDict:
  """The layout of the official weights, in bfloat16 but for its quantizer."""
  values = dict(TOKENIZERS["vae_ch160"], schedule=schedule)
  # The authors' list for 14 scales has a phi for each.
  if schedule == "1024":
    values["share_quant_resi"] = 14
  return ConfigDict(values | dict(dtype="bfloat16"))
