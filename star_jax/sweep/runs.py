"""The training runs of a sweep, each in a folder of its own.

  OUT/tokenizers/NAME       stage 1
  OUT/tokens/NAME/          token caches
  OUT/arms/ARM/probe-LR     short runs, one a learning rate
  OUT/arms/ARM/seed-N       what is measured

A run that is finished is kept, one that was stopped goes on.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
from ml_collections import ConfigDict

from star_jax.data.cache_layout import MANIFEST
from star_jax.metrics.report import read_json
from star_jax.sweep.plan import Arm
from star_jax.train.build_cache import build_cache
from star_jax.train.logging import read_metrics
from star_jax.train.loop import train_and_evaluate
from star_jax.train.task import BUNDLE


class Stopped(Exception):
  """A signal asked a run to stop; its name is the message."""


@dataclasses.dataclass(frozen=True)
class Sweep:
  """config: see configs/ablations.py. out: the folder of everything."""

  config: ConfigDict
  out: Path

  def bundle(self, arm: Arm, seed: int) -> Path:
    """Where a finished run has written its model."""
    return self._arm(arm) / f"seed-{seed}" / BUNDLE

  def tokenizer(self, name: str) -> Path:
    """The folder of a tokenizer's run."""
    return self.out / "tokenizers" / name

  def tokens(self, name: str) -> Path:
    """The folder of a tokenizer's token caches."""
    return self.out / "tokens" / name

  def prepare(self) -> None:
    """Trains the tokenizers and fills the token caches.

    Raises:
      Stopped: a signal came.
    """
    for name, config in self.config.tokenizers.items():
      train_run(config, self.tokenizer(name))
      for split in ("train", "heldout"):
        manifest = read_json(self.tokens(name) / split / MANIFEST)
        if manifest is None or not manifest["complete"]:
          build_cache(self._training(name), (split,))

  def learning_rate(self, arm: Arm) -> tuple[float, dict[str, float]]:
    """The best of the config's, and the loss that each reached.

    The losses are of the first batches of the held-out cache, which nothing
    else is measured on.
    """
    config, losses = self.config, {}
    for rate in config.learning_rates:
      workdir = self._arm(arm) / f"probe-{rate:g}"
      losses[rate] = self._run(
        arm, workdir, rate, arm.probe_steps, config.probe_seed
      )
    best = min(losses, key=losses.get)
    return best, {f"{rate:g}": loss for rate, loss in losses.items()}

  def train(self, arm: Arm, rate: float, seed: int) -> float:
    """A run with the whole budget; its loss, as above."""
    workdir = self._arm(arm) / f"seed-{seed}"
    return self._run(arm, workdir, rate, arm.num_steps, seed)

  def _arm(self, arm: Arm) -> Path:
    return self.out / "arms" / arm.name

  def _training(self, tokenizer: str) -> ConfigDict:
    """The config of stage 2 on a tokenizer."""
    config = self.config.training.copy_and_resolve_references()
    config.tokenizer_path = str(self.tokenizer(tokenizer) / BUNDLE)
    config.cache.directory = str(self.tokens(tokenizer))
    config.cache.examples = self.config.examples[tokenizer]
    return config

  def _run(
    self, arm: Arm, workdir: Path, rate: float, steps: int, seed: int
  ) -> float:
    config = self._training(arm.tokenizer)
    config.model = ConfigDict(arm.model.to_dict())
    config.num_steps = config.eval_every = steps
    config.seed = seed
    config.optimizer.learning_rate = rate
    train_run(config, workdir)
    return heldout_loss(workdir)


def train_run(config: ConfigDict, workdir: Path) -> None:
  """Trains unless the run is finished."""
  if (workdir / BUNDLE).exists():
    return
  print(f"\n== {workdir}", flush=True)
  summary = train_and_evaluate(config, workdir)
  # Every arm compiles programs of its own, which nobody needs again.
  jax.clear_caches()
  if summary["exported"] is None:
    raise Stopped(summary["stopped"])


def heldout_loss(workdir: Path) -> float:
  """The last held-out loss that a run has logged, nats a token."""
  rows = [r for r in read_metrics(workdir) if r["split"] == "heldout"]
  if not rows:
    raise ValueError(f"The run in {workdir} has logged no held-out loss.")
  return float(rows[-1]["loss"])
