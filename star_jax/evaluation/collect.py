"""Streams pictures through a feature network into statistics.

The batch is split over all local devices. While they compute, the next batch
is read and the features of the last one are summed on the host.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from star_jax.evaluation.networks import Network
from star_jax.evaluation.pictures import Pictures, batches
from star_jax.evaluation.statistics import Statistics

USED = ("pool", "spatial", "logits")


class Extractor:
  """uint8 pictures to features, in batches of one size on all devices."""

  def __init__(self, network: Network, batch_size: int, devices=None):
    """The batch is rounded up to a multiple of the number of devices."""
    devices = list(devices or jax.local_devices())
    mesh = Mesh(np.array(devices), ("data",))
    self.rows = NamedSharding(mesh, PartitionSpec("data"))
    whole = NamedSharding(mesh, PartitionSpec())
    self.batch_size = -(-batch_size // len(devices)) * len(devices)
    self.network = network
    self._params = jax.device_put(network.params, whole)

    @jax.jit
    def step(params, image_BHW3):
      out = network.apply(params, image_BHW3)
      return {name: out[name] for name in USED}

    self._step = step

  def start(self, image: np.ndarray) -> dict[str, jax.Array]:
    """Starts the computation of at most `batch_size` pictures; rows that no
    picture fills are undefined."""
    missing = self.batch_size - len(image)
    if missing:
      image = np.concatenate([image, np.repeat(image[-1:], missing, 0)])
    return self._step(self._params, jax.device_put(image, self.rows))

  def stream(self, source: Iterator) -> Iterator[dict[str, np.ndarray]]:
    """Features of batches (number, pictures), one batch behind."""
    waiting = None
    for _, image in source:
      ahead = self.start(image), len(image)
      if waiting is not None:
        yield _finish(*waiting)
      waiting = ahead
    if waiting is not None:
      yield _finish(*waiting)


def _finish(out: dict[str, jax.Array], n: int) -> dict[str, np.ndarray]:
  return {name: np.asarray(x)[:n] for name, x in out.items()}


def collect(
  pictures: Pictures,
  extractor: Extractor,
  settings: dict[str, Any],
  path: Path,
  *,
  save_seconds: float,
  progress: Callable[[int, int], None] = lambda done, total: None,
) -> Statistics:
  """Statistics of all pictures.

  Args:
    pictures: the set.
    extractor: of the feature network.
    settings: "reservoir" (most pictures in the sample), "seed" and
      "class_splits".
    path: where they are kept; a run that was stopped goes on from there, and
      a finished one is not run again.
    save_seconds: most seconds of work that a stop may cost.
    progress: called with (pictures done, pictures in all).

  Raises:
    ValueError: too few pictures, sizes that differ, features not finite.
  """
  source = {**settings, "pictures": pictures.identity}
  out = _resumed(path, extractor.network, source, len(pictures))
  saved = time.monotonic()
  stream = extractor.stream(batches(pictures, extractor.batch_size, out.done))
  for features in stream:
    out.add(features)
    progress(out.done, out.total)
    if time.monotonic() - saved > save_seconds:
      out.save(path)
      saved = time.monotonic()
  out.save(path)
  return out


def _resumed(path: Path, network: Network, source, total: int) -> Statistics:
  """What an earlier run left, if it was of the same pictures and settings."""
  fresh = Statistics.empty(network, source, total)
  if not path.is_file():
    return fresh
  try:
    old = Statistics.load(path)
  except ValueError:
    return fresh
  facts = lambda s: (s.identity, s.source, s.total)  # noqa: E731
  return old if facts(old) == facts(fresh) else fresh
