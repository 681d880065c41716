"""How long pictures of other shapes take to draw, beside square ones.

  python -m star_jax.metrics.aspect_speed
  python -m star_jax.metrics.aspect_speed --batch=8 --aspects=16:9,9:16

All shapes are timed in turn in one process; medians. Speed does not depend on
what the weights are: learned positions of a bundle are left out, since a model
that draws every shape has none.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from star_jax import testing
from star_jax.bundle import Bundle, load_bundle
from star_jax.metrics.benchmark import to_whole
from star_jax.metrics.report import table
from star_jax.programs import Programs
from star_jax.sampling.sampler import Knobs, sample_keys
from star_jax.scales import ASPECTS

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
  knobs = Knobs.of(bundle.sampling)
  params = jax.device_put(bundle.params)
  keys_B = sample_keys(0, np.arange(batch))
  samplers, out = {}, {}
  for aspect in aspects:
    programs = Programs(bundle, aspect)
    samplers[aspect] = programs.sampler(bundle.sampling)
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


def main(argv: list[str] | None = None) -> None:
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--ckpt", help="Bundle; the shipped one if absent.")
  parser.add_argument("--batch", default="4", help="Pictures at once.")
  parser.add_argument("--repeats", default="9", help="Timed rounds.")
  parser.add_argument(
    "--aspects", default=",".join(ASPECTS), help="Width : height, with commas."
  )
  args = parser.parse_args(argv)
  aspects = list(dict.fromkeys([SQUARE, *args.aspects.split(",")]))
  try:
    batch = to_whole("--batch", args.batch)
    repeats = to_whole("--repeats", args.repeats)
    found = time_shapes(load_bundle(args.ckpt), aspects, batch, repeats)
  except ValueError as error:
    sys.exit(str(error))
  print(f"Batch {batch} with guidance, medians of {repeats}.\n")
  print(to_markdown(found))


if __name__ == "__main__":
  main()
