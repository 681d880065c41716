"""How fast token caches are built and read, beside the step that reads them.

  python -m star_jax.metrics.loader_speed
  python -m star_jax.metrics.loader_speed --cache=data_cache/tokens_scenes64

Of configs/star_scenes64.py with the shipped tokenizer: pictures and captions
encoded a second, by the times between the files of a small cache after the
first one (which compiles); batches a second out of the loader alone, of that
cache or of --cache; and the training step's own rate. A loader of ten times the
step's rate or more is never waited for.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from star_jax.bundle import DEFAULT_BUNDLE, load_bundle
from star_jax.data.token_cache import TokenCache
from star_jax.metrics.benchmark import benchmark, to_whole
from star_jax.metrics.report import table
from star_jax.train.build_cache import build_cache
from star_jax.train.optimizer import build_optimizer
from star_jax.train.token_drop import TokenDrop

TRAIN = "train"
_FILE = 64  # examples or captions


def time_build(config, examples: int) -> dict[str, float]:
  """Builds `config.cache`; {"pictures", "captions"}: of each, a second."""
  config.cache.update(
    examples=examples, shard_examples=_FILE, shard_captions=_FILE
  )
  times: dict[str, list[float]] = {"pictures": [], "captions": []}

  def report(line: str) -> None:
    for name, seen in times.items():
      if f": {name} " in line:
        seen.append(time.perf_counter())

  build_cache(config, [TRAIN], report=report)
  return {
    # The last file may be a short one.
    name: _FILE * (len(seen) - 2) / (seen[-2] - seen[0])
    for name, seen in times.items()
  }


def time_loader(cache: TokenCache, batch_size: int, count: int) -> float:
  """Training batches a second, one after the other."""
  batches = cache.train_batches(batch_size, seed=0)
  for _ in range(3):
    next(batches)
  start = time.perf_counter()
  for _ in range(count):
    next(batches)
  return count / (time.perf_counter() - start)


def measure(config, cache: str, examples: int, batches: int) -> dict[str, Any]:
  """All figures; rates are a second.

  Args:
    config: of stage 2; its cache is built for a while.
    cache: directory of a finished one to read instead; empty: the one built.
    examples: in the cache that is built.
    batches: that are read.
  """
  bundle = load_bundle(config.tokenizer_path)
  with tempfile.TemporaryDirectory() as folder:
    config.cache.directory = folder
    out: dict[str, Any] = time_build(config, examples)
    directory = Path(cache or folder)
    found = TokenCache(directory / TRAIN, config.text.max_tokens)
    out["loader"] = time_loader(found, config.batch_size, batches)
    out["examples"], out["batch"] = len(found), config.batch_size
  timed = benchmark(
    bundle,
    batches=(),
    train_batch=config.batch_size,
    optimizer=build_optimizer(config.optimizer, num_steps=1000),
    token_drop=TokenDrop(**config.token_drop),
    repeats=5,
  )
  out["step"] = timed["training"]["steps_per_second"]
  out["ratio"] = out["loader"] / out["step"]
  return out


def to_markdown(found: dict[str, Any]) -> str:
  """The figures as a table."""
  batch = found["batch"]
  rows = [
    ("pictures drawn and encoded", f"{found['pictures']:.0f}/s", ""),
    ("captions encoded", f"{found['captions']:.0f}/s", ""),
    (
      f"loader, batch {batch}, {found['examples']} examples",
      f"{found['loader']:.0f} batches/s",
      f"{found['loader'] * batch:.0f} pictures/s",
    ),
    (
      f"training step, batch {batch}",
      f"{found['step']:.2f} steps/s",
      f"{found['step'] * batch:.0f} pictures/s",
    ),
    ("loader / step", f"{found['ratio']:.0f}", "10 asked for"),
  ]
  return table(rows, ("what", "rate", ""))


def main(argv: list[str] | None = None) -> None:
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--cache", default="", help="A finished cache to read.")
  parser.add_argument("--examples", default="512", help="That are encoded.")
  parser.add_argument("--batches", default="300", help="That are read.")
  args = parser.parse_args(argv)
  from configs import star_scenes64

  config = star_scenes64.get_config()
  config.tokenizer_path = str(DEFAULT_BUNDLE)
  try:
    examples = max(to_whole("--examples", args.examples), 4 * _FILE)
    batches = to_whole("--batches", args.batches)
    print(to_markdown(measure(config, args.cache, examples, batches)))
  except ValueError as error:
    sys.exit(str(error))


if __name__ == "__main__":
  main()
