"""What a finished run of a sweep is measured on.

Likelihood: nats of held-out tokens under their captions, per scale. Pictures:
drawn for held-out captions, against the pictures of other held-out scenes
(KID) and against what their captions state.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from star_jax.api import StarPipeline
from star_jax.bundle import Bundle, load_bundle
from star_jax.data.art.store import load_art
from star_jax.data.scenes import SceneConfig, SceneGenerator
from star_jax.data.token_cache import TokenCache
from star_jax.metrics.context import picture_grid
from star_jax.metrics.efficientnet import default_network
from star_jax.metrics.kid import kernel_distance
from star_jax.metrics.reconstruction import reconstruct
from star_jax.metrics.scene_match import SceneMatcher
from star_jax.metrics.scene_score import score_pictures, shares
from star_jax.metrics.sprite_bank import SpriteBank
from star_jax.model.star import Star
from star_jax.sampling.likelihood import build_log_prob
from star_jax.tokenizer.vqvae import VQVAE
from star_jax.train.token_data import given_of

# Pictures on the sheet that is kept of every draw.
SHOWN = 12


class Yardstick:
  """The held-out scenes of a sweep and all that pictures are compared with.

  Args:
    config: `measure` of the sweep's config.
    options: `data_options` of its training.
  """

  def __init__(self, config: ConfigDict, options: ConfigDict):
    self.config = config
    self._options = options

  @functools.cached_property
  def generator(self) -> SceneGenerator:
    """Held-out scenes of a seed that no cache was made of."""
    options = dict(self._options.scenes)
    options |= {
      "size": tuple(self._options.size),
      "styles": tuple(options["styles"]),
      "seed": self.config.seed,
      "split": "heldout",
    }
    art = load_art(self.config.art_dir or None)
    return SceneGenerator(art, SceneConfig(**options))

  @functools.cached_property
  def captions(self) -> list[str]:
    """Of the pictures that are drawn."""
    return [self.generator.scene(i).caption for i in range(self.config.samples)]

  @functools.cached_property
  def matcher(self) -> SceneMatcher:
    known = self.generator
    return SceneMatcher(SpriteBank(known), known.config.max_objects)

  @functools.cached_property
  def reference_ND(self) -> np.ndarray:
    """Features of pictures of other scenes than those of the captions."""
    first = self.config.samples
    return default_network()(
      self._rendered(range(first, first + self.config.references))
    )

  @functools.cached_property
  def truth(self) -> np.ndarray:
    """The scenes of the captions, uint8 [N, H, W, 3]."""
    return self._rendered(range(self.config.samples))

  def _rendered(self, numbers) -> np.ndarray:
    generator = self.generator
    return np.stack([generator.render(generator.scene(i)) for i in numbers])

  def score(self, image: np.ndarray, label: str) -> dict[str, Any]:
    """KID, and shares of the captions' facts of the first `config.scored`.

    Args:
      image: uint8 [N, H, W, 3], one a caption.
      label: of the progress line.
    """
    features = default_network()(image)
    scores = score_pictures(
      self.matcher,
      image[: self.config.scored],
      self.captions,
      f"{label}, matching",
    )
    named = {name: share.value for name, share in shares(scores).items()}
    return {"kid": kernel_distance(features, self.reference_ND), **named}

  def ceilings(self, tokenizers: dict[str, Path]) -> dict[str, Any]:
    """The same of the scenes themselves, as they are and through each
    tokenizer."""
    out = {"scenes": self.score(self.truth, "scenes")}
    for name, path in tokenizers.items():
      bundle = load_bundle(path)
      through = reconstruct(
        VQVAE(bundle.tokenizer_config),
        jax.device_put(bundle.params["tokenizer"]),
        self.config.batch_size,
      )
      image, _ = through(self.truth)
      error = np.square(image.astype(np.float64) - self.truth).mean((1, 2, 3))
      psnr = np.mean(10 * np.log10(255.0**2 / np.maximum(error, 1e-9)))
      out[name] = {**self.score(image, name), "psnr": float(psnr)}
    return out

  def draw(self, pipeline: StarPipeline, name: str, sheet: Path) -> dict:
    """Draws one picture a caption and scores them.

    Args:
      pipeline: the model.
      name: which of the config's draws.
      sheet: gets the first pictures as a PNG.
    """
    config = self.config
    drawn = pipeline.sample_all(
      self.captions,
      config.seed,
      batch=config.batch_size,
      temperature=config.temperature,
      **config.draws[name].to_dict(),
    )
    image = np.stack([np.asarray(picture) for picture in drawn.images])
    _save_sheet(image, sheet)
    return self.score(image, sheet.stem)

  def likelihood(
    self, bundle: Bundle, tokens: Path, first: int
  ) -> dict[str, Any]:
    """Of the held-out examples from `first` on.

    Args:
      bundle: the model.
      tokens: folder of the token caches of its tokenizer.
      first: examples before it chose the learning rate.

    Returns:
      per_scale: nats a token of each scale; token: over all tokens; image:
      nats a picture.
    """
    count, batch = self.config.likelihood_examples, self.config.batch_size
    cache = TokenCache(tokens / "heldout", bundle.text.max_tokens)
    log_prob = build_log_prob(
      Star(bundle.star_config), VQVAE(bundle.tokenizer_config)
    )
    params, total = jax.device_put(bundle.params), []
    for begin in range(first, first + count, batch):
      rows = cache.rows(range(begin, min(begin + batch, first + count)))
      out = log_prob(params, rows["idx"], given_of(rows))
      total.append(np.asarray(out, np.float64))
    nats_K = -np.concatenate(total).mean(0)
    lengths = bundle.star_config.schedule.lengths
    return {
      "per_scale": (nats_K / lengths).tolist(),
      "token": float(nats_K.sum() / sum(lengths)),
      "image": float(nats_K.sum()),
    }


def _save_sheet(image: np.ndarray, path: Path) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  picture_grid(image[:SHOWN], SHOWN, scale=2).save(path)
