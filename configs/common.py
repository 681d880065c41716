"""What every training config shares: each default is written here, once."""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import data

RUNLOCAL = "runlocal"


def parse_arg(arg: str | None, also: tuple[str, ...] = ()) -> bool:
  """True for `--config=configs/x.py:runlocal`.

  Args:
    arg: what follows the colon.
    also: other arguments that the file reads itself, for the message.

  Raises:
    ValueError: any other argument.
  """
  if arg in (None, ""):
    return False
  if arg == RUNLOCAL:
    return True
  raise ValueError(
    f"Unknown config argument {arg!r}; accepted after the colon:"
    f" {', '.join((RUNLOCAL, *also))}."
  )


def training(stage: str) -> ConfigDict:
  """The keys of the loop and of the optimizer; files set what differs."""
  c = ConfigDict()
  c.stage = stage  # "tokenizer", "transformer" or "refine"
  c.seed = 0
  c.batch_size = 32  # over all devices
  # Parts of a batch that a step looks at one after the other, their gradients
  # averaged: less memory for the same batch.
  c.accumulate = 1
  # Most tokens of a picture whose logits are there at once; 0: all.
  c.loss_tokens = 2048
  c.num_steps = 10_000
  # Workdir of a finished run whose parameters this run starts from; with grow
  # also the folder of a bundle.
  c.init_from = ""
  # How it grows if that run has another schedule, "index" or "side"; empty: it
  # may not. See star_jax/train/grow.py.
  c.grow = ""

  # Steps in a row without a finite loss and gradient that change nothing and
  # are only counted; one more stops the run.
  c.max_skipped = 5

  c.mesh = mesh()
  c.log_every = 50
  c.eval_every = 1000  # 0: never
  c.eval_batches = 8  # held-out batches per evaluation
  c.sample_every = 1000  # 0: never
  c.checkpoint_every = 500
  c.keep_checkpoints = 2  # the newest
  # Beside them, those of the lowest held-out loss. Checkpoints of steps without
  # an evaluation, or saved by a signal in the middle of one, are never among
  # them.
  c.keep_best = 0
  c.async_checkpoints = True

  c.optimizer = optimizer()
  c.data = "mixture"
  c.data_options = data.options()
  # Metrics of the log that are cried out when their mean since the last row
  # leaves (least, most), this many steps after its first row.
  c.alarms = ConfigDict()
  c.alarm_patience = 500
  if stage == "tokenizer":
    c.update(tokenizer_objective())
  if stage == "transformer":
    c.progressive = progressive()
    c.token_drop = token_drop()
    # Of tokens that are bits: most bits of a sample that are flipped in what it
    # reads, its targets then correct them (Infinity, arXiv 2412.04431, takes
    # 0.3); needs pictures, not a token cache. 0: none.
    c.bit_flip = 0.0
  if stage != "tokenizer":
    # "xla", "splash" (TPU) or "cudnn" (GPU), equal to rounding; "auto": what is
    # best on the device. See star_jax/model/attention_backends.py.
    c.attention = "auto"
    # Shapes of pictures to train on, such as ("1:1", "16:9"), each batch of
    # one; (): the tokenizer's own.
    c.aspects = ()
  # Of the exported weights.
  c.licence = "CC BY-SA 4.0; the art they were trained on is listed in NOTICE."
  return c


def tokenizer_objective() -> ConfigDict:
  """What the image tokenizer is trained for; see train/tokenizer_task.py."""
  c = ConfigDict()
  # What is trained: "all", "decoder" (no token changes) or "quantizer"; the
  # rest stays as config.init_from has it.
  c.train_only = "all"
  # Weights of the parts. What has the weight 0 is not computed.
  c.loss = ConfigDict(
    dict(
      l1=0.5,
      l2=1.0,
      vq=1.0,
      perceptual=0.0,
      adversarial=0.0,
      entropy=0.0,
    )
  )
  c.perceptual = perceptual()
  c.adversary = adversary()
  # A collapse of the codebook; a game that one side has won (the hinge loss is
  # 1 for a discriminator that knows nothing, 0 for one that nothing fools).
  c.alarms = ConfigDict(
    dict(codebook_used=(0.1, 1.0), discriminator_loss=(0.02, 0.995))
  )
  return c


def perceptual() -> ConfigDict:
  """See star_jax/perceptual/distance.py."""
  return ConfigDict(
    dict(distance="vgg16-hed", trunk_path="", heads_path="", taps=5)
  )


