"""What is kept of a set of pictures: sums, a sample, never all features.

Statistics on disk are a .npz without pickles. A run that was stopped goes on
from the last one; a finished one serves as the reference of later runs.
"""

from __future__ import annotations

import dataclasses
import json
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from star_jax.evaluation.class_score import ClassSums, draw_splits
from star_jax.evaluation.moments import Moments
from star_jax.evaluation.networks import Network
from star_jax.evaluation.reservoir import Reservoir


@dataclasses.dataclass
class Statistics:
  """Of the first `done` pictures of a set.

  Attributes:
    identity: network, weights and resize, see `Network.identity`.
    source: what else decides the numbers: pictures and settings.
    total: pictures in the set.
    done: pictures so far.
    pool, spatial: moments of these features; spatial None if unknown.
    sample: of pool features; None if unknown.
    classes: None if unknown.
  """

  identity: dict[str, str]
  source: dict[str, Any]
  total: int
  done: int
  pool: Moments
  spatial: Moments | None
  sample: Reservoir | None
  classes: ClassSums | None

  @classmethod
  def empty(
    cls, network: Network, source: dict[str, Any], total: int
  ) -> Statistics:
    """Args: `source` holds "reservoir", "seed" and "class_splits"."""
    widths = network.widths
    return cls(
      network.identity,
      source,
      total,
      0,
      Moments.empty(widths["pool"]),
      Moments.empty(widths["spatial"]),
      Reservoir.empty(source["reservoir"], source["seed"], widths["pool"]),
      ClassSums.empty(source["class_splits"], widths["logits"]),
    )

  def add(self, features: Mapping[str, np.ndarray]) -> None:
    """Adds the features of the next pictures.

    Raises:
      ValueError: features that are not finite; nothing is added then.
    """
    pool = features["pool"]
    index = np.arange(self.done, self.done + len(pool))
    self.pool.add(pool)
    self.spatial.add(features["spatial"])
    self.sample.add(index, pool)
    self.classes.add(self._splits[index], features["logits"])
    self.done += len(pool)

  @property
  def _splits(self) -> np.ndarray:
    if not hasattr(self, "_drawn"):
      self._drawn = draw_splits(
        self.total, self.source["class_splits"], self.source["seed"]
      )
    return self._drawn

  def merged(self, other: Statistics) -> Statistics:
    """Of both sets; the class score does not merge.

    Raises:
      ValueError: of different networks.
    """
    check_same_network(self.identity, other.identity)
    sample = Reservoir.empty(
      self.sample.capacity, self.sample.seed, len(self.pool.sum_D)
    )
    sample.add(self.sample.index_R, self.sample.rows_RD)
    sample.add(other.sample.index_R + self.total, other.sample.rows_RD)
    return Statistics(
      self.identity,
      self.source,
      self.total + other.total,
      self.done + other.done,
      self.pool.merged(other.pool),
      self.spatial.merged(other.spatial),
      sample,
      None,
    )

  def save(self, path: Path) -> None:
    """Writes under another name first; a stop leaves the older file."""
    facts = {
      "identity": self.identity,
      "source": self.source,
      "total": self.total,
      "done": self.done,
    }
    arrays = {"star_jax": np.array(json.dumps(facts))}
    for name in ("pool", "spatial", "sample", "classes"):
      part = getattr(self, name)
      if part is not None:
        arrays |= part.arrays(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp.npz")
    np.savez(temporary, **arrays)
    os.replace(temporary, path)

  @classmethod
  def load(cls, path: Path) -> Statistics:
    """Raises ValueError when the file is damaged or of another kind."""
    try:
      with np.load(path, allow_pickle=False) as data:
        facts = json.loads(str(data["star_jax"]))
        kinds = {
          "pool": Moments,
          "spatial": Moments,
          "sample": Reservoir,
          "classes": ClassSums,
        }
        parts = {
          name: kind.from_arrays(data, name)
          if any(key.startswith(f"{name}_") for key in data.files)
          else None
          for name, kind in kinds.items()
        }
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
      raise ValueError(
        f"{path} does not hold statistics of this program."
      ) from error
    return cls(**facts, **parts)


def check_same_network(a: Mapping[str, str], b: Mapping[str, str]) -> None:
  """ValueError unless features of both may be compared."""
  for key in ("network", "weights", "resize"):
    if a[key] != b[key]:
      raise ValueError(
        f"The statistics are of different feature networks: {key} is"
        f" {a[key]!r} on one side and {b[key]!r} on the other."
      )
