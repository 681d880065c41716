"""What stage 2 reads: tokens and what they are conditioned on.

From a token cache (`config.data = "cache"`), from raw pictures and captions
that the frozen tokenizer encodes inside the step (any source of the data
pipeline), or random ("synthetic"). For a model of classes a caption is the name
of a class.

B: batch, L: tokens, T: text tokens, D: text width.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from star_jax.classes import ClassLabels
from star_jax.data.token_cache import TokenCache, check_identity
from star_jax.model.condition import Given, batch_of
from star_jax.model.config import StarConfig
from star_jax.text.encoder import TextEncoder, load_text_encoder
from star_jax.text.settings import TextSettings
from star_jax.text.states import TextStates
from star_jax.train import batches as batches_lib
from star_jax.train import frozen as frozen_lib
from star_jax.train.task import Batch, BatchIterator, MappedBatches

CACHE = "cache"


class TokenData:
  """Batches of a stage 2 config.

  Attributes:
    tokenizer: the frozen image tokenizer.
    condition: text encoder or class names.
    classes: whether it is class names.
  """

  def __init__(
    self,
    config,
    star_config: StarConfig,
    tokenizer: frozen_lib.FrozenTokenizer,
    condition: TextEncoder | ClassLabels,
  ):
    self.config = config
    self.star_config = star_config
    self.tokenizer = tokenizer
    self.condition = condition
    self.classes = bool(star_config.num_classes)
    self._eval_batches: list[Batch] | None = None
    if not self._cached:
      batches_lib.check_size(config, tokenizer.config)

  @property
  def _cached(self) -> bool:
    return self.config.data in (CACHE, frozen_lib.SYNTHETIC)

  def identity(self) -> dict[str, Any]:
    """What a checkpoint depends on."""
    out = {"tokenizer": self.tokenizer.hash}
    if self.classes:
      return out | {"classes": self.condition.names}
    return out | {"text": TextSettings.of(self.condition).__dict__}

  def frozen(self) -> dict[str, Any]:
    """What a step reads and does not train: tokenizer and null condition."""
    params = self.tokenizer.params
    if self._cached:
      # The step then only looks codes up; the rest would be dead weight.
      params = {"quantizer": params["quantizer"]}
    null = jax.tree.map(np.asarray, self.condition.null())
    return jax.tree.map(jnp.asarray, {"tokenizer": params, "null": null})

  def tokens(self, frozen, batch: Batch) -> jax.Array:
    """int32 [B, L] of a batch; pictures are encoded by `frozen`."""
    if "idx" in batch:
      return batch["idx"]
    image_BHW3 = batches_lib.to_unit(batch["image"])
    idx_BL = self.tokenizer.vqvae.apply(
      {"params": frozen["tokenizer"]}, image_BHW3, method="encode"
    )
    return jax.lax.stop_gradient(idx_BL)

  def train_batches(self) -> BatchIterator:
    config = self.config
    if config.data == frozen_lib.SYNTHETIC:
      return frozen_lib.SyntheticTokens(config, self.star_config)
    if config.data == CACHE:
      return self.cache("train").train_batches(
        config.batch_size,
        config.seed,
        process=jax.process_index(),
        processes=jax.process_count(),
      )
    return MappedBatches(batches_lib.train_batches(config), self.encode)

  def eval_batches(self) -> Iterable[Batch]:
    if self._eval_batches is None:
      self._eval_batches = list(self._read_eval_batches())
    return self._eval_batches

  def _read_eval_batches(self) -> Iterable[Batch]:
    config = self.config
    if config.data == frozen_lib.SYNTHETIC:
      source = frozen_lib.SyntheticTokens(config, self.star_config)
      source.set_state({"next": 2**32})
      return [next(source) for _ in range(config.eval_batches)]
    if config.data == CACHE:
      cache = self.cache("heldout")
      return cache.in_order(config.batch_size, config.eval_batches)
    return map(self.encode, batches_lib.eval_batches(config))

  def cache(self, split: str) -> TokenCache:
    """The token cache of a split.

    Raises:
      ValueError: it was made by another tokenizer or text encoder.
    """
    path = Path(self.config.cache.directory) / split
    window = 0 if self.classes else self.condition.max_tokens
    cache = TokenCache(path, window, verify=self.config.cache.verify)
    wanted = frozen_lib.cache_identity(self.tokenizer, self.condition)
    check_identity(path, cache.identity, wanted)
    if self.classes:
      cache.use_labels(self.condition.encode)
    return cache

  def encode(self, batch: Batch) -> Batch:
    """Raw pictures with states of their captions, or with their classes."""
    image = np.asarray(batch["image"])
    given = self.condition.encode([str(c) for c in batch["caption"]])
    if self.classes:
      return {"image": image, "label": given}
    return {
      "image": image,
      "text": np.asarray(given.text_BTD, np.float16),
      "text_mask": np.asarray(given.text_mask_BT),
      "pooled": np.asarray(given.pooled_BD, np.float16),
    }


def load_tokenizer(config, star_config: StarConfig):
  """The image tokenizer of a stage 2 config."""
  if config.data == frozen_lib.SYNTHETIC:
    return frozen_lib.random_tokenizer(
      star_config.schedule, star_config.vocab_size, star_config.code_dim
    )
  return frozen_lib.load_tokenizer(config.tokenizer_path)


def load_condition(config, star_config: StarConfig):
  """What encodes the captions of a stage 2 config: a text encoder or classes.

  Raises:
    ValueError: the encoder has another width than the model takes, or there
      are not as many names as classes.
  """
  if star_config.num_classes:
    return ClassLabels(star_config.num_classes, tuple(config.classes) or None)
  if config.data == frozen_lib.SYNTHETIC:
    return frozen_lib.SyntheticText(
      star_config.text_dim, config.text.max_tokens
    )
  text = load_text_encoder(
    config.text.name, config.text.max_tokens, config.text.path or None
  )
  if text.width != star_config.text_dim:
    raise ValueError(
      f"The text encoder {text.name} has the width {text.width},"
      f" config.model.text_dim is {star_config.text_dim}."
    )
  return text


def given_of(batch: Batch) -> Given:
  """What the model of a batch is conditioned on."""
  if "label" in batch:
    return batch["label"]
  return TextStates(
    text_BTD=batch["text"].astype(jnp.float32),
    text_mask_BT=batch["text_mask"],
    pooled_BD=batch["pooled"].astype(jnp.float32),
  )


def drop_condition(
  given: Given, null: Given, rate: float, key: jax.Array
) -> Given:
  """Replaces whole prompts or classes by the null one with probability
  `rate`."""
  batch = batch_of(given)
  drop_B = jax.random.bernoulli(key, rate, (batch,))

  def mix(kept, empty):
    drop = drop_B.reshape(batch, *[1] * (kept.ndim - 1))
    return jnp.where(drop, jnp.asarray(empty, kept.dtype), kept)

  return jax.tree.map(mix, given, null)
