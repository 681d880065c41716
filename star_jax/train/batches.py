"""Batches of raw pictures and captions, as a training task asks for them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import jax
import numpy as np
from ml_collections import ConfigDict

from star_jax.data import pipeline
from star_jax.data.position import ALL_ROWS
from star_jax.tokenizer.config import VQVAEConfig
from star_jax.train.task import Batch, BatchIterator

Sources = Mapping[str, pipeline.Weighted] | None
TRAIN = "train"
HELDOUT = "heldout"


def data_config(config) -> ConfigDict:
  """What the data pipeline reads: the name in `config.data`, its options.

  `config.data` is a plain string so that `--config.data=synthetic` works for
  every training config.
  """
  options = ConfigDict(config.data_options.to_dict())
  options.source = config.data
  return options


def check_size(config, tokenizer: VQVAEConfig) -> None:
  """ValueError unless the pictures have the size that the tokenizer takes."""
  size = tuple(config.data_options.size)
  if size != tokenizer.image_size:
    raise ValueError(
      f"The tokenizer takes pictures of {tokenizer.image_size} pixels (its"
      f" last grid {tokenizer.schedule.final_grid} times"
      f" {tokenizer.downsample}), config.data_options.size is {size}."
    )


def train_batches(
  config, seed: int, rows: slice = ALL_ROWS, sources: Sources = None
) -> BatchIterator:
  """Endless batches {"image": uint8 [B, H, W, 3], "caption": [B]}.

  Args:
    config: of the run.
    seed: order and augmentation.
    rows: of each batch, those that this process reads.
    sources: instead of those that the config names.
  """
  return pipeline.build_dataset(
    data_config(config),
    TRAIN,
    config.batch_size,
    seed,
    sources=sources,
    rows=rows,
  )


def eval_batches(
  config, seed: int, count: int, sources: Sources = None
) -> Iterator[Batch]:
  """The first `count` batches of the held-out split."""
  if not count:
    return
  batches = pipeline.build_dataset(
    data_config(config), HELDOUT, config.batch_size, seed, sources=sources
  )
  for _ in range(count):
    yield next(batches)


def to_unit(image: np.ndarray | jax.Array):
  """uint8 [0, 255] -> float32 [-1, 1]; numpy in numpy out, jax in jax out."""
  return image.astype(np.float32) / 127.5 - 1.0
