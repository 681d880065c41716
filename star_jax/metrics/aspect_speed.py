"""How long pictures of other shapes take to draw, beside square ones.

  python -m star_jax.metrics.aspect_speed
  python -m star_jax.metrics.aspect_speed --batch=8 --aspects=16:9,9:16

All shapes are timed in turn in one process; medians. Speed does not depend on
what the weights are: learned positions of a bundle are left out, since a model
that draws every shape has none.
"""

from __future__ import annotations

import dataclasses
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from absl import app, flags

from star_jax import testing
from star_jax.bundle import Bundle, load_bundle
from star_jax.metrics.report import table
from star_jax.programs import Programs
from star_jax.sampling.sampler import Knobs, sample_keys
from star_jax.scales import ASPECTS

CKPT = flags.DEFINE_string("ckpt", None, "Bundle; the shipped one if absent.")
BATCH = flags.DEFINE_integer("batch", 4, "Pictures at once.", 1)
REPEATS = flags.DEFINE_integer("repeats", 9, "Timed rounds.", 1)
SHAPES = flags.DEFINE_list("aspects", list(ASPECTS), "Width : height.")
SQUARE = "1:1"
HEADER = ("shape", "pixels", "tokens", "time", "time / square", "per token")


def without_learned_positions(bundle: Bundle) -> Bundle:
  """The same layers for any shape; what it draws means nothing."""
  star = {k: v for k, v in bundle.params["star"].items() if k != "pos_embed"}
  return dataclasses.replace(
    bundle,
    star_config=dataclasses.replace(bundle.star_config, position="rope"),
    params={**bundle.params, "star": star},
  )


def time_shapes(
  bundle: Bundle, aspects: Sequence[str], batch: int, repeats: int
) -> dict[str, dict[str, Any]]:
  """By aspect: pixels (H, W), tokens, and seconds a batch (median).

  Raises:
    ValueError: an unknown ratio, or a bundle that draws no texts.
  """
  if bundle.star_config is None or bundle.text is None:
    raise ValueError(f"The bundle {bundle.path} does not draw texts.")
  if "absolute" in bundle.star_config.position:
    bundle = without_learned_positions(bundle)
  width = (bundle.text.max_tokens, bundle.star_config.text_dim)
  given, null = (testing.random_text(n, *width) for n in (batch, 1))
  sampling = bundle.sampling
  knobs = Knobs(
    cfg_scale=np.float32(sampling["cfg_scale"]),
    temperature=np.float32(sampling["temperature"]),
    top_k=np.int32(sampling["top_k"]),
    top_p=np.float32(sampling["top_p"]),
  )
  params = jax.device_put(bundle.params)
  keys_B = sample_keys(0, np.arange(batch))
  samplers, out = {}, {}
  for aspect in aspects:
    programs = Programs(bundle, aspect)
    samplers[aspect] = programs.sampler(sampling)
    schedule = programs.vqvae.config.schedule
    out[aspect] = {
      "pixels": programs.image_size,
      "tokens": schedule.num_tokens,
      "times": [],
    }
  for _ in range(repeats + 1):
    for aspect, sampler in samplers.items():
      start = time.perf_counter()
      jax.block_until_ready(sampler(params, given, null, keys_B, knobs))
      out[aspect]["times"].append(time.perf_counter() - start)
  for aspect, sampler in samplers.items():
    # The first round compiled and is not counted; no other did.
    assert sampler._cache_size() == 1
    out[aspect]["seconds"] = statistics.median(out[aspect].pop("times")[1:])
  return out


def to_markdown(found: dict[str, dict[str, Any]]) -> str:
  """The figures as a table; ratios are to the square."""
  square, rows = found[SQUARE], []
  for aspect, facts in found.items():
    ratio = facts["seconds"] / square["seconds"]
    rows.append(
      (
        aspect,
        f"{facts['pixels'][1]} x {facts['pixels'][0]}",
        facts["tokens"],
        f"{facts['seconds'] * 1e3:.0f} ms",
        f"{ratio:.2f}",
        f"{ratio * square['tokens'] / facts['tokens']:.2f}",
      )
    )
  return table(rows, HEADER)


def main(argv: list[str]) -> None:
  del argv
  aspects = list(dict.fromkeys([SQUARE, *SHAPES.value]))
  try:
    bundle = load_bundle(CKPT.value)
    found = time_shapes(bundle, aspects, BATCH.value, REPEATS.value)
  except ValueError as error:
    sys.exit(str(error))
  print(f"Batch {BATCH.value} with guidance, medians of {REPEATS.value}.\n")
  print(to_markdown(found))


if __name__ == "__main__":
  app.run(main)
