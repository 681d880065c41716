"""--what=distribution: drawn pictures against real ones, streamed.

Real ones are rendered pictures of held-out scenes that no caption comes from,
or those of `config.distribution.reference` (a folder, a .npz, statistics).
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json

import jax
import numpy as np

from star_jax.evaluation.command import Comparison
from star_jax.evaluation.pictures import Pictures
from star_jax.metrics import samples
from star_jax.metrics.context import Context
from star_jax.metrics.report import Result


def run(ctx: Context) -> Result:
  """Statistics are kept in statistics/, pictures in samples/."""
  comparison = Comparison(ctx.config.pictures, ctx.folder / "statistics")
  drawn = draw(ctx, prompts_of(ctx))
  generated = comparison.collect(drawn, f"drawn_{drawn.identity}")
  values, rows = comparison.compare(generated, _reference(ctx, comparison))
  values |= {"comparison": comparison.protocol, **cost_of(ctx, drawn.seconds)}
  rows.append(
    (
      "seconds an image",
      f"{values['seconds_per_image']:.3f}",
      f"batch {ctx.config.batch_size}, {values['steps']} steps,"
      f" {values['parameters'] / 1e6:.1f}M parameters",
    )
  )
  return Result(values, rows)


def prompts_of(ctx: Context) -> list[str]:
  """config.n captions of held-out scenes, or every class as often."""
  if ctx.bundle.text is None:
    classes = ctx.bundle.star_config.num_classes
    return [str(i % classes) for i in range(ctx.config.n)]
  generator = ctx.scenes("heldout")
  return [generator.scene(i).caption for i in range(ctx.config.n)]


@dataclasses.dataclass(frozen=True)
class Drawn:
  """`Pictures` of chunks on disk. seconds: an image, the median chunk's."""

  paths: list
  total: int
  identity: str
  seconds: float

  def __len__(self) -> int:
    return self.total

  def read(self, start: int, stop: int) -> np.ndarray:
    size = samples.CHUNK
    first, last = start // size, (stop - 1) // size
    image = np.concatenate([_image(p) for p in self.paths[first : last + 1]])
    return image[start - first * size : stop - first * size]


@functools.lru_cache(maxsize=2)
def _image(path) -> np.ndarray:
  return samples.read_chunk(path).image


def draw(ctx: Context, prompts: list[str]) -> Drawn:
  """Draws what is not on disk yet, chunk by chunk."""
  paths, seconds = [], []
  for chunk in samples.chunks(
    ctx.pipeline,
    prompts,
    seed=ctx.config.seed,
    batch=ctx.config.batch_size,
    settings=ctx.config.sampling.to_dict(),
    folder=ctx.folder / "samples",
    label="sampling",
  ):
    paths.append(chunk.path)
    seconds.append(chunk.seconds / len(chunk.image))
  # The first chunk pays for compilation.
  typical = float(np.nanmedian(seconds[1:] or seconds))
  return Drawn(paths, len(prompts), paths[0].parent.name, typical)


@dataclasses.dataclass(frozen=True)
class Rendered:
  """`Pictures` of scenes by number, from `first` on."""

  generator: object
  first: int
  total: int

  def __len__(self) -> int:
    return self.total

  @property
  def identity(self) -> str:
    facts = dataclasses.asdict(self.generator.config)
    text = json.dumps([facts, self.first], default=str, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]

  def read(self, start: int, stop: int) -> np.ndarray:
    numbers = range(self.first + start, self.first + stop)
    scenes = (self.generator.scene(i) for i in numbers)
    return np.stack([self.generator.render(scene) for scene in scenes])


def _reference(ctx: Context, comparison: Comparison):
  c = ctx.config.distribution
  if c.reference:
    return comparison.reference(c.reference)
  if ctx.bundle.text is None:
    raise ValueError(
      "A model of classes is compared with pictures or statistics that you"
      " give: --config.distribution.reference=FOLDER or FILE.npz."
    )
  real: Pictures = Rendered(ctx.scenes("heldout"), ctx.config.n, c.references)
  return comparison.collect(real, f"rendered_{real.identity}")


def cost_of(ctx: Context, seconds: float) -> dict:
  """What a row of the papers' tables says beside the scores."""
  config, schedule = ctx.bundle.star_config, ctx.bundle.star_config.schedule
  one_by_one = config.prediction == "token"
  leaves = jax.tree.leaves(ctx.bundle.params["star"])
  return {
    "seconds_per_image": seconds,
    "steps": schedule.num_tokens if one_by_one else schedule.num_scales,
    "parameters": int(sum(np.prod(x.shape) for x in leaves)),
    "depth": config.depth,
    "pixels": ctx.image_size[0],
  }
