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
  size, step = tuple(config.data_options.size), tokenizer.downsample
  if any(side % step for side in size):
    raise ValueError(
      f"config.data_options.size = {size} is not a multiple of {step}, the"
      " pixels a side that this tokenizer makes one position of; with its last"
      f" grid {tokenizer.schedule.final_grid} it takes {tokenizer.image_size}."
    )
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


def heldout_pictures(
  options: ConfigDict, data: str, size: tuple[int, int], count: int, seed: int
) -> np.ndarray:
  """uint8 [N, H, W, 3] of the held-out split, each once.

  Args:
    options: see configs/data.py; its size is not looked at.
    data: name of the source.
    size: (H, W).
    count: how many at most.
    seed: of their order.
  """
  options = ConfigDict(options.to_dict())
  options.source, options.size = data, size
  sources = pipeline.build_sources(options, HELDOUT)
  count = min(count, sum(len(s.source) for s in sources.values()))
  batches = pipeline.build_dataset(
    options, HELDOUT, count, seed, sources=sources
  )
  return next(batches)["image"]


def to_unit(image: np.ndarray | jax.Array):
  """uint8 [0, 255] -> float32 [-1, 1]; numpy in numpy out, jax in jax out."""
  return image.astype(np.float32) / 127.5 - 1.0
