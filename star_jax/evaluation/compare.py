"""All measures of generated against real pictures, under their right names."""

from __future__ import annotations

from typing import Any

import numpy as np

from star_jax.evaluation.distances import (
  frechet_distance,
  kernel_subsets,
  precision_recall,
)
from star_jax.evaluation.networks import Network
from star_jax.evaluation.statistics import Statistics, check_same_network
from star_jax.metrics.kid import kernel_distance

# Kernel distances are of the order of a thousandth.
KERNEL_UNIT = 1000


def compare(
  generated: Statistics,
  real: Statistics,
  network: Network,
  settings: dict[str, Any],
) -> tuple[dict[str, Any], list[tuple[str, str, str]]]:
  """Measures and the rows of their table.

  Args:
    generated, real: statistics of the same feature network. What one of them
      lacks (published statistics have no sample) is left out.
    network: it, for the names.
    settings: "neighbours" of precision and recall; "kernel_subsets",
      "kernel_subset_size" and "seed" of the kernel distance.

  Returns:
    (measure -> value, table rows). "floor" is the kernel distance between two
    halves of the real sample: what no generator gets below but by chance.

  Raises:
    ValueError: too few pictures for a measure, or different networks.
  """
  check_same_network(generated.identity, real.identity)
  values: dict[str, Any] = {
    "generated": generated.done,
    "frechet": frechet_distance(generated.pool, real.pool),
  }
  remarks = {"frechet": _rank_remark(generated)}
  if generated.spatial is not None and real.spatial is not None:
    values["spatial_frechet"] = frechet_distance(
      generated.spatial, real.spatial
    )
  if generated.classes is not None:
    values["class_score"], std = generated.classes.score()
    values["class_score_std"] = std
    splits = len(generated.classes.count_S)
    remarks["class_score"] = f"+- {std:.2f} over {splits} splits"
  if generated.sample is not None and real.sample is not None:
    _pairs(generated.sample, real.sample, settings, values, remarks)
  rows = [
    (network.words[name], f"{values[name]:.4g}", remarks.get(name, ""))
    for name in network.words
    if name in values
  ]
  return values, rows


def _rank_remark(generated: Statistics) -> str:
  n, width = generated.done, len(generated.pool.sum_D)
  if n > width:
    return f"{n} pictures"
  return f"{n} pictures, fewer than the {width} features: too high"


def _pairs(generated, real, settings, values, remarks) -> None:
  """Measures on the two samples; writes to `values` and `remarks`."""
  x_ND, y_MD = generated.rows_RD, real.rows_RD
  values["sample"] = [len(x_ND), len(y_MD)]
  mean, std, how = _kernel(x_ND, y_MD, settings)
  half = len(y_MD) // 2
  floor = _kernel(y_MD[:half], y_MD[half:], settings)[0]
  values["kernel"] = mean * KERNEL_UNIT
  values["kernel_std"] = None if std is None else std * KERNEL_UNIT
  values["floor"] = floor * KERNEL_UNIT
  spread = "" if std is None else f"+- {std * KERNEL_UNIT:.2g}, "
  remarks["kernel"] = (
    f"{spread}{how}; real against real {floor * KERNEL_UNIT:.2g}"
  )
  values["precision"], values["recall"] = precision_recall(
    y_MD, x_ND, settings["neighbours"]
  )
  words = f"{len(x_ND)} against {len(y_MD)} real pictures"
  remarks["precision"] = remarks["recall"] = words


def _kernel(x_ND: np.ndarray, y_MD: np.ndarray, settings):
  """(mean, standard deviation or None, how it was taken)."""
  size = settings["kernel_subset_size"]
  if min(len(x_ND), len(y_MD)) < size:
    # Too few for subsets: the unbiased estimate over all pairs.
    return kernel_distance(x_ND, y_MD), None, "all pairs"
  number = settings["kernel_subsets"]
  mean, std = kernel_subsets(x_ND, y_MD, number, size, settings["seed"])
  return mean, std, f"{number} subsets of {size}"
