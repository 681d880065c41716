"""Rejection sampling: draw several pictures a prompt, keep the best.

The "-re" rows of VAR's table 1 are such pictures, chosen by a classifier.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from PIL import Image

from star_jax.samples import Samples


class Scorer(Protocol):
  """Higher is better. `name` says in a protocol what the score is."""

  name: str
  __call__: Callable[[Sequence[Image.Image], Sequence[str]], np.ndarray]


class BestOf:
  """A pipeline whose every picture is the best of n.

  Whatever else a pipeline can do is done by the one inside.
  """

  def __init__(self, pipeline, scorer: Scorer, n: int):
    """Args: `n` at least 2."""
    self._pipeline, self._scorer, self._n = pipeline, scorer, n

  def __getattr__(self, name: str):
    return getattr(self._pipeline, name)

  def settings(self, **given) -> dict:
    """Those of the pipeline, and how pictures are chosen."""
    return {
      **self._pipeline.settings(**_without_choice(given)),
      "best_of": self._n,
      "score": self._scorer.name,
    }

  def sample_all(
    self, prompts: Sequence[str], seed: int = 0, **options
  ) -> Samples:
    """One picture a prompt; the first candidate is what the pipeline draws
    with this seed alone, so best of n is never worse than it by the score."""
    options = _without_choice(options)
    candidates, scores_nB = [], []
    for k in range(self._n):
      drawn = self._pipeline.sample_all(
        prompts, _candidate_seed(seed, k), **options
      )
      candidates.append(drawn)
      score = np.asarray(self._scorer(drawn.images, prompts), np.float64)
      if not np.isfinite(score).all():
        raise ValueError(
          f"The score {self._scorer.name} of some pictures is not finite."
        )
      scores_nB.append(score)
    best_B = np.argmax(scores_nB, axis=0)
    return Samples.joined([candidates[k].row(i) for i, k in enumerate(best_B)])


def _without_choice(options: dict) -> dict:
  return {k: x for k, x in options.items() if k not in ("best_of", "score")}


def _candidate_seed(seed: int, k: int) -> int:
  if k == 0:
    return seed
  return int(np.random.SeedSequence((seed, k)).generate_state(1)[0])
