"""Loss against size and compute at small scale: docs/scaling.md.

  python launch/sweep.py --config=configs/scaling_law.py --plan
  python launch/sweep.py --config=configs/scaling_law.py --out=runs/scaling
  python launch/fit_scaling.py --results=runs/scaling/results.json

32 px scenes of one to three objects, a single pass over generated examples.
Every depth d is a STAR of width 16 d, d heads and drop path 0.1 d / 24 (VAR's
rule with narrower heads). A job is one size and seed: a run at a constant rate,
and at each budget a short cool-down that branches off it. A sweep that was
stopped goes on with the same command. `:runlocal` is three sizes for a few
steps.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import common, star_scenes64, tokenizer_ablations
from configs.data import options


def get_config(arg: str | None = None) -> ConfigDict:
  runlocal = common.parse_arg(arg)
  c = ConfigDict()
  c.kind = "scaling"
  c.training = training()
  c.tokenizer = tokenizer()
  c.sizes = (2, 3, 4, 5, 6, 8)  # depths; the largest is held out of the fits
  c.width_per_depth = 16
  c.drop_path_per_depth = 0.1 / 24
  c.seeds = (0, 1)
  # Of the longest run; a budget is a share of it.
  c.num_steps = 4_992
  c.fractions = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)
  c.cooldown = 0.2  # of the steps after warm-up, the last ones
  c.rates = rates()
  c.measure = ConfigDict(
    dict(
      batches=64,  # of new, held-out and seen examples each
      most_gap=0.01,  # of the loss of new examples over that of seen ones
    )
  )
  c.grid = grid()
  if runlocal:
    shorten(c)
  return c


def training() -> ConfigDict:
  """One run; the sweep sets size, steps, schedule, rate and seed."""
  c = common.training("transformer")
  c.optimizer.name = "muon"  # few steps: see docs/budget.md
  c.batch_size = 32
  c.eval_every = 0
  c.sample_every = 0
  c.keep_checkpoints = 1
  c.optimizer.warmup_steps = 50
  c.cond_drop_rate = 0.1
  c.scale_weights = ()
  c.model = ConfigDict(model())
  c.tokenizer_path = ""
  c.text = ConfigDict(dict(name="minilm-l6", max_tokens=40, path=""))
  c.data = "cache"
  c.data_options = scenes()
  c.cache = star_scenes64.cache("")
  c.cache.source = "scenes"
  c.cache.examples = 160_000
  # Of held-out combinations, and as many new scenes of trained ones.
  c.cache.heldout_examples = 4_096
  c.sampling = ConfigDict(
    dict(cfg_scale=2.0, top_k=0, top_p=0.95, temperature=1.0, prompts=())
  )
  return c


def model() -> dict:
  """What all sizes share."""
  tokens = tokenizer_ablations.get_config().tokenizer
  return {
    "schedule": tokens.schedule,
    "vocab_size": tokens.vocab_size,
    "code_dim": tokens.code_dim,
    "text_dim": 384,
    "rope_norm": 16.0,
  }


def scenes() -> ConfigDict:
  """So many scenes that chance repeats few: docs/scaling.md has the counts."""
  o = options()
  o.size = (32, 32)
  o.scenes.update(
    max_objects=3,
    held_count=0,
    lattice=8,
    tidy=0.0,
    background_share=1.0,
  )
  return o


def tokenizer() -> ConfigDict:
  """Stage 1 on the same scenes; scales (1, 2, 4, 8, 8), 149 tokens."""
  c = tokenizer_ablations.get_config()
  c.data_options = scenes()
  return c


def rates() -> ConfigDict:
  """How the learning rate of a size is chosen."""
  return ConfigDict(
    dict(
      # "mup": one rate, chosen at base_depth, carried to other widths by
      # star_jax/train/mup.py. "var": VAR's own, by depth and batch. "same".
      rule="mup",
      base_depth=4,
      # The best of these on new scenes, in runs of `fraction` with `seed`; a
      # single one is taken as it is.
      candidates=(5e-3, 1e-2, 2e-2, 4e-2),
      fraction=1 / 8,
      seed=100,
    )
  )


def grid() -> ConfigDict:
  """What launch/scaling_grid.py draws."""
  return ConfigDict(
    dict(
      seed=0,
      prompts=(
        "a red heart, on a white background",
        "a blue car left of a yellow dog, on a gray background",
        "a green apple above a purple star, on a pink background",
      ),
    )
  )


def shorten(c: ConfigDict) -> None:
  """Three sizes, a few steps of everything."""
  common.shorten(c.tokenizer)
  c.tokenizer.codebook.update(revive_every=5, init_batches=2, init_iterations=1)
  c.tokenizer.tokenizer.update(vocab_size=64, ch=32)
  c.training.model.vocab_size = 64
  c.training.batch_size = 4
  c.training.mesh.data = 1  # one device, however many there are
  c.training.checkpoint_every = 5
  c.training.log_every = 4
  c.training.optimizer.warmup_steps = 2
  c.training.cache.update(examples=256, heldout_examples=64, shard_examples=256)
  c.sizes = (1, 2, 3, 4)
  c.seeds = (0,)
  c.num_steps = 24
  c.fractions = (0.5, 1.0)
  c.rates.candidates = (1e-2,)
  c.measure.batches = 4
