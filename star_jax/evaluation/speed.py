"""How near an evaluation comes to the speed of its feature network.

  python -m star_jax.evaluation.speed --pictures=512 --size=256

Rates of the network alone on one batch in memory, and of a whole run over a
folder of PNGs, reading and summing included; and the peak memory of runs over
a quarter of the pictures and over all of them.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
from PIL import Image

from star_jax.evaluation.collect import Extractor, collect
from star_jax.evaluation.networks import load_network
from star_jax.evaluation.pictures import PictureFolder
from star_jax.metrics.benchmark import to_whole
from star_jax.metrics.report import table

SETTINGS = {"reservoir": 256, "seed": 0, "class_splits": 2}
_REPEATS = 8


def network_rate(extractor: Extractor, image: np.ndarray) -> float:
  """Pictures a second of the network on one batch, without reading."""
  jax.block_until_ready(extractor.start(image))
  start = time.perf_counter()
  for _ in range(_REPEATS):
    jax.block_until_ready(extractor.start(image))
  return _REPEATS * len(image) / (time.perf_counter() - start)


def write_pictures(folder: Path, n: int, size: int) -> None:
  """n PNGs, smooth with some noise, about as large as drawn ones."""
  rng = np.random.default_rng(0)
  for i in range(n):
    coarse = rng.integers(0, 256, (8, 8, 3), np.uint8)
    image = Image.fromarray(coarse).resize((size, size), 3)
    noisy = np.asarray(image, np.int16) + rng.integers(-4, 5, (size, size, 3))
    out = Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))
    out.save(folder / f"{i:06d}.png")


def measure(name: str, weights: str, n: int, size: int, batch: int) -> dict:
  """Rates in pictures a second and peak memories in MiB."""
  extractor = Extractor(load_network(name, weights), batch)
  out = {"pictures": n, "size": size, "batch": extractor.batch_size}
  with tempfile.TemporaryDirectory() as temporary:
    folder = Path(temporary) / "pictures"
    folder.mkdir()
    write_pictures(folder, n, size)
    pictures = PictureFolder.of(folder)
    out["network"] = network_rate(
      extractor, pictures.read(0, extractor.batch_size)
    )
    quarter = PictureFolder(folder, pictures.names[: max(2, n // 4)])
    for key, part in (("quarter", quarter), ("all", pictures)):
      start = time.perf_counter()
      collect(
        part,
        extractor,
        SETTINGS,
        Path(temporary) / f"{key}.npz",
        save_seconds=60,
      )
      out[key] = len(part) / (time.perf_counter() - start)
      peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
      out[f"{key}_mib"] = peak / 1024
  return out


def to_markdown(found: dict) -> str:
  """The figures as a table."""
  rows = [
    ("network alone", f"{found['network']:.1f}/s", f"batch {found['batch']}"),
    (
      f"{found['pictures']} PNGs of {found['size']} px to statistics",
      f"{found['all']:.1f}/s",
      f"{100 * found['all'] / found['network']:.0f}% of the network's rate",
    ),
    (
      "peak memory, a quarter of them and all",
      f"{found['quarter_mib']:.0f}, {found['all_mib']:.0f} MiB",
      "",
    ),
  ]
  return table(rows, ("what", "value", "remark"))


def main(argv: list[str] | None = None) -> None:
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--network", default="efficientnet-lite0")
  parser.add_argument("--weights", default="", help="File, if none installed.")
  parser.add_argument("--pictures", default="512")
  parser.add_argument("--size", default="256", help="Pixels a side.")
  parser.add_argument("--batch", default="32")
  args = parser.parse_args(argv)
  try:
    numbers = [
      to_whole(f"--{key}", getattr(args, key))
      for key in ("pictures", "size", "batch")
    ]
    found = measure(args.network, args.weights, *numbers)
  except ValueError as error:
    sys.exit(str(error))
  print(to_markdown(found))


if __name__ == "__main__":
  main()
