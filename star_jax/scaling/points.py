"""The figures of a sweep as arrays, from its result file.

n: points, one a run (size, seed, budget).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from star_jax.metrics.report import read_json
from star_jax.scaling.measure import NEW

# What laws are fitted to: kind and scales, and the title of it.
MEASURES = {
  ("loss", "last"): "loss, last scale",
  ("loss", "all"): "loss, all scales",
  ("error", "last"): "token error, last scale",
  ("error", "all"): "token error, all scales",
}
Measure = tuple[str, str]


@dataclasses.dataclass(frozen=True)
class Points:
  """size_n: names. seed_n. fraction_n: of the longest run. params_n: N.
  tokens_n: D, that the run has seen. flops_n: C. gap_n: see `measure`.
  values: of new scenes, by measure."""

  size_n: np.ndarray
  seed_n: np.ndarray
  fraction_n: np.ndarray
  params_n: np.ndarray
  tokens_n: np.ndarray
  flops_n: np.ndarray
  gap_n: np.ndarray
  values: dict[Measure, np.ndarray]

  def __len__(self) -> int:
    return len(self.size_n)

  def where(self, mask_n: np.ndarray) -> Points:
    """Some of them."""
    fields = {
      f.name: getattr(self, f.name)[mask_n]
      for f in dataclasses.fields(self)
      if f.name != "values"
    }
    values = {name: y_n[mask_n] for name, y_n in self.values.items()}
    return Points(**fields, values=values)

  @property
  def sizes(self) -> list[str]:
    """Names, by rising N."""
    order = {s: n for s, n in zip(self.size_n.tolist(), self.params_n)}
    return sorted(order, key=order.get)

  def means(self) -> Points:
    """Over the seeds of every size and budget."""
    keys = list(zip(self.size_n.tolist(), self.fraction_n.tolist()))
    first = [i for i, key in enumerate(keys) if keys.index(key) == i]
    out = self.where(np.asarray(first, int))
    for name, y_n in self.values.items():
      out.values[name] = np.array(
        [
          np.mean([y for y, key in zip(y_n, keys) if key == keys[i]])
          for i in first
        ]
      )
    return out


def load_points(path: str | Path) -> tuple[Points, dict[str, Any]]:
  """The points of a result file, and the file.

  Raises:
    ValueError: no such file, no points in it, points of different tokens, or
      figures that are not finite.
  """
  results = read_json(Path(path))
  if results is None:
    raise ValueError(
      f"There are no results in {path}; launch/sweep.py writes"
      " OUT/results.json."
    )
  return points_of(results, str(path)), results


def points_of(results: Mapping[str, Any], source: str) -> Points:
  """See `load_points`; `source` is named in what is refused."""
  rows = results.get("points") or []
  if not rows:
    raise ValueError(
      f"{source} holds no point of a scaling sweep: run jobs of it with"
      " launch/sweep.py."
    )
  streams = {str(row["stream"]) for row in rows}
  if len(streams) > 1:
    raise ValueError(
      f"The points of {source} are of {len(streams)} streams of tokens, and"
      " likelihoods compare on identical tokens only:"
      f" {'; '.join(sorted(streams))}."
    )
  values = {}
  for kind, scales in MEASURES:
    values[kind, scales] = np.array([r[kind][NEW][scales] for r in rows], float)
    for row, value in zip(rows, values[kind, scales]):
      if not (np.isfinite(value) and value > 0):
        raise ValueError(
          f"The {kind} of {row['size']}, seed {row['seed']}, after"
          f" {row['examples']:,} examples is {value:g} in {source}; delete that"
          " point and run its job again."
        )

  def column(name: str, dtype=float) -> np.ndarray:
    return np.array([row[name] for row in rows], dtype)

  return Points(
    size_n=column("size", str),
    seed_n=column("seed", int),
    fraction_n=column("fraction"),
    params_n=column("non_embedding"),
    tokens_n=column("tokens"),
    flops_n=column("flops"),
    gap_n=column("gap"),
    values=values,
  )
