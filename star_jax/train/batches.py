"""Batches of raw pictures and captions, as a training task asks for them."""

from __future__ import annotations

from collections.abc import Iterator

import jax
import numpy as np
from ml_collections import ConfigDict

from star_jax.data import pipeline
from star_jax.tokenizer.config import VQVAEConfig
from star_jax.train.task import Batch, BatchIterator

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


def train_batches(config) -> BatchIterator:
  """Endless batches {"image": uint8 [B, H, W, 3], "caption": [B]}."""
  per_process = config.batch_size // jax.process_count()
  return pipeline.build_dataset(
    data_config(config), TRAIN, per_process, config.seed
  )


def eval_batches(config) -> Iterator[Batch]:
  """The first `config.eval_batches` batches of the held-out split."""
  if not config.eval_batches:
    return
  batches = pipeline.build_dataset(
    data_config(config), HELDOUT, config.batch_size, config.seed
  )
  for _ in range(config.eval_batches):
    yield next(batches)


def to_unit(image: np.ndarray | jax.Array):
  """uint8 [0, 255] -> float32 [-1, 1]; numpy in numpy out, jax in jax out."""
  return image.astype(np.float32) / 127.5 - 1.0
