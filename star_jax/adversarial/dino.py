"""DINO's ViT-S/16 (arXiv 2104.14294) as a frozen network, for whoever has the
published weights (dino_deitsmall16_pretrain.pth).

B: batch, H W: pixels, h w: patches, L: tokens (class token first), C: width,
N: heads, d: width of a head.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from star_jax.convert.pth import read_pth
from star_jax.convert.state_dict import (
  CONV,
  Converted,
  Rule,
  ignore,
  linear,
)
from star_jax.tensor_file import read_tensors
from star_jax.tokenizer.resize import grow

# Of ImageNet's pixels in [0, 1], as the published model is fed.
_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
_STD = np.array([0.229, 0.224, 0.225], np.float32)
_PREFIXES = ("module.", "backbone.")


@dataclasses.dataclass(frozen=True)
class DinoConfig:
  """Sizes; the defaults are ViT-S/16.

  Attributes:
    width, depth, heads: of the transformer.
    patch: pixels a side.
    grid: patches a side that it was trained with.
    taps: blocks, counted from 0, whose tokens come out.
  """

  width: int = 384
  depth: int = 12
  heads: int = 6
  patch: int = 16
  grid: int = 14
  taps: tuple[int, ...] = (2, 5, 8, 11)


class Block(nn.Module):
  """Attention and MLP behind layer norms; all [B, L, C]."""

  heads: int

  @nn.compact
  def __call__(self, x_BLC: jax.Array) -> jax.Array:
    width = x_BLC.shape[-1]
    y_BLC = nn.LayerNorm(epsilon=1e-6, name="norm1")(x_BLC)
    q, k, v = einops.rearrange(
      nn.Dense(3 * width, name="qkv")(y_BLC),
      "b l (three n d) -> three b l n d",
      three=3,
      n=self.heads,
    )
    y_BLNd = jax.nn.dot_product_attention(q, k, v)
    y_BLC = einops.rearrange(y_BLNd, "b l n d -> b l (n d)")
    x_BLC = x_BLC + nn.Dense(width, name="proj")(y_BLC)
    y_BLC = nn.LayerNorm(epsilon=1e-6, name="norm2")(x_BLC)
    y_BLC = nn.gelu(nn.Dense(4 * width, name="fc1")(y_BLC), approximate=False)
    return x_BLC + nn.Dense(width, name="fc2")(y_BLC)


class Dino(nn.Module):
  """Pictures in, tokens of some blocks out; float32."""

  config: DinoConfig

  @nn.compact
  def __call__(self, image_BHW3: jax.Array) -> list[jax.Array]:
    """Patch tokens after the blocks `config.taps`, before the last norm.

    Args:
      image_BHW3: in [-1, 1]; sides are multiples of the patch. On a grid other
        than the trained one positions are interpolated (bicubic).

    Returns:
      float32 [B, h, w, C] of each tap.
    """
    c = self.config
    size = (c.patch, c.patch)
    x = ((image_BHW3.astype(jnp.float32) + 1) / 2 - _MEAN) / _STD
    x = nn.Conv(c.width, size, size, "VALID", name="patch_embed")(x)
    batch, h, w, _ = x.shape
    cls_11C = self.param("cls_token", nn.initializers.zeros, (1, 1, c.width))
    pos_1LC = self.param(
      "pos_embed", nn.initializers.zeros, (1, 1 + c.grid**2, c.width)
    )
    grid_1hwC = pos_1LC[:, 1:].reshape(1, c.grid, c.grid, c.width)
    x = (x + grow(grid_1hwC, (h, w))).reshape(batch, h * w, c.width)
    cls_B1C = jnp.broadcast_to(cls_11C + pos_1LC[:, :1], (batch, 1, c.width))
    x_BLC, features = jnp.concatenate([cls_B1C, x], axis=1), []
    for i in range(max(c.taps) + 1):
      x_BLC = Block(c.heads, name=f"block_{i}")(x_BLC)
      if i in c.taps:
        features.append(x_BLC[:, 1:].reshape(batch, h, w, c.width))
    return features


def dino_rules(config: DinoConfig) -> tuple[Rule, ...]:
  """Rules for every key of the published state dict."""
  return (
    Rule("cls_token", "cls_token"),
    Rule("pos_embed", "pos_embed"),
    Rule("patch_embed.proj.weight", "patch_embed/kernel", CONV),
    Rule("patch_embed.proj.bias", "patch_embed/bias"),
    *linear("blocks.{i}.attn.{part}", "block_{i}/{part}"),
    *linear("blocks.{i}.mlp.{part}", "block_{i}/{part}"),
    *(
      rule
      for n in (1, 2)
      for rule in (
        Rule(f"blocks.{{i}}.norm{n}.weight", f"block_{{i}}/norm{n}/scale"),
        Rule(f"blocks.{{i}}.norm{n}.bias", f"block_{{i}}/norm{n}/bias"),
      )
    ),
    # Behind the last tap.
    ignore("norm.{part}"),
    ignore("head.{part}"),
  )


def convert_dino(
  state: Mapping[str, np.ndarray], config: DinoConfig
) -> dict[str, Any]:
  """Our parameters from the published state dict.

  Raises:
    ValueError: keys missing or unknown, or a shape that differs.
  """
  side = config.patch * config.grid
  template = jax.eval_shape(
    Dino(config).init, jax.random.key(0), jnp.zeros((1, side, side, 3))
  )["params"]
  unused = range(max(config.taps) + 1, config.depth)
  dropped = tuple(f"blocks.{i}." for i in unused)
  used = {k: v for k, v in state.items() if not k.startswith(dropped)}
  return Converted(used, dino_rules(config), template).tree()


def read_dino(path: str | Path, config: DinoConfig) -> dict[str, Any]:
  """Our parameters from the published file (.pth or .safetensors).

  A whole training checkpoint ({"teacher": ...}) is taken, too.

  Raises:
    ValueError: not a state dict, or of another network.
    FileNotFoundError: no such file.
  """
  path = Path(path)
  if path.suffix == ".safetensors":
    state: Any = read_tensors(path)
  else:
    state = read_pth(path)
  if isinstance(state, Mapping) and isinstance(state.get("teacher"), Mapping):
    state = state["teacher"]
  if not isinstance(state, Mapping):
    raise ValueError(f"{path} holds a {type(state).__name__}, no state dict.")
  arrays = {
    _bare(key): value
    for key, value in state.items()
    if isinstance(value, np.ndarray)
  }
  try:
    return convert_dino(arrays, config)
  except ValueError as error:
    raise ValueError(
      f"{path} holds weights of the wrong network: expected was DINO's ViT of"
      f" width {config.width} and depth {config.depth}. {error}"
    ) from None


def _bare(key: str) -> str:
  while key.startswith(_PREFIXES):
    key = key.partition(".")[2]
  return key
