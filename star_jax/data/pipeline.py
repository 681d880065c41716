"""Sources -> seeded order -> this process's share -> batches (grain).

The iterator yields {"image": uint8 [B, H, W, 3], "caption": object [B]} and
has `get_state()` / `set_state()`: a run that restores the state sees exactly
the batches that an unbroken run would have seen. Example number n is a pure
function of (seed, n), and global batch number n of n and of its size, whatever
the number of processes, threads or workers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import grain
import numpy as np

from star_jax.data.arrayrecord import ArrayRecordListing
from star_jax.data.art.store import load_art
from star_jax.data.digits import DigitSource
from star_jax.data.folder import FolderListing
from star_jax.data.listing import Listing
from star_jax.data.parquet import ParquetListing
from star_jax.data.picture_source import PictureOptions, PictureSource
from star_jax.data.position import ALL_ROWS, NumberedBatches, rows_of
from star_jax.data.scenes import SceneConfig
from star_jax.data.sources import (
  ENDLESS,
  IconSource,
  SceneSource,
  Source,
  SyntheticSource,
  Weighted,
  check_split,
)
from star_jax.data.webdataset import WebDatasetListing
from star_jax.data.workers import live_as_worker

# Where captioned pictures of one's own may lie.
LISTINGS = {
  "folder": FolderListing,
  "webdataset": WebDatasetListing,
  "parquet": ParquetListing,
  "arrayrecord": ArrayRecordListing,
}
SOURCES = ("icons", "scenes", "mixture", *LISTINGS, "digits", "synthetic")


class Bucket(NamedTuple):
  """Sources of pictures of one size, and their share of the batches."""

  sources: Mapping[str, Weighted]
  share: float


def build_sources(config, split: str) -> dict[str, Weighted]:
  """The sources that `config.source` names, with their shares.

  Args:
    config: `source` (one of `SOURCES`) and the keys of configs/data.py.
    split: "train", "seen" or "heldout".

  Raises:
    ValueError: for an unknown source or what a source refuses.
  """
  check_split(split)
  if config.source not in SOURCES:
    raise ValueError(
      f"config.data is one of {', '.join(SOURCES)}, got {config.source!r}."
    )
  size = tuple(config.size)
  if len(size) != 2 or min(size) < 1:
    raise ValueError(f"data_options.size is (height, width), got {size!r}.")
  if config.source == "synthetic":
    return {"synthetic": Weighted(SyntheticSource(size, split), 1.0)}
  if config.source == "digits":
    return {"digits": Weighted(DigitSource(size, split), 1.0)}
  if config.source in LISTINGS:
    source = PictureSource(*_listed(config), size=size, split=split)
    return {config.source: Weighted(source, 1.0)}
  weights = {config.source: 1.0}
  if config.source == "mixture":
    weights = {name: w for name, w in config.mixture.items() if w > 0}
  unknown = set(weights) - {"icons", "scenes"}
  if unknown or not weights:
    raise ValueError(
      "data_options.mixture gives shares to icons and scenes, got"
      f" {dict(config.mixture)!r}."
    )
  store = load_art(config.art_dir or None)
  make = {"icons": _icons, "scenes": _scenes}
  return {
    name: Weighted(make[name](store, config, size, split), weight)
    for name, weight in weights.items()
  }


def build_bucket_sources(
  config, split: str, sizes: Sequence[tuple[int, int]]
) -> dict[tuple[int, int], Bucket]:
  """The same for pictures of several sizes.

  Pictures of one's own go to the size whose shape is nearest to theirs, the
  others are drawn in every size.

  Args:
    config, split: as in `build_sources`; `config.size` is not looked at.
    sizes: (H, W) of each bucket.

  Returns:
    By size; a size that no picture of one's own is nearest to is left out.
  """
  if config.source in LISTINGS:
    found = PictureSource.of_sizes(*_listed(config), sizes=sizes, split=split)
    return {
      size: Bucket({config.source: Weighted(source, 1.0)}, len(source))
      for size, source in found.items()
    }
  options = config.copy_and_resolve_references()
  out = {}
  for size in sizes:
    options.size = tuple(size)
    out[tuple(size)] = Bucket(build_sources(options, split), 1.0)
  return out


def _listed(config) -> tuple[Listing, PictureOptions]:
  """The pictures of one's own that a config names, and what becomes of them."""
  own = dict(config[config.source])
  fields = dataclasses.fields(PictureOptions)
  options = PictureOptions(**{f.name: own.pop(f.name) for f in fields})
  return LISTINGS[config.source](**own), options


def _icons(store, config, size, split) -> IconSource:
  return IconSource(store, size, split, **dict(config.icons))


def _scenes(store, config, size, split) -> SceneSource:
  options = dict(config.scenes)
  options["styles"] = tuple(options["styles"])
  return SceneSource(store, SceneConfig(size=size, split=split, **options))


