"""Scores of single pictures that `--best_of` may choose by.

scene       share of the caption's facts that are in the picture (offline)
classifier  log probability of the class by EfficientNet-lite0 (offline; for
            models of the 1,000 ImageNet classes)
clip        CLIP score with the caption (config.clip)
aesthetic   aesthetic head on CLIP-L (config.clip and config.aesthetic)
imagereward ImageReward with the caption (config.imagereward)
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from star_jax.data.scene_text import read_caption
from star_jax.evaluation.clip_score import load_aesthetic, load_clip_score
from star_jax.evaluation.image_reward import load_image_reward
from star_jax.metrics.efficientnet import WIDTHS, default_network
from star_jax.metrics.scene_match import SceneMatcher
from star_jax.metrics.scene_score import SceneScore, score_scene
from star_jax.metrics.sprite_bank import SpriteBank

# Scores of any picture, whose weights the config names.
WEIGHED = ("clip", "aesthetic", "imagereward")
NAMES = ("scene", "classifier", *WEIGHED)


def build_scorer(name: str, ctx):
  """A `best_of.Scorer` by name.

  Args:
    name: one of NAMES.
    ctx: `metrics.context.Context` of the model.

  Raises:
    ValueError: an unknown name, or weights that are missing.
  """
  if name == "scene":
    return SceneScorer(ctx.scenes("heldout"))
  if name == "classifier":
    return ClassifierScorer(ctx.bundle)
  if name in WEIGHED:
    return load_scorer(name, ctx.config)
  raise ValueError(f"--score is one of {', '.join(NAMES)}, got {name!r}.")


def load_scorer(name: str, config):
  """A `best_of.Scorer` that needs no model.

  Args:
    name: one of WEIGHED.
    config: configs/evaluate.py; says where the weights lie.

  Raises:
    ValueError: weights that are missing or of another network.
  """
  if name == "clip":
    return load_clip_score(config.clip)
  if name == "aesthetic":
    return load_aesthetic(config.clip, config.aesthetic)
  return load_image_reward(config.imagereward, config.imagereward_vocab)


class SceneScorer:
  """How much of its caption a scene shows."""

  name = "scene"

  def __init__(self, generator):
    self._matcher = SceneMatcher(
      SpriteBank(generator), generator.config.max_objects
    )

  def __call__(
    self, images: Sequence[Image.Image], prompts: Sequence[str]
  ) -> np.ndarray:
    """float64 [N] in [0, 1]."""
    out = []
    for image, prompt in zip(images, prompts):
      facts = read_caption(prompt)
      found = self._matcher.find(np.asarray(image), facts.style)
      out.append(share_of_facts(score_scene(facts, found)))
    return np.asarray(out, np.float64)


def share_of_facts(score: SceneScore) -> float:
  """Of all things that a caption states, its number of objects included."""
  facts = (*score.objects, *score.colours, *score.relations, score.count)
  return sum(facts) / len(facts)


class ClassifierScorer:
  """Log probability of the class that was asked for."""

  name = "classifier, EfficientNet-lite0"

  def __init__(self, bundle):
    """Raises ValueError for a model of other classes than ImageNet's."""
    classes = bundle.star_config.num_classes
    if classes != WIDTHS["logits"]:
      raise ValueError(
        "--score=classifier knows the 1,000 classes of ImageNet, this model has"
        f" {classes or 'none'}."
      )
    self._names = bundle.class_names

  def __call__(
    self, images: Sequence[Image.Image], prompts: Sequence[str]
  ) -> np.ndarray:
    """float64 [N], nats."""
    image = np.stack([np.asarray(x) for x in images])
    logits = np.asarray(default_network().classify(image), np.float64)
    logits = logits - logits.max(1, keepdims=True)
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    return log_p[np.arange(len(image)), [self._number(p) for p in prompts]]

  def _number(self, prompt) -> int:
    text = str(prompt)
    return int(text) if text.isdigit() else self._names.index(text)
