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
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from star_jax.classes import ClassLabels
from star_jax.data.buckets import Buckets, folder_name
from star_jax.data.cache_layout import check_identity
from star_jax.data.pipeline import Bucket, build_bucket_sources
from star_jax.data.position import ALL_ROWS
from star_jax.data.token_cache import TokenCache
from star_jax.model.condition import Given, batch_of
from star_jax.model.config import StarConfig
from star_jax.scales import OWN_ASPECT, ScaleSchedule
from star_jax.sharding import constrain
from star_jax.text.encoder import TextEncoder, load_text_encoder
from star_jax.text.settings import TextSettings
from star_jax.text.states import TextStates
from star_jax.tokenizer.config import VQVAEConfig
from star_jax.train import batches as batches_lib
from star_jax.train import frozen as frozen_lib
from star_jax.train.task import Batch, BatchIterator, MappedBatches

CACHE = "cache"
# In a batch: the grids of its pictures, where there are several shapes. It is
# no array but a static part, so that each shape has a program of its own.
SCHEDULE = "schedule"
jax.tree_util.register_static(ScaleSchedule)


class Shape(NamedTuple):
  """The model and its tokenizer for pictures of one shape."""

  star_config: StarConfig
  tokenizer: frozen_lib.FrozenTokenizer

  @property
  def size(self) -> tuple[int, int]:
    """(H, W) in pixels."""
    return self.tokenizer.config.image_size


class TokenData:
  """Batches of a stage 2 config.

  Where config.aspects names shapes, each batch is of one of them and says which
  under SCHEDULE.

  Attributes:
    tokenizer: the frozen image tokenizer.
    condition: text encoder or class names.
    classes: whether it is class names.
    shapes: by aspect.
  """

  def __init__(
    self,
    config,
    star_config: StarConfig,
    tokenizer: frozen_lib.FrozenTokenizer,
    condition: TextEncoder | ClassLabels,
  ):
    self.config = config
    self.tokenizer = tokenizer
    self.condition = condition
    self.classes = bool(star_config.num_classes)
    self.shapes = {
      aspect: Shape(star_config.with_schedule(shaped.config.schedule), shaped)
      for aspect, shaped in shaped_tokenizers(config, tokenizer).items()
    }
    self._own = Shape(star_config, tokenizer)
    self._by_schedule = {
      shape.star_config.schedule: shape for shape in self.shapes.values()
    }
    self._eval_batches: list[Batch] | None = None
    if not self._cached:
      batches_lib.check_size(config, tokenizer.config)

  @property
  def _cached(self) -> bool:
    return self.config.data in (CACHE, frozen_lib.SYNTHETIC)

  def identity(self) -> dict[str, Any]:
    """What a checkpoint depends on."""
    out = {"tokenizer": self.tokenizer.hash}
    if self.config.aspects:
      out["aspects"] = list(self.config.aspects)
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

  def shape_of(self, batch: Batch) -> Shape:
    """The shape of the pictures of a batch."""
    if SCHEDULE not in batch:
      return self._own
    return self._by_schedule[batch[SCHEDULE]]

  def tokens(self, frozen, batch: Batch) -> jax.Array:
    """int32 [B, L] of a batch; pictures are encoded by `frozen`."""
    if "idx" in batch:
      return batch["idx"]
    image_BHW3 = batches_lib.to_unit(batch["image"])
    idx_BL = self.shape_of(batch).tokenizer.vqvae.apply(
      {"params": frozen["tokenizer"]}, image_BHW3, method="encode"
    )
    return jax.lax.stop_gradient(idx_BL)

  def self_corrected(
    self, frozen, batch: Batch, key: jax.Array, rate: float
  ) -> tuple[jax.Array, jax.Array]:
    """Tokens [B, L] of pictures, and inputs [B, L - 1, Cv] with flipped bits;
    see `Quantizer.self_correct`."""
    image_BHW3 = batches_lib.to_unit(batch["image"])
    keys_B = jax.vmap(lambda i: jax.random.fold_in(key, i))(
      jnp.arange(len(image_BHW3))
    )
    found = self.shape_of(batch).tokenizer.vqvae.apply(
      {"params": frozen["tokenizer"]},
      image_BHW3,
      keys_B,
      rate,
      method="self_correct",
    )
    idx_BL, x_BLCv = jax.lax.stop_gradient(found)
    return idx_BL, constrain(x_BLCv, "inputs_BLCv")

  def train_batches(self, rows: slice = ALL_ROWS) -> BatchIterator:
    """Endless batches of these rows of each."""
    config = self.config
    sources, shares = {}, {}
    if config.data == frozen_lib.SYNTHETIC:
      for aspect, shape in self.shapes.items():
        sources[aspect] = frozen_lib.SyntheticTokens(
          config, shape.star_config, rows
        )
        shares[aspect] = 1.0
    elif config.data == CACHE:
      for aspect in self.shapes:
        cache = self.cache("train", aspect)
        sources[aspect] = cache.train_batches(
          config.batch_size, shape_seed(config, aspect), rows
        )
        shares[aspect] = len(cache)
    elif config.aspects:
      for aspect, bucket in self._buckets(batches_lib.TRAIN).items():
        raw = batches_lib.train_batches(
          config, shape_seed(config, aspect), rows, bucket.sources
        )
        sources[aspect] = MappedBatches(raw, self.encode)
        shares[aspect] = bucket.share
    else:
      raw = batches_lib.train_batches(config, config.seed, rows)
      return MappedBatches(raw, self.encode)
    if not config.aspects:
      return sources[OWN_ASPECT]
    buckets = Buckets(sources, shares, config.seed)
    return MappedBatches(buckets, lambda named: self._shaped(*named))

  def _shaped(self, aspect: str, batch: Batch) -> Batch:
    """A batch that says of which shape it is."""
    if not self.config.aspects:
      return batch
    return {**batch, SCHEDULE: self.shapes[aspect].star_config.schedule}

  def _buckets(self, split: str) -> dict[str, Bucket]:
    """Sources of raw pictures by aspect."""
    options = batches_lib.data_config(self.config)
    sizes = {shape.size: aspect for aspect, shape in self.shapes.items()}
    found = build_bucket_sources(options, split, list(sizes))
    return {sizes[size]: bucket for size, bucket in found.items()}

  def eval_batches(self) -> Iterable[Batch]:
    """`config.eval_batches` of them, of all shapes in turn."""
    if self._eval_batches is None:
      self._eval_batches = list(self._read_eval_batches())
    return self._eval_batches

  def _read_eval_batches(self) -> Iterable[Batch]:
    config = self.config
    buckets = {OWN_ASPECT: None}
    if config.aspects:
      buckets = dict.fromkeys(self.shapes)
      if not self._cached:
        buckets = self._buckets(batches_lib.HELDOUT)
    for i, (aspect, bucket) in enumerate(buckets.items()):
      count = len(range(i, config.eval_batches, len(buckets)))
      for batch in self._eval_batches_of(aspect, bucket, count):
        yield self._shaped(aspect, batch)

  def _eval_batches_of(
    self, aspect: str, bucket: Bucket | None, count: int
  ) -> Iterable[Batch]:
    config = self.config
    if config.data == frozen_lib.SYNTHETIC:
      model = self.shapes[aspect].star_config
      source = frozen_lib.SyntheticTokens(config, model)
      source.set_state(2**32)
      return [next(source) for _ in range(count)]
    if config.data == CACHE:
      cache = self.cache("heldout", aspect)
      return cache.in_order(config.batch_size, count)
    raw = batches_lib.eval_batches(
      config,
      shape_seed(config, aspect),
      count,
      bucket.sources if bucket else None,
    )
    return map(self.encode, raw)

  def cache(self, split: str, aspect: str = OWN_ASPECT) -> TokenCache:
    """The token cache of a split.

    Raises:
      ValueError: it was made by another tokenizer or text encoder.
    """
    path = cache_directory(self.config, split, aspect)
    window = 0 if self.classes else self.condition.max_tokens
    options = self.config.cache
    cache = TokenCache(
      path, window, verify=options.verify, damaged=options.damaged
    )
    tokenizer = self.shapes[aspect].tokenizer
    wanted = frozen_lib.cache_identity(tokenizer, self.condition)
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
      "text": np.asarray(given.text_BTD, jnp.bfloat16),
      "text_mask": np.asarray(given.text_mask_BT),
      "pooled": np.asarray(given.pooled_BD, jnp.bfloat16),
    }


