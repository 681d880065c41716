"""Fills the token cache of a stage 2 config: pictures in, tokens out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from star_jax.classes import ClassLabels
from star_jax.data import pipeline
from star_jax.data.art.store import INDEX, default_art_dir, file_sha256
from star_jax.data.scene_config import without_defaults
from star_jax.data.token_cache import EncodeText, TokenCacheWriter
from star_jax.scales import OWN_ASPECT
from star_jax.text.encoder import TextEncoder, load_text_encoder
from star_jax.text.states import TextStates
from star_jax.train import frozen as frozen_lib
from star_jax.train.batches import check_size, data_config
from star_jax.train.token_data import (
  cache_directory,
  shape_seed,
  shaped_tokenizers,
)

# Sources that read the art store.
ART_SOURCES = ("icons", "scenes", "mixture")
SPLITS = ("train", "heldout")


def build_cache(config, splits: Sequence[str] = SPLITS) -> Path:
  """Builds or finishes `config.cache.directory`/<split> for each split.

  Args:
    config: a stage 2 config; `config.cache` says how much from which source.

  Raises:
    ValueError: unknown split, no tokenizer, a directory of another cache, a
      caption that is no class of a model of classes.
  """
  if unknown := set(splits) - set(SPLITS):
    raise ValueError(
      f"Splits of a cache are {', '.join(SPLITS)}, got {', '.join(unknown)}."
    )
  tokenizer = frozen_lib.load_tokenizer(config.tokenizer_path)
  check_size(config, tokenizer.config)
  condition = _condition(config)
  source = data_config(config)
  source.source = config.cache.source
  shaped = shaped_tokenizers(config, tokenizer)
  sizes = {t.config.image_size: aspect for aspect, t in shaped.items()}
  for split in splits:
    if not config.aspects:
      _build_shape(config, split, OWN_ASPECT, tokenizer, condition, source)
      continue
    buckets = pipeline.build_bucket_sources(source, split, list(sizes))
    total = sum(bucket.share for bucket in buckets.values())
    for size, bucket in buckets.items():
      source.size, aspect = size, sizes[size]
      _build_shape(
        config,
        split,
        aspect,
        shaped[aspect],
        condition,
        source,
        bucket.sources,
        bucket.share / total,
      )
  return Path(config.cache.directory)


def _build_shape(
  config, split, aspect, tokenizer, condition, source, sources=None, share=1.0
) -> None:
  """The cache of one split and shape: `share` of the examples asked for."""
  options, seed = config.cache, shape_seed(config, aspect)
  count = options.examples if split == "train" else options.heldout_examples
  encoder, encode_text = condition
  identity = frozen_lib.cache_identity(tokenizer, encoder)
  identity |= {"split": split, "seed": seed, **data_identity(source)}
  writer = TokenCacheWriter(
    cache_directory(config, split, aspect),
    identity,
    encode_images=tokenizer.encoder(),
    encode_text=encode_text,
  )
  batches = pipeline.build_dataset(
    source, split, options.batch_size, seed, sources=sources
  )
  count = max(round(count * share), 1)
  writer.build(batches, count, shard_examples=options.shard_examples)


def _condition(config) -> tuple[TextEncoder | ClassLabels, EncodeText]:
  """What the captions are for the model, and what the cache stores of them."""
  num_classes = config.model.get("num_classes", 0)
  if not num_classes:
    options = config.text
    text = load_text_encoder(
      options.name, options.max_tokens, options.path or None
    )
    return text, text.encode
  labels = ClassLabels(num_classes, tuple(config.classes) or None)

  def encode(names: Sequence[str]) -> TextStates:
    labels.encode(names)  # refuses an unknown one
    return frozen_lib.no_states(names)

  return labels, encode


def data_identity(source) -> dict[str, Any]:
  """What decides the pictures and captions: options and, where used, art.

  How they are read (place, threads, processes) is left out.
  """
  options = source.to_dict()
  directory = options.pop("art_dir")
  options["scenes"] = without_defaults(options["scenes"])
  for name in ("threads", "workers"):
    options.pop(name)
  identity = {"data": options}
  if options["source"] in ART_SOURCES:
    index = Path(directory or default_art_dir()) / INDEX
    if index.exists():
      identity["art"] = file_sha256(index)[:16]
  return identity
