"""--what=refinement: what stable sampling does to a model, and what it costs.

Held-out captions are drawn with each way of refining, the same prompts under
several sampling seeds: distance to the pictures of other held-out scenes (KID),
what of the captions is in the pictures, and seconds a batch, timed in turn.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import jax
import numpy as np

from star_jax.metrics import samples
from star_jax.metrics.context import Context, picture_grid
from star_jax.metrics.efficientnet import default_network
from star_jax.metrics.kid import kernel_distance
from star_jax.metrics.report import Result
from star_jax.metrics.scene_match import SceneMatcher
from star_jax.metrics.scene_score import score_pictures, shares
from star_jax.metrics.sprite_bank import SpriteBank
from star_jax.sampling.sampler import Knobs, sample_keys

SHOWN = 16  # pictures of each way on the sheet
MEASURES = ("objects", "colours", "relations", "everything")


def run(ctx: Context) -> Result:
  """Measures each way; writes refinement.png, a row of samples of each."""
  if ctx.bundle.refine_config is None:
    raise ValueError(
      f"The bundle {ctx.bundle.path} has no refinement head to measure; train"
      " one with configs/refine_scenes64.py."
    )
  options, n = ctx.config.refinement, ctx.config.n
  generator = ctx.scenes("heldout")
  captions = [generator.scene(i).caption for i in range(n)]
  matcher = SceneMatcher(SpriteBank(generator), generator.config.max_objects)
  others = [
    generator.render(generator.scene(i)) for i in range(n, n + options.real)
  ]
  real_ND = default_network()(np.stack(others))
  values: dict[str, Any] = {way: {"seeds": {}} for way in options.ways}
  rows = []
  for seed in options.seeds:
    for way in options.ways:
      image = _draw(ctx, captions, way, seed)
      scores = score_pictures(
        matcher, image[: options.scored], captions, f"{way}, seed {seed}"
      )
      values[way]["seeds"][str(seed)] = {
        "kid": kernel_distance(default_network()(image), real_ND),
        **{name: share.value for name, share in shares(scores).items()},
      }
      if seed == options.seeds[0]:
        rows.append(image[:SHOWN])
  sheet = picture_grid(np.concatenate(rows), SHOWN)
  sheet.save(ctx.folder / "refinement.png")
  for way, seconds in _timed(ctx, captions).items():
    values[way]["seconds_a_batch"] = seconds
  return Result(values, _rows(values, ctx.config.batch_size))


def _settings(ctx: Context, way: str) -> dict[str, Any]:
  return {**ctx.config.sampling.to_dict(), "refine": way}


def _draw(ctx: Context, captions, way: str, seed: int) -> np.ndarray:
  return samples.generate(
    ctx.pipeline,
    captions,
    seed=seed,
    batch=ctx.config.batch_size,
    settings=_settings(ctx, way),
    folder=ctx.folder / "samples_refinement",
    label=f"{way}, seed {seed}, sampling",
  )


def _timed(ctx: Context, captions) -> dict[str, float]:
  """Median seconds of a batch by way, the ways in turn in this process."""
  options, batch = ctx.config.refinement, ctx.config.batch_size
  pipeline = ctx.pipeline
  given = pipeline.condition_encoder.encode(captions[:batch])
  null = pipeline.condition_encoder.null()
  keys_B = sample_keys(0, np.arange(len(captions[:batch])))
  params = jax.device_put(ctx.bundle.params)
  runs, times = {}, {way: [] for way in options.ways}
  for way in options.ways:
    settings = pipeline.settings(**_settings(ctx, way))
    sampler = pipeline.programs(settings["aspect"]).sampler(settings)
    runs[way] = sampler, Knobs.of(settings)
  for _ in range(options.timed + 1):
    for way, (sampler, knobs) in runs.items():
      start = time.perf_counter()
      jax.block_until_ready(sampler(params, given, null, keys_B, knobs))
      times[way].append(time.perf_counter() - start)
  # The first call of each has compiled.
  return {way: statistics.median(found[1:]) for way, found in times.items()}


def _rows(values: dict[str, Any], batch: int) -> list[tuple[str, str, str]]:
  rows = []
  for way, found in values.items():
    seeds = list(found["seeds"].values())
    kid = [s["kid"] for s in seeds]
    rows.append((f"{way}: KID", _spread(kid, 4), f"{len(kid)} seeds"))
    for name in MEASURES:
      shown = _spread([100 * s[name] for s in seeds], 1)
      rows.append((f"{way}: {name}", f"{shown} %", "mean, lowest to highest"))
    milliseconds = 1e3 * found["seconds_a_batch"]
    rows.append(
      (f"{way}: time", f"{milliseconds:.0f} ms", f"batch of {batch}, median")
    )
  return rows


def _spread(values: list[float], digits: int) -> str:
  mean = statistics.fmean(values)
  low, high = min(values), max(values)
  return f"{mean:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"
