"""What each part of a tokenizer's objective is worth, at equal compute.

  python launch/sweep.py --config=configs/tokenizer_arms.py \
    --out=runs/tokenizer_arms
  python launch/sweep.py --config=configs/tokenizer_arms.py --plan
  python launch/sweep.py --config=configs/tokenizer_arms.py:runlocal \
    --out=/tmp/arms

The tokenizer of the shipped model (configs/tokenizer_scenes64.py). Every run
may spend `budget_tflops`, counted on the program of the step, so that what
costs more a step gets fewer steps. Three seeds for the main comparison, squared
error alone against the full objective, one for the arms between. Protocol and
results: docs/tokenizer.md. Expected: about half an hour a run on two AMD EPYC
cores, not run yet. `:runlocal` is two arms for a few steps.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import common, evaluate, tokenizer_scenes64_gan

NONE = {"loss.perceptual": 0.0, "loss.adversarial": 0.0}
SEEDS = (0, 1, 2)
# Name, title, what differs from the full objective, seeds.
ARMS = (
  ("mse", "squared error", {**NONE, "loss.l1": 0.0}, SEEDS),
  ("full", "+ L1, perceptual, adversarial", {}, SEEDS),
  ("pixels", "+ L1", NONE, SEEDS[:1]),
  ("perceptual", "+ L1, perceptual", {"loss.adversarial": 0.0}, SEEDS[:1]),
)


def get_config(arg: str | None = None) -> ConfigDict:
  runlocal = common.parse_arg(arg)
  c = ConfigDict()
  c.kind = "tokenizers"
  c.training = tokenizer_scenes64_gan.get_config(arg)
  c.training.keep_checkpoints = 1
  c.arms = tuple(
    dict(name=name, title=title, changes=dict(changes), seeds=seeds)
    for name, title, changes, seeds in ARMS
  )
  c.reference = "mse"
  c.budget_tflops = 200.0  # a run
  c.start_share = 1 / 3  # of a run without its discriminator
  c.measure = evaluate.get_config()
  if runlocal:
    c.arms = tuple(dict(arm, seeds=(0,)) for arm in c.arms[:2])
    c.budget_tflops = 0.05
    c.measure.update(n=16, batch_size=8)
    c.measure.tokenizer.update(num_scale_pictures=8, data="synthetic")
  return c