def source_dataset(
  source: Source, seed: int, variant: int = 0, variants: int = 1
) -> grain.MapDataset:
  """Endless examples of one source as {"image", "caption", "id"}.

  A finite source is shuffled anew in every epoch, and its augmentation is
  drawn anew; a generated one is read from its first picture on. Of several
  variants each has the same order and an augmentation of its own.
  """
  count = len(source)
  endless = count >= ENDLESS
  order = grain.MapDataset.range(ENDLESS if endless else count)
  if not endless:
    order = order.seed(seed).shuffle().repeat()

  def read(position: int, index: int) -> dict[str, Any]:
    epoch = 0 if endless else position // count * variants + variant
    image, caption, meta = source.example(int(index), epoch_seed(seed, epoch))
    return {"image": image, "caption": caption, "id": meta["id"]}

  return order.map_with_index(read)


def mix(
  sources: Mapping[str, Weighted],
  seed: int,
  variant: int = 0,
  variants: int = 1,
) -> grain.MapDataset:
  """The sources in fixed proportion, interleaved evenly."""
  datasets = [
    source_dataset(s.source, seed, variant, variants) for s in sources.values()
  ]
  if len(datasets) == 1:
    return datasets[0]
  return grain.MapDataset.mix(
    datasets, weights=[s.weight for s in sources.values()]
  )


def epoch_seed(seed: int, epoch: int) -> int:
  """The `seed` of `example` in an epoch; epoch 0 keeps the seed itself."""
  return seed + epoch * 1_000_003


def build_dataset(
  config,
  split: str,
  batch_size: int,
  seed: int,
  *,
  sources: Mapping[str, Weighted] | None = None,
  rows: slice = ALL_ROWS,
) -> NumberedBatches:
  """An endless, checkpointable iterator of batches.

  Args:
    config: see `build_sources`; also `threads` and `workers` (processes; 0
      reads in threads of this one).
    split: "train", "seen" or "heldout".
    batch_size: examples a batch, over all processes.
    seed: order and augmentation.
    sources: instead of what `build_sources` makes of config and split.
    rows: of each batch, those that this process reads.

  Returns:
    Yields {"image": uint8 [B, H, W, 3], "caption": object array [B]}.

  Raises:
    ValueError: see `build_sources`.
  """
  if batch_size < 1:
    raise ValueError(f"A batch has at least one example, got {batch_size!r}.")
  dataset = mix(sources or build_sources(config, split), seed)

  def start(number: int) -> grain.DatasetIterator:
    mine = rows_of(dataset, batch_size, rows, number)
    return iter(_read(mine, len(range(batch_size)[rows]), config))

  return NumberedBatches(start)


def _read(
  examples: grain.MapDataset, batch_size: int, config
) -> grain.IterDataset:
  """Batches of consecutive examples, read ahead."""
  if not config.workers:
    ahead = grain.ReadOptions(
      num_threads=config.threads,
      prefetch_buffer_size=max(2 * batch_size, config.threads),
    )
    return examples.to_iter_dataset(ahead).batch(batch_size, batch_fn=stack)
  # Workers divide what is random access among them: whole batches, so that a
  # batch does not depend on their number.
  ahead = grain.ReadOptions(
    num_threads=config.threads, prefetch_buffer_size=config.threads
  )
  batches = examples.batch(batch_size, batch_fn=stack).to_iter_dataset(ahead)
  return batches.mp_prefetch(
    grain.MultiprocessingOptions(num_workers=config.workers),
    worker_init_fn=live_as_worker,
  )


def read_places(
  config,
  sources: Mapping[str, Weighted],
  places: np.ndarray,
  seed: int,
  *,
  variants: int = 1,
) -> Iterator[list[dict[str, Any]]]:
  """The examples at some places of the order of `build_dataset`.

  Args:
    config: `threads` and `workers`, as there.
    sources: what `build_sources` makes.
    places: int [N], from 0 on.
    seed: order and augmentation.
    variants: how often each original is drawn.

  Yields:
    The variants of an original, as {"image", "caption", "id"}.

  Raises:
    ValueError: variants of generated pictures, which have none: another seed
      draws another picture.
  """
  endless = [n for n, s in sources.items() if len(s.source) >= ENDLESS]
  if variants > 1 and endless:
    raise ValueError(
      f"config.cache.variants = {variants} has no meaning for {endless[0]},"
      " whose pictures are generated without end; raise config.cache.examples."
    )
  views = [mix(sources, seed, v, variants) for v in range(variants)]
  dataset = grain.MapDataset.source(places).map(
    lambda place: [view[int(place)] for view in views]
  )
  dataset = dataset.to_iter_dataset(
    grain.ReadOptions(
      num_threads=config.threads, prefetch_buffer_size=64 + config.threads
    )
  )
  if config.workers:
    dataset = dataset.mp_prefetch(
      grain.MultiprocessingOptions(num_workers=config.workers),
      worker_init_fn=live_as_worker,
    )
  return iter(dataset)


def stack(examples: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
  """Examples -> {"image": uint8 [B, H, W, 3], "caption": object [B]}."""
  captions = np.empty(len(examples), object)
  captions[:] = [e["caption"] for e in examples]
  return {
    "image": np.stack([e["image"] for e in examples]),
    "caption": captions,
  }
