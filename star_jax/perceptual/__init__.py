"""Distances between pictures in the features of a frozen network."""

from star_jax.perceptual.distance import (
  NAMES,
  Distance,
  PerceptualConfig,
  distance_of,
  load,
)

__all__ = ["NAMES", "Distance", "PerceptualConfig", "distance_of", "load"]
