"""Metrics that leave the band in which a training is healthy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def check_bands(bands: Mapping[str, Sequence[float]]) -> None:
  """ValueError unless each of config.alarms is (least, most)."""
  for name, band in bands.items():
    if len(band) != 2 or not band[0] <= band[1]:
      raise ValueError(
        f"config.alarms.{name} is (least, most) of a metric, got {tuple(band)}."
      )


def alarms(
  step: int, row: Mapping[str, Any], bands: Mapping[str, Sequence[float]]
) -> list[str]:
  """A line for each metric outside of its band.

  Args:
    step: of the row.
    row: means since the last row; metrics that are not in it are not looked
      at.
    bands: config.alarms, metric -> (least, most).
  """
  return [
    f"ALARM at step {step}: {name} is {float(row[name]):.4g}, outside of"
    f" {least:g} to {most:g} (config.alarms.{name})."
    for name, (least, most) in bands.items()
    if name in row and not least <= float(row[name]) <= most
  ]
