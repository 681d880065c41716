"""Convolutional encoder and decoder of the tokenizer (VQGAN layout of VAR).

B: batch, h w: positions at the current resolution, C: channels. Channels last.
Everything is computed in `dtype`, normalisation statistics and the attention
softmax in float32. Parameters are float32.
"""

from __future__ import annotations

import math

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp

from star_jax.tokenizer.conv import Conv3x3

NORM_GROUPS = 32
NORM_EPS = 1e-6


class GroupNorm(nn.Module):
  """Group normalisation with statistics in float32.

  32 groups as in the official code; widths that 32 does not divide use the
  largest common divisor, so that small models are legal.
  """

  dtype: str

  @nn.compact
  def __call__(self, x_BhwC: jax.Array) -> jax.Array:
    width = x_BhwC.shape[-1]
    scale_C = self.param("scale", nn.initializers.ones, (width,))
    bias_C = self.param("bias", nn.initializers.zeros, (width,))
    groups = math.gcd(NORM_GROUPS, width)
    x = x_BhwC.astype(jnp.float32)

    def over_groups(stat_B11C):
      """Mean over the channels of each group, repeated for each of them."""
      stat = einops.reduce(
        stat_B11C, "b 1 1 (g c) -> b 1 1 g", "mean", g=groups
      )
      return jnp.repeat(stat, width // groups, axis=-1)

    # Two passes: E[x^2] - E[x]^2 cancels for maps with a large mean.
    mean = over_groups(x.mean((1, 2), keepdims=True))
    var = over_groups(jnp.square(x - mean).mean((1, 2), keepdims=True))
    gain = scale_C * jax.lax.rsqrt(var + NORM_EPS)
    return ((x - mean) * gain + bias_C).astype(self.dtype)


class SpatialNorm(nn.Module):
  """Group normalisation, scaled and shifted at every place by linear maps of
  the code there (MoVQ, arXiv 2209.09002).

  It starts as the plain normalisation.
  """

  dtype: str

  @nn.compact
  def __call__(self, x_BhwC: jax.Array, code_BhwCv: jax.Array) -> jax.Array:
    width = x_BhwC.shape[-1]
    # Maps on the small grid, grown afterwards: the same by linearity.
    modulation = nn.Dense(
      2 * width,
      dtype=self.dtype,
      kernel_init=nn.initializers.zeros,
      name="modulation",
    )(code_BhwCv)
    p, q = (a // b for a, b in zip(x_BhwC.shape[1:3], code_BhwCv.shape[1:3]))
    modulation = einops.repeat(
      modulation, "b h w c -> b (h p) (w q) c", p=p, q=q
    )
    scale, shift = jnp.split(modulation, 2, axis=-1)
    x = GroupNorm(self.dtype, name="norm")(x_BhwC)
    return x * (1 + scale) + shift


def norm(
  x_BhwC: jax.Array, code_BhwCv: jax.Array | None, dtype: str, name: str
) -> jax.Array:
  """The normalisation of this name; called in a compact method."""
  if code_BhwCv is None:
    return GroupNorm(dtype, name=name)(x_BhwC)
  return SpatialNorm(dtype, name=name)(x_BhwC, code_BhwCv)


class ResBlock(nn.Module):
  """norm - SiLU - conv, twice, plus the input (1x1 conv if widths differ).

  fast: see `Conv3x3`, here and below. code_BhwCv: see `SpatialNorm`; None: a
  plain normalisation.
  """

  features: int
  dropout: float
  dtype: str
  fast: bool = False

  @nn.compact
  def __call__(
    self,
    x_BhwC: jax.Array,
    deterministic: bool,
    code_BhwCv: jax.Array | None = None,
  ) -> jax.Array:
    h = nn.silu(norm(x_BhwC, code_BhwCv, self.dtype, "norm1"))
    h = Conv3x3(self.features, self.dtype, self.fast, name="conv1")(h)
    h = nn.silu(norm(h, code_BhwCv, self.dtype, "norm2"))
    h = nn.Dropout(self.dropout, deterministic=deterministic)(h)
    h = Conv3x3(self.features, self.dtype, self.fast, name="conv2")(h)
    if x_BhwC.shape[-1] != self.features:
      x_BhwC = nn.Conv(
        self.features, (1, 1), dtype=self.dtype, name="nin_shortcut"
      )(x_BhwC)
    return x_BhwC + h


class AttnBlock(nn.Module):
  """Single-head self-attention over all positions, with residual."""

  dtype: str

  @nn.compact
  def __call__(
    self, x_BhwC: jax.Array, code_BhwCv: jax.Array | None = None
  ) -> jax.Array:
    _, h, w, width = x_BhwC.shape
    x = norm(x_BhwC, code_BhwCv, self.dtype, "norm")
    x = einops.rearrange(x, "b h w c -> b (h w) c")
    qkv = nn.Dense(3 * width, dtype=self.dtype, name="qkv")(x)
    q, k, v = jnp.split(qkv, 3, axis=-1)
    logits = jnp.einsum("bqc,bkc->bqk", q, k).astype(jnp.float32)
    weights = nn.softmax(logits * width**-0.5).astype(self.dtype)
    x = jnp.einsum("bqk,bkc->bqc", weights, v)
    x = nn.Dense(width, dtype=self.dtype, name="proj_out")(x)
    return x_BhwC + einops.rearrange(x, "b (h w) c -> b h w c", h=h, w=w)


class Downsample(nn.Module):
  """Stride-2 convolution, padded at the bottom and the right only."""

  dtype: str

  @nn.compact
  def __call__(self, x_BhwC: jax.Array) -> jax.Array:
    return nn.Conv(
      x_BhwC.shape[-1],
      (3, 3),
      strides=2,
      padding=((0, 1), (0, 1)),
      dtype=self.dtype,
      name="conv",
    )(x_BhwC)


class Upsample(nn.Module):
  """Nearest-neighbour doubling, then a convolution."""

  dtype: str
  fast: bool = False

  @nn.compact
  def __call__(self, x_BhwC: jax.Array) -> jax.Array:
    x = einops.repeat(x_BhwC, "b h w c -> b (h p) (w q) c", p=2, q=2)
    return Conv3x3(x.shape[-1], self.dtype, self.fast, name="conv")(x)


class Middle(nn.Module):
  """Residual block, attention, residual block at the coarsest resolution."""

  dropout: float
  attention: bool
  dtype: str
  fast: bool = False

  @nn.compact
  def __call__(
    self,
    x_BhwC: jax.Array,
    deterministic: bool,
    code_BhwCv: jax.Array | None = None,
  ) -> jax.Array:
    args = (x_BhwC.shape[-1], self.dropout, self.dtype, self.fast)
    x = ResBlock(*args, name="block_1")(x_BhwC, deterministic, code_BhwCv)
    if self.attention:
      x = AttnBlock(self.dtype, name="attn_1")(x, code_BhwCv)
    return ResBlock(*args, name="block_2")(x, deterministic, code_BhwCv)


class Encoder(nn.Module):
  """Images [B, H, W, 3] -> [B, h, w, code_dim] (before `quant_conv`)."""

  code_dim: int
  ch: int
  ch_mult: tuple[int, ...]
  num_res_blocks: int
  dropout: float
  attention: bool
  patch_size: int
  dtype: str

  @nn.compact
  def __call__(self, image_BHW3: jax.Array, deterministic: bool) -> jax.Array:
    p = self.patch_size
    x = image_BHW3.astype(self.dtype)
    x = einops.rearrange(x, "b (h p) (w q) c -> b h w (p q c)", p=p, q=p)
    x = Conv3x3(self.ch, self.dtype, name="conv_in")(x)
    last = len(self.ch_mult) - 1
    for i, mult in enumerate(self.ch_mult):
      for j in range(self.num_res_blocks):
        x = ResBlock(
          self.ch * mult, self.dropout, self.dtype, name=f"down_{i}_block_{j}"
        )(x, deterministic)
        if self.attention and i == last:
          x = AttnBlock(self.dtype, name=f"down_{i}_attn_{j}")(x)
      if i != last:
        x = Downsample(self.dtype, name=f"down_{i}_downsample")(x)
    x = Middle(self.dropout, self.attention, self.dtype, name="mid")(
      x, deterministic
    )
    x = nn.silu(GroupNorm(self.dtype, name="norm_out")(x))
    return Conv3x3(self.code_dim, self.dtype, name="conv_out")(x)


class Decoder(nn.Module):
  """[B, h, w, code_dim] (after `post_quant_conv`) -> images, not clamped.

  zero_init: start with the output 0, for a decoder that corrects another one.
  code_BhwCv: what the quantizer gave, for spatial normalisation (MoVQ); None:
    plain normalisation.
  """

  ch: int
  ch_mult: tuple[int, ...]
  num_res_blocks: int
  dropout: float
  attention: bool
  patch_size: int
  dtype: str
  zero_init: bool = False

  @nn.compact
  def __call__(
    self,
    z_BhwCv: jax.Array,
    deterministic: bool,
    code_BhwCv: jax.Array | None = None,
  ) -> jax.Array:
    last = len(self.ch_mult) - 1
    # No token depends on the decoder, and only training needs its gradient.
    fast = deterministic
    x = z_BhwCv.astype(self.dtype)
    width = self.ch * self.ch_mult[-1]
    x = Conv3x3(width, self.dtype, fast, name="conv_in")(x)
    x = Middle(self.dropout, self.attention, self.dtype, fast, name="mid")(
      x, deterministic, code_BhwCv
    )
    # Resolution 0 is the finest, as in the encoder and the official names.
    for i in reversed(range(len(self.ch_mult))):
      for j in range(self.num_res_blocks + 1):
        x = ResBlock(
          self.ch * self.ch_mult[i],
          self.dropout,
          self.dtype,
          fast,
          name=f"up_{i}_block_{j}",
        )(x, deterministic, code_BhwCv)
        if self.attention and i == last:
          x = AttnBlock(self.dtype, name=f"up_{i}_attn_{j}")(x, code_BhwCv)
      if i != 0:
        x = Upsample(self.dtype, fast, name=f"up_{i}_upsample")(x)
    x = nn.silu(norm(x, code_BhwCv, self.dtype, "norm_out"))
    p = self.patch_size
    x = Conv3x3(
      3 * p * p, self.dtype, zero_init=self.zero_init, name="conv_out"
    )(x)
    x = einops.rearrange(x, "b h w (p q c) -> b (h p) (w q) c", p=p, q=p)
    return x.astype(jnp.float32)
