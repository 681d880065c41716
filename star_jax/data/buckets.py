"""Batches of pictures of several shapes, each batch of one shape.

Which shape comes when is a pure function of the seed and of the number of the
batch, so that all processes of a run take the same one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np


def folder_name(aspect: str) -> str:
  """ "16:9" as part of a path."""
  return aspect.replace(":", "x")


class Buckets:
  """An endless iterator over the batches of several iterators.

  Args:
    sources: iterators with get_state and set_state, by name.
    shares: how often each comes, by name; they need not sum to 1.
    seed: of the order.

  Raises:
    ValueError: no source, or shares of other names.
  """

  def __init__(
    self,
    sources: Mapping[str, Any],
    shares: Mapping[str, float],
    seed: int,
  ):
    if not sources or set(sources) != set(shares):
      raise ValueError(
        f"Every bucket has a share, got the buckets {', '.join(sources)} and"
        f" the shares {dict(shares)}."
      )
    self._sources = dict(sources)
    self._names = list(sources)
    weights = np.asarray([shares[name] for name in self._names], np.float64)
    self._shares = weights / weights.sum()
    self._seed = seed
    self._next = 0

  def __iter__(self) -> Buckets:
    return self

  def name_at(self, number: int) -> str:
    """Which bucket batch `number` comes from."""
    rng = np.random.default_rng([self._seed, number])
    return self._names[rng.choice(len(self._names), p=self._shares)]

  def __next__(self) -> tuple[str, Any]:
    """(name of the bucket, its next batch)."""
    name = self.name_at(self._next)
    self._next += 1
    return name, next(self._sources[name])

  def get_state(self) -> dict[str, Any]:
    states = {name: s.get_state() for name, s in self._sources.items()}
    return {"next": self._next, "buckets": states}

  def set_state(self, state: dict[str, Any]) -> None:
    if set(state["buckets"]) != set(self._names):
      raise ValueError(
        f"The saved position is of the shapes {', '.join(state['buckets'])},"
        f" this run reads {', '.join(self._names)}."
      )
    self._next = state["next"]
    for name, saved in state["buckets"].items():
      self._sources[name].set_state(saved)
