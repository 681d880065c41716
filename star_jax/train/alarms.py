"""Metrics that leave the band in which a training is healthy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


class Alarms:
  """Watches the rows of a log.

  Args:
    bands: config.alarms, metric -> (least, most).
    patience: config.alarm_patience, steps from the first row of a metric on in
      which it may be anything: a discriminator that comes in knows nothing yet.

  Raises:
    ValueError: something else than bands.
  """

  def __init__(self, bands: Mapping[str, Sequence[float]], patience: int):
    for name, band in bands.items():
      if len(band) != 2 or not band[0] <= band[1]:
        raise ValueError(
          f"config.alarms.{name} is (least, most) of a metric, got"
          f" {tuple(band)}."
        )
    self._bands, self._patience = bands, patience
    self._first: dict[str, int] = {}

  def lines(self, step: int, row: Mapping[str, Any]) -> list[str]:
    """A line for each metric outside of its band.

    Args:
      step: of the row.
      row: means since the last row; metrics that are not in it are not looked
        at.
    """
    found = []
    for name, (least, most) in self._bands.items():
      if name not in row:
        continue
      first = self._first.setdefault(name, step)
      value = float(row[name])
      if step - first >= self._patience and not least <= value <= most:
        found.append(
          f"ALARM at step {step}: {name} is {value:.4g}, outside of"
          f" {least:g} to {most:g} (config.alarms.{name})."
        )
    return found