def check_bit_flip(
  config, star_config: StarConfig, tokenizer: VQVAEConfig
) -> None:
  """ValueError unless bits of the tokens of this run can be flipped."""
  rate = config.bit_flip
  if not 0 <= rate < 1:
    raise ValueError(f"config.bit_flip is a share in [0, 1), got {rate}.")
  if not rate:
    return
  if not tokenizer.binary:
    raise ValueError(
      "config.bit_flip flips bits, which tokens of quantizer"
      f" {tokenizer.quantizer!r} do not have: set it to 0."
    )
  if star_config.prediction == "token":
    raise ValueError(
      "config.bit_flip corrects earlier scales; a model that predicts token by"
      " token has none to correct: set it to 0."
    )
  if config.data in (CACHE, frozen_lib.SYNTHETIC):
    raise ValueError(
      "config.bit_flip quantizes what flipped bits leave of the features, which"
      f" tokens alone do not have: it needs pictures, got config.data ="
      f" {config.data!r}."
    )


def shaped_tokenizers(
  config, tokenizer: frozen_lib.FrozenTokenizer
) -> dict[str, frozen_lib.FrozenTokenizer]:
  """The tokenizer for each of config.aspects, or as it is for none.

  Raises:
    ValueError: an unknown ratio, or two that are the same in these grids.
  """
  out, grids = {}, {}
  for aspect in tuple(config.aspects) or (OWN_ASPECT,):
    out[aspect] = tokenizer.with_aspect(aspect)
    schedule = out[aspect].config.schedule
    if schedule in grids:
      raise ValueError(
        f"config.aspects names {grids[schedule]} and {aspect}, which are the"
        f" same grids {schedule.grids} here."
      )
    grids[schedule] = aspect
  return out


def shape_seed(config, aspect: str) -> int:
  """Decides the examples of one of config.aspects: each shape has its own."""
  if aspect == OWN_ASPECT:
    return config.seed
  return config.seed + tuple(config.aspects).index(aspect)


def cache_directory(config, split: str, aspect: str = OWN_ASPECT) -> Path:
  """Of the token cache of a split, and of one of config.aspects."""
  directory = Path(config.cache.directory)
  if aspect != OWN_ASPECT:
    directory /= folder_name(aspect)
  return directory / split


def load_tokenizer(config, star_config: StarConfig):
  """The image tokenizer of a stage 2 config."""
  if config.data == frozen_lib.SYNTHETIC:
    return frozen_lib.random_tokenizer(
      star_config.schedule,
      star_config.vocab_size,
      star_config.code_dim,
      "bsq" if star_config.head == "bits" else "vq",
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
