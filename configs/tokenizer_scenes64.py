"""Stage 1 at 64 px: the image tokenizer of the shipped model.

Icons and generated scenes, L1 + L2 + codebook loss, no adversarial term.

  python launch/train.py --config=configs/tokenizer_scenes64.py \
    --workdir=runs/tokenizer_scenes64

Two AMD EPYC cores: 2.59 GFLOP a picture, 60-70 pictures/s, 25 minutes. The
shipped weights were made in three parts (docs/budget.md), 5,800 steps in all:
24.4 dB over the art of full-size held-out icons, 27.2 dB over the whole
picture, 82% of the codes in use (launch/evaluate.py --what=tokenizer). Expected
of the one run above: about the same; it was not run in one piece.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str | None = None) -> ConfigDict:
  runlocal = common.parse_arg(arg)
  c = common.training("tokenizer")
  c.batch_size = 16
  c.num_steps = 6_000
  c.eval_every = 500
  c.optimizer.learning_rate = 5e-4
  c.optimizer.weight_decay = 0.01
  c.optimizer.weight_decay_end = 0.01
  c.optimizer.ema_decay = 0.999
  c.data_options.mixture = ConfigDict(dict(icons=0.6, scenes=0.4))
  c.tokenizer = tokenizer()
  c.codebook = codebook()
  if runlocal:
    common.shorten(c)
    c.data = "synthetic"
    c.tokenizer.update(vocab_size=64, ch=32)
    c.codebook.update(revive_every=5, init_batches=2, init_iterations=1)
  return c


def tokenizer() -> ConfigDict:
  """64 px, 16 x 16 latent of 4 px patches, 2048 codes; 597 tokens an image.

  Features are principal components of the patches: a token is a local function
  of the picture, so that the same shape on the same background has the same
  tokens wherever it lies. Only the decoder sees the neighbours.
  """
  return ConfigDict(
    dict(
      schedule=(1, 2, 4, 8, 16, 16),
      vocab_size=2048,
      code_dim=48,
      ch=128,
      ch_mult=(1,),
      num_res_blocks=2,
      dropout=0.0,
      attention=False,
      patch_size=4,
      linear_path=True,
      deep_encoder=False,
      quant_conv_ks=3,
      quant_resi=0.0,  # no phi
      share_quant_resi=4,
      growth="nearest",
      rate_weight=(0.003, 0.01, 0.02, 0.03, 0.015, 0.015),
      beta=0.25,
      using_znorm=False,
      vq_loss_reduction="mean",
      dtype="float32",
    )
  )


def codebook() -> ConfigDict:
  """How the codebook starts and is kept in use."""
  return ConfigDict(
    dict(
      # Batches whose patches make the linear path and the first codebook.
      init_batches=64,
      init_iterations=8,  # of k-means
      usage_decay=0.99,  # of the running mean of hits
      revive_every=200,  # steps; 0: never
      revive_below=0.02,  # share of the uniform expectation
      revive_until=0.7,  # share of the run
      rate_every=50,  # steps between two looks at how common codes are
      rate_from=0.7,  # share of the run without them
      # Of config.loss.entropy, in units of the mean squared distance.
      entropy_temperature=0.01,
    )
  )
