"""Fills the token cache of a stage 2 config: pictures in, tokens out."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from star_jax.classes import ClassLabels
from star_jax.data import pipeline
from star_jax.data.art.store import INDEX, default_art_dir, file_sha256
from star_jax.data.cache_layout import json_hash
from star_jax.data.cache_writer import EncodeText, Plan, TokenCacheWriter
from star_jax.data.scene_config import without_defaults
from star_jax.scales import OWN_ASPECT
from star_jax.text.encoder import TextEncoder, load_text_encoder
from star_jax.text.states import TextStates
from star_jax.train import frozen as frozen_lib
from star_jax.train.batches import TRAIN, check_size, data_config
from star_jax.train.token_data import (
  cache_directory,
  shape_seed,
  shaped_tokenizers,
)

# Sources that read the art store.
ART_SOURCES = ("icons", "scenes", "mixture")
SPLITS = ("train", "heldout")
# Generated pictures also have new ones of what is trained on.
KNOWN_SPLITS = (*SPLITS, "seen")


def build_cache(
  config,
  splits: Sequence[str] = SPLITS,
  *,
  process: int = 0,
  processes: int = 1,
  report: Callable[[str], None] = print,
) -> Path:
  """Builds or finishes `config.cache.directory`/<split> for each split.

  Args:
    config: a stage 2 config; `config.cache` says how much from which source.
    splits: which of `KNOWN_SPLITS`.
    process, processes: this one's number, and how many build the cache
      together, each a share of its files.
    report: called with a line for every file.

  Raises:
    ValueError: unknown split, no tokenizer, a directory of another cache, a
      caption that is no class of a model of classes, no such process.
  """
  if unknown := set(splits) - set(KNOWN_SPLITS):
    raise ValueError(
      f"Splits of a cache are {', '.join(KNOWN_SPLITS)}, got"
      f" {', '.join(sorted(unknown))}."
    )
  if not 0 <= process < processes:
    raise ValueError(
      f"Processes are numbered from 0 to {processes - 1}, got {process}."
    )
  tokenizer = frozen_lib.load_tokenizer(config.tokenizer_path)
  check_size(config, tokenizer.config)
  build = functools.partial(
    _build_shape, config, _condition(config), (process, processes), report
  )
  source = data_config(config)
  source.source = config.cache.source
  if source.get(source.source, {}).get("flip"):
    raise ValueError(
      f"config.data_options.{source.source}.flip is for pictures that are read"
      " in training; of a cache it is config.cache.flip."
    )
  shaped = shaped_tokenizers(config, tokenizer)
  sizes = {t.config.image_size: aspect for aspect, t in shaped.items()}
  for split in splits:
    if not config.aspects:
      sources = pipeline.build_sources(source, split)
      build(split, OWN_ASPECT, tokenizer, source, sources)
      continue
    buckets = pipeline.build_bucket_sources(source, split, list(sizes))
    total = sum(bucket.share for bucket in buckets.values())
    for size, bucket in buckets.items():
      source.size, aspect = size, sizes[size]
      share = bucket.share / total
      build(split, aspect, shaped[aspect], source, bucket.sources, share)
  return Path(config.cache.directory)


def _build_shape(
  config,
  condition,
  share_of_files: tuple[int, int],
  report: Callable[[str], None],
  split: str,
  aspect: str,
  tokenizer,
  source,
  sources: Mapping[str, pipeline.Weighted],
  share: float = 1.0,
) -> None:
  """The cache of one split and shape: `share` of the examples asked for."""
  options, seed = config.cache, shape_seed(config, aspect)
  encoder, encode_text = condition
  process, processes = share_of_files
  # Held-out figures are of one view of each picture, as it is.
  train = split == TRAIN
  count = options.examples if train else options.heldout_examples
  count = max(round(count * share), 1)
  if not train:
    # Every shape has a batch to be measured on.
    count = -(-count // options.batch_size) * options.batch_size
  plan = Plan(
    examples=count,
    variants=options.variants if train else 1,
    flip=options.flip and train,
    vocab_size=tokenizer.config.vocab_size,
    batch_size=options.batch_size,
    shard_examples=options.shard_examples,
    shard_captions=options.shard_captions,
    seed=seed,
  )
  identity = frozen_lib.cache_identity(tokenizer, encoder)
  identity |= {
    "split": split,
    "seed": seed,
    "variants": plan.variants,
    "flip": plan.flip,
    "shard_examples": plan.shard_examples,
    "shard_captions": plan.shard_captions,
    **data_identity(source, sources),
  }
  writer = TokenCacheWriter(
    cache_directory(config, split, aspect),
    identity,
    encode_images=tokenizer.encoder(),
    encode_text=encode_text,
    process=process,
    processes=processes,
    verify=options.verify,
  )
  read = functools.partial(
    pipeline.read_places, source, sources, seed=seed, variants=plan.variants
  )
  writer.build(read, plan, report=report)


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


def data_identity(source, sources: Mapping[str, Any]) -> dict[str, Any]:
  """What decides the pictures and captions: options and, where used, art and
  the names and captions of one's own pictures.

  How they are read (place, threads, processes) is left out, as are options of
  other sources.

  Args:
    source: options of the data pipeline.
    sources: what it makes of them.
  """
  options = source.to_dict()
  directory = options.pop("art_dir")
  options["scenes"] = without_defaults(options["scenes"])
  others = set(pipeline.LISTINGS) - {source.source}
  for name in ("threads", "workers", *others):
    options.pop(name)
  identity = {"data": options}
  if options["source"] in ART_SOURCES:
    index = Path(directory or default_art_dir()) / INDEX
    if index.exists():
      identity["art"] = file_sha256(index)[:16]
  own = [s.source for s in sources.values()]
  if digests := [s.digest for s in own if hasattr(s, "digest")]:
    identity["pictures"] = json_hash(digests)
  return identity
