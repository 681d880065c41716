"""A discriminator as functions and the parameters they take.

B: batch, H W: pixels, N: patches of a picture.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from star_jax.adversarial.dino import Dino, DinoConfig, read_dino
from star_jax.adversarial.feature_discriminator import FeatureHeads
from star_jax.adversarial.patchgan import NORMS, PatchDiscriminator
from star_jax.convert.pth import read_state_dict
from star_jax.metrics import efficientnet
from star_jax.tokenizer.resize import grow

PyTree = Any
KINDS = ("patch", "efficientnet", "dino")
HEAD_NORMS = ("spectral", "none")
# Blocks of EfficientNet-lite0 that are the last ones at 1/4, 1/8, 1/16 and
# 1/32 of the picture's sides.
EFFICIENTNET_TAPS = (2, 4, 10, 15)
_EFFICIENTNET_BLOCKS = 16


@dataclasses.dataclass(frozen=True)
class DiscriminatorConfig:
  """Which discriminator.

  Attributes:
    kind: "patch": convolutions trained from scratch. "efficientnet", "dino":
      trained heads on frozen features of that network. What is trained
      against EfficientNet is never judged by EfficientNet.
    channels: of the first layer ("patch"), or inside of a head.
    layers: of stride 2 ("patch").
    norm: "group", "spectral" or "none" ("patch"); "spectral" or "none"
      (heads). "" is the first of these.
    groups: of a group norm.
    taps: blocks of the frozen network, counted from 0, that have a head; () is
      (2, 4, 10, 15) of EfficientNet-lite0 and (2, 5, 8, 11) of DINO.
    input_size: pixels a side that pictures are enlarged to for the frozen
      network; 0: as they are.
    weights_path: of the frozen network; "" is the installed EfficientNet.
      DINO's come with no package and have to be given.
  """

  kind: str = "patch"
  channels: int = 64
  layers: int = 3
  norm: str = ""
  groups: int = 32
  taps: tuple[int, ...] = ()
  input_size: int = 0
  weights_path: str = ""

  def __post_init__(self):
    object.__setattr__(self, "taps", tuple(self.taps))
    if self.kind not in KINDS:
      raise ValueError(
        f"A discriminator is one of {', '.join(KINDS)}, got {self.kind!r}."
      )
    for name in ("channels", "layers", "groups"):
      if getattr(self, name) < 1:
        raise ValueError(
          f"{name} of a discriminator is at least 1, got {getattr(self, name)}."
        )
    norms = NORMS if self.kind == "patch" else HEAD_NORMS
    if not self.norm:
      object.__setattr__(self, "norm", norms[0])
    if self.norm not in norms:
      raise ValueError(
        f"norm of the discriminator {self.kind} is one of {', '.join(norms)},"
        f" got {self.norm!r}."
      )
    if self.norm == "group" and 2 * self.channels % self.groups:
      raise ValueError(
        f"groups = {self.groups} of the discriminator do not divide twice its"
        f" channels = {self.channels}."
      )
    self._check_frozen()

  def _check_frozen(self) -> None:
    """What only discriminators on frozen features have."""
    if self.kind == "patch":
      if self.taps or self.input_size or self.weights_path:
        raise ValueError(
          "The discriminator patch has no frozen network: taps, input_size and"
          " weights_path stay empty."
        )
      return
    blocks, taps = _EFFICIENTNET_BLOCKS, EFFICIENTNET_TAPS
    if self.kind == "dino":
      blocks, taps = DinoConfig.depth, DinoConfig.taps
      if not self.weights_path:
        raise ValueError(
          "The discriminator dino needs weights_path, the published file of"
          " DINO's ViT-S/16; without one there is efficientnet."
        )
    object.__setattr__(self, "taps", tuple(sorted(self.taps)) or taps)
    if len(set(self.taps)) < len(self.taps) or not all(
      tap in range(blocks) for tap in self.taps
    ):
      raise ValueError(
        f"taps of the discriminator {self.kind} are different blocks from 0 to"
        f" {blocks - 1}, got {self.taps}."
      )


@dataclasses.dataclass(frozen=True)
class Discriminator:
  """Pictures in [-1, 1] -> logits, higher is more real.

  Attributes:
    config: which one.
    module: what is trained: takes `features`.
  """

  config: DiscriminatorConfig
  module: nn.Module

  def features(self, frozen: PyTree, image_BHW3: jax.Array):
    """What the trained part looks at: the picture itself, or features
    [B, h, w, C] of it. `frozen` is never trained."""
    c = self.config
    if c.kind == "patch":
      return image_BHW3
    x = image_BHW3.astype(jnp.float32)
    if c.input_size:
      x = grow(x, (c.input_size, c.input_size))
    if c.kind == "dino":
      _check_multiple(x.shape, DinoConfig.patch)
      return Dino(DinoConfig(taps=c.taps)).apply({"params": frozen["dino"]}, x)
    outputs = efficientnet.block_outputs(
      frozen["efficientnet"], (x + 1) * 127.5
    )
    return [outputs[tap] for tap in c.taps]

  def logits(
    self, params: PyTree, frozen: PyTree, image_BHW3: jax.Array
  ) -> jax.Array:
    """float32 [B, N]; a row depends on its own picture alone."""
    features = self.features(frozen, image_BHW3)
    return self.module.apply({"params": params}, features)

  def init(self, key: jax.Array, frozen: PyTree, image_size: Sequence[int]):
    """The parameters, for pictures of (H, W) pixels.

    Raises:
      ValueError: pictures too small to leave a patch.
    """
    shape = jax.ShapeDtypeStruct((1, *image_size, 3), jnp.float32)
    shapes = jax.eval_shape(self.features, frozen, shape)
    if self.config.kind == "patch":
      _check_patches(self.config, image_size)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    return self.module.init(key, zeros)["params"]


def discriminator_of(config: DiscriminatorConfig) -> Discriminator:
  """What `load` returns first, without reading any weights."""
  if config.kind == "patch":
    module: nn.Module = PatchDiscriminator(
      config.channels, config.layers, config.norm, config.groups
    )
  else:
    module = FeatureHeads(config.channels, config.norm == "spectral")
  return Discriminator(config, module)


def load(
  config: DiscriminatorConfig | Mapping,
) -> tuple[Discriminator, PyTree]:
  """The discriminator, and the frozen parameters to call it with.

  Args:
    config: or the same settings by name.

  Returns:
    The discriminator and `frozen`: numpy arrays, {} for "patch", else
    {"efficientnet": ...} or {"dino": ...} with what the taps need and no more.

  Raises:
    ValueError: unknown settings, or weights of the wrong network.
    FileNotFoundError: weights that are not there.
  """
  if not isinstance(config, DiscriminatorConfig):
    config = DiscriminatorConfig(**config)
  frozen = {}
  if config.kind == "efficientnet":
    path = config.weights_path or efficientnet.default_weights()
    params = efficientnet.params_from_state(read_state_dict(path))
    blocks = params["blocks"][: max(config.taps) + 1]
    frozen = {"efficientnet": {"stem": params["stem"], "blocks": blocks}}
  elif config.kind == "dino":
    dino_config = DinoConfig(taps=config.taps)
    frozen = {"dino": read_dino(config.weights_path, dino_config)}
  return discriminator_of(config), frozen


def _check_multiple(shape: Sequence[int], patch: int) -> None:
  if shape[1] % patch or shape[2] % patch:
    raise ValueError(
      f"The discriminator dino needs pictures whose sides are multiples of"
      f" {patch} pixels, got {shape[1]} x {shape[2]}; set input_size."
    )


def _check_patches(config: DiscriminatorConfig, size: Sequence[int]) -> None:
  """Two layers of stride 1 take a pixel each off what the strides leave."""
  smallest = 3 * 2**config.layers
  if min(size) < smallest:
    raise ValueError(
      f"A patch discriminator with layers = {config.layers} needs pictures of"
      f" at least {smallest} pixels a side, got {size[0]} x {size[1]}."
    )
