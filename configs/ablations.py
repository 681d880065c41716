"""What each part of STAR and VAR is worth: one small model, one change an arm.

  python launch/sweep.py --config=configs/ablations.py --out=runs/ablations
  python launch/sweep.py --config=configs/ablations.py:runlocal --out=/tmp/arms

32 px scenes of one or two objects. Every arm may spend `budget_tflops` on a
run: four runs of a fifth of that choose its learning rate, two of all of it are
measured. What is compared, on what, and what counts as a difference was written
down before the first run: docs/ablations.md. Two AMD EPYC cores: 10 to 15
minutes an arm, four hours for all; a sweep that was stopped goes on with the
same command. `:runlocal` is two arms for a few steps.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import common, star_scenes64, tokenizer_ablations
from configs.data import options

# VAR's transformer on a pooled text: its condition only makes the start token.
VAR = {
  "cross_attention": False,
  "position": "absolute",
  "attn_l2_norm": False,
}
RASTER = {**VAR, "prediction": "token", "schedule": (8,)}

# Name, title, what differs from `model()`, tokenizer.
ARMS = (
  ("star", "STAR", {}, "multi"),
  (
    "no_cross",
    "without cross-attention",
    {"cross_attention": False},
    "multi",
  ),
  ("absolute", "absolute positions", {"position": "absolute"}, "multi"),
  ("sinusoidal", "sinusoidal positions", {"position": "sinusoidal"}, "multi"),
  ("plain_rope", "RoPE, not normalised", {"rope_norm": -1.0}, "multi"),
  (
    "paper_coords",
    "RoPE with the paper's coordinates",
    {"rope_coords": "paper"},
    "multi",
  ),
  ("no_level", "without level embedding", {"lvl_embed": False}, "multi"),
  ("no_qk_norm", "without QK norm", {"attn_l2_norm": False}, "multi"),
  ("no_logit_norm", "without logit norm", {"logit_norm": False}, "multi"),
  ("ar", "AR, raster order", RASTER, "single"),
  ("flat_ar", "AR, flattened scales", {**VAR, "prediction": "token"}, "multi"),
  ("var", "VAR", VAR, "multi"),
  ("var_adaln", "VAR + AdaLN", {**VAR, "adaptive_norm": "block"}, "multi"),
  (
    "var_qk_norm",
    "VAR + AdaLN + QK norm",
    {**VAR, "adaptive_norm": "block", "attn_l2_norm": True},
    "multi",
  ),
  (
    "var_large",
    "VAR + AdaLN + QK norm, larger",
    {
      **VAR,
      "adaptive_norm": "block",
      "attn_l2_norm": True,
      "depth": 6,
      "width": 192,
    },
    "multi",
  ),
)

# How pictures are drawn: VAR's own values, its top-k of 900 scaled to our V.
PLAIN = {"cfg_scale": 0.0, "top_k": 0, "top_p": 1.0}
TOP_K = {"cfg_scale": 0.0, "top_k": 450, "top_p": 0.95}
FULL = {"cfg_scale": 4.0, "top_k": 450, "top_p": 0.95}
DRAWS = {"plain": PLAIN, "top_k": TOP_K, "cfg": {**PLAIN, "cfg_scale": 4.0},
         "full": FULL}  # fmt: skip

# Rows of the tables: title, arm, draw.
ONE_LESS = (
  *((title, name, "full") for name, title, _, _ in ARMS[:9]),
  ("without guidance", "star", "top_k"),
  ("without top-k and top-p", "star", "cfg"),
  ("without all three", "star", "plain"),
)
LADDER = (
  ("AR, raster order", "ar", "plain"),
  ("AR, flattened scales", "flat_ar", "plain"),
  ("VAR", "var", "plain"),
  ("+ AdaLN", "var_adaln", "plain"),
  ("+ top-k, top-p", "var_adaln", "top_k"),
  ("+ guidance", "var_adaln", "full"),
  ("+ QK norm", "var_qk_norm", "full"),
  ("+ scale", "var_large", "full"),
)
# Differences are to the "first" row or to the row "before".
TABLES = (
  dict(title="STAR, one part less", rows=ONE_LESS, against="first"),
  dict(title="VAR's ladder", rows=LADDER, against="before"),
)


def get_config(arg: str | None = None) -> ConfigDict:
  runlocal = common.parse_arg(arg)
  c = ConfigDict()
  c.kind = "transformers"
  c.training = training()
  c.arms = tuple(
    dict(name=name, title=title, model=dict(changes), tokenizer=tokenizer)
    for name, title, changes, tokenizer in ARMS
  )
  c.tables = TABLES
  c.tokenizers = ConfigDict(
    dict(
      multi=tokenizer_ablations.get_config(),
      single=tokenizer_ablations.get_config(tokenizer_ablations.SINGLE),
    )
  )
  # Cached examples; no run sees one twice.
  c.examples = ConfigDict(dict(multi=25_000, single=50_000))
  c.budget_tflops = 20.0
  c.learning_rates = (3e-3, 6e-3, 1.2e-2, 2.4e-2)
  c.probe_share = 0.2  # of the budget, for one learning rate
  c.probe_seed = 100
  c.seeds = (0, 1)  # the same two in every arm
  c.measure = measure()
  if runlocal:
    shorten(c)
  return c


def training() -> ConfigDict:
  """One run; the sweep sets steps, learning rate, seed and where files are."""
  c = common.training("transformer")
  c.optimizer.name = "muon"  # few steps: see docs/budget.md
  c.batch_size = 16
  c.eval_batches = 32
  c.sample_every = 0
  c.keep_checkpoints = 1
  c.optimizer.schedule = "lin0"
  c.optimizer.warmup_steps = 50
  c.cond_drop_rate = 0.1
  c.scale_weights = ()
  c.model = ConfigDict(model())
  c.tokenizer_path = ""
  c.text = ConfigDict(dict(name="minilm-l6", max_tokens=24, path=""))
  c.data = "cache"
  c.data_options = tokenizer_ablations.scenes32(options())
  c.cache = star_scenes64.cache("")
  c.cache.source = "scenes"
  c.cache.heldout_examples = 1_536
  c.cache.shard_examples = 5_000
  c.sampling = ConfigDict(dict(temperature=1.0, prompts=(), **FULL))
  return c


def model() -> dict:
  """STAR with all its parts, small."""
  tokens = tokenizer_ablations.get_config().tokenizer
  return {
    "schedule": tokens.schedule,
    "vocab_size": tokens.vocab_size,
    "code_dim": tokens.code_dim,
    "depth": 4,
    "width": 128,
    "num_heads": 4,
    "text_dim": 384,
    "rope_norm": 16.0,
    "drop_path_rate": 0.0,
  }


def measure() -> ConfigDict:
  """What the finished runs are measured on."""
  c = ConfigDict()
  # Held-out examples that the choice of a learning rate did not see: those
  # behind the first training.eval_batches batches.
  c.likelihood_examples = 1_024
  c.samples = 512
  c.scored = 256  # of them, by the matcher
  c.references = 2_048  # held-out pictures that KID compares with
  c.batch_size = 64
  c.seed = 1  # of the held-out scenes
  c.temperature = 1.0
  c.draws = ConfigDict(DRAWS)
  c.timing_repeats = 5
  c.timing_batch = 16
  c.art_dir = ""
  return c


def shorten(c: ConfigDict) -> None:
  """Two arms, a few steps of everything."""
  c.arms = tuple(arm for arm in c.arms if arm["name"] in ("star", "ar"))
  rows = (("STAR", "star", "full"), ("AR", "ar", "plain"))
  c.tables = (dict(title="Two arms", rows=rows, against="first"),)
  for tokenizer in c.tokenizers.values():
    common.shorten(tokenizer)
    tokenizer.codebook.update(revive_every=5, init_batches=2, init_iterations=1)
    tokenizer.tokenizer.update(vocab_size=64, ch=32)
  c.training.model.vocab_size = 64
  c.training.eval_batches = 2
  c.training.cache.update(heldout_examples=64, shard_examples=256)
  c.examples.update(multi=1_024, single=1_024)
  c.budget_tflops = 0.2
  c.learning_rates = c.learning_rates[:2]
  c.seeds = (0,)
  for draw in c.measure.draws.values():
    draw.top_k = min(draw.top_k, 16)
  c.measure.update(
    likelihood_examples=32,
    samples=16,
    scored=16,
    references=64,
    timing_repeats=1,
  )
