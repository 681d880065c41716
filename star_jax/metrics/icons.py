"""The icons that a model is asked for, shared by two parts."""

from __future__ import annotations

import dataclasses

import numpy as np

from star_jax.data.art.captions import canonical_caption
from star_jax.data.art.store import ArtRecord
from star_jax.metrics import samples
from star_jax.metrics.context import Context


@dataclasses.dataclass(frozen=True)
class Icons:
  """numbers: of the records asked for; image: uint8 [N, H, W, 3] drawn."""

  numbers: np.ndarray
  records: list[ArtRecord]
  image: np.ndarray


def drawn_icons(ctx: Context) -> Icons:
  """N icons: half of the prompts name held-out pictures.

  Trained and held-out prompts alternate, so that any first part of them is
  half and half; with too few held-out pictures the rest is trained ones.
  """
  c = ctx.config
  rng = np.random.default_rng((c.seed, 4))
  trained, held = (
    rng.permutation(ctx.store.select(lambda r, s=split: r.split == s))
    for split in ("train", "heldout")
  )
  half = min(c.n // 2, len(held))
  numbers = np.concatenate([trained[: c.n - half], held[:half]])
  order = np.argsort(
    np.concatenate([np.arange(c.n - half), np.arange(half) + 0.5]),
    kind="stable",
  )
  numbers = numbers[order]
  records = [ctx.store.records[i] for i in numbers]
  image = samples.generate(
    ctx.pipeline,
    [canonical_caption(r) for r in records],
    seed=c.seed,
    batch=c.batch_size,
    settings=c.sampling.to_dict(),
    folder=ctx.folder / "samples",
    label="icons, sampling",
  )
  return Icons(numbers, records, image)


def augmented(ctx: Context, numbers: np.ndarray) -> np.ndarray:
  """Real pictures on fresh backgrounds and places, as in training."""
  from star_jax.data.sources import IconSource

  options = ctx.config.data_options.icons
  out = np.zeros((len(numbers), *ctx.image_size, 3), np.uint8)
  sources = {
    split: IconSource(
      ctx.store,
      ctx.image_size,
      split,
      **options,
    )
    for split in ("train", "heldout")
  }
  place = {
    number: (source, i)
    for source in sources.values()
    for i, number in enumerate(source.positions)
  }
  for row, number in enumerate(numbers):
    source, i = place[int(number)]
    # No training run uses this seed.
    out[row] = source.example(i, ctx.config.icons.augmentation_seed)[0]
  return out