def adversary() -> ConfigDict:
  """The discriminator and how it is trained."""
  a = ConfigDict()
  # See star_jax/adversarial/discriminator.py.
  a.discriminator = ConfigDict(
    dict(
      kind="patch",  # or "efficientnet", "dino": heads on frozen features
      channels=64,
      layers=3,
      norm="",
      groups=32,
      taps=(),
      input_size=0,
      weights_path="",
    )
  )
  a.loss = "hinge"  # or "nonsaturating"
  # Step that it comes in at, and in how many more it counts fully for the
  # tokenizer. Before, nothing of it is computed.
  a.start = 1000
  a.ramp = 500
  # Weight by the gradients of the last layer of the decoder, as in VQGAN.
  a.adaptive = True
  a.most_adaptive = 1e4
  a.adaptive_eps = 1e-4
  a.lecam = 0.0  # weight of the LeCam regularisation
  a.lecam_decay = 0.99
  a.r1 = 0.0  # weight of the gradient penalty, in every step
  # See star_jax/adversarial/augment.py; all 0: none.
  a.augment = ConfigDict(
    dict(
      brightness=1.0,
      saturation=1.0,
      contrast=1.0,
      translation=0.125,
      cutout=0.5,
      probability=1.0,
    )
  )
  a.optimizer = optimizer()
  a.optimizer.beta1 = 0.5
  a.optimizer.beta2 = 0.9
  a.optimizer.weight_decay = 0.0
  a.optimizer.weight_decay_end = 0.0
  return a


def mesh() -> ConfigDict:
  """How devices share the work; see star_jax/sharding.py. -1: what is left."""
  m = ConfigDict()
  m.data = -1  # parts of a batch; parameters whole on each
  m.fsdp = 1  # parts of a batch and of the parameters
  m.sequence = 1  # parts of the tokens of a picture
  m.tensor = 1  # parts of heads and hidden channels; divides the heads
  return m


def progressive() -> ConfigDict:
  """Coarse scales first, as VAR's `pg`; see star_jax/train/progressive.py."""
  p = ConfigDict()
  p.share = 0.0  # of the run until all scales are trained; 0: from the start
  p.first_scale = 4  # index of the finest scale of the first stage
  # Until a scale that joined counts fully; VAR takes num_steps / 300.
  p.warmup_steps = 0
  return p


def token_drop() -> ConfigDict:
  """Which tokens a step leaves out; see star_jax/train/token_drop.py."""
  t = ConfigDict()
  t.way = ""  # "rarity", "random" or "crop"; empty: a step looks at all tokens
  # "rarity": how many tokens of each of the last scales a step looks at.
  t.tail = ()
  # "random": how many of all tokens a step looks at, and how many of the last
  # scales lose some (STAR at 1024 px: the last one of 14).
  t.tokens = 0
  t.last_scales = 1
  # "crop": side of the square that is kept of each of the last scales, and how
  # far the next one stays away from its border, in tokens.
  t.sides = ()
  t.edge = 3
  return t


def optimizer() -> ConfigDict:
  """AdamW as in VAR and STAR; see star_jax/train/optimizer.py."""
  o = ConfigDict()
  o.name = "adamw"  # or "muon": orthogonalised momentum inside the layers
  o.muon_beta = 0.95
  o.schedule = "cos"
  o.learning_rate = 1e-4
  o.warmup_steps = 500
  o.warmup_start = 0.005  # of the peak, at step 0
  o.final_ratio = 0.01  # of the peak, at the last step
  o.weight_decay = 0.05
  o.weight_decay_end = 0.05
  # Substrings of parameter paths without decay, beside the official ones.
  o.no_decay = ("codebook",)
  o.beta1 = 0.9
  o.beta2 = 0.95
  o.eps = 1e-8
  o.clip_norm = 2.0  # 0: off
  o.ema_decay = 0.0  # 0: no average
  o.ema_on_host = False  # keep it in the memory of the hosts, not the devices
  # Beginnings of parameter paths that are trained, such as "decoder"; empty:
  # all of them.
  o.train_only = ()
  return o


def shorten(c: ConfigDict) -> ConfigDict:
  """Few steps, so that `:runlocal` shows every part of a run in a minute."""
  c.batch_size = 4
  c.mesh.data = 1  # one device, however many there are
  c.num_steps = 20
  c.log_every = 5
  c.eval_every = 10
  c.eval_batches = 1
  c.sample_every = 20
  c.checkpoint_every = 10
  c.optimizer.warmup_steps = 5
  if c.stage == "tokenizer":
    c.adversary.start, c.adversary.ramp = 8, 4
    c.adversary.optimizer.warmup_steps = 5
  return c
