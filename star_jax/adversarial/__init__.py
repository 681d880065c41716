"""Discriminators of reconstructions, and the losses of both sides."""

from star_jax.adversarial.augment import AugmentConfig, augment
from star_jax.adversarial.discriminator import (
  Discriminator,
  DiscriminatorConfig,
  discriminator_of,
  load,
)

__all__ = [
  "AugmentConfig",
  "Discriminator",
  "DiscriminatorConfig",
  "augment",
  "discriminator_of",
  "load",
]
