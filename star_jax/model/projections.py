"""Products with weights that lead into heads and out of them.

A product with the weights as they are writes channels of all heads side by
side, and another pass puts each head on its own. `direct` writes it there at
once: on a TPU that pass is dear, since heads of 64 channels fill half of its
lanes; elsewhere the flat product is the faster one.

B: batch, L: tokens, C: width, N: heads, d: head channels.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jax.ad_checkpoint import checkpoint_name

from star_jax.model.layers import flat_tokens, weight_init

# Name of what such products and those of the MLP put out, for remat "dots".
PRODUCT = "product"


def split_heads(x_BLC: jax.Array, heads: int) -> jax.Array:
  """[B, L, N d] -> [B, N, L, d]."""
  return rearrange(x_BLC, "b l (n d) -> b n l d", n=heads)


def product_into_heads(
  x_BLC: jax.Array, kernel_CC: jax.Array, bias_C: jax.Array | None, heads: int
) -> jax.Array:
  """[B, N, L, d] at once, named PRODUCT.

  It stays apart from what reads it, which a TPU would otherwise compute in
  float32 before the heads are where they belong.
  """
  kernel = rearrange(kernel_CC, "c (n d) -> c n d", n=heads)
  out = jnp.einsum("blc,cnd->bnld", x_BLC, kernel)
  if bias_C is not None:
    out = out + rearrange(bias_C, "(n d) -> n 1 d", n=heads)
  return jax.lax.optimization_barrier(checkpoint_name(out, PRODUCT))


class _Dense(nn.Module):
  """The weights of `nn.Dense`, in the dtype of the products.

  Attributes:
    width: C.
    heads: N.
    dtype: see above.
    std: of the initial weights.
    direct: see the module.
  """

  width: int
  heads: int
  dtype: jnp.dtype
  std: float
  direct: bool

  def weights(self, channels: int) -> tuple[jax.Array, jax.Array]:
    shape = (channels, self.width)
    kernel = self.param("kernel", weight_init(self.std), shape)
    bias = self.param("bias", nn.initializers.zeros_init(), (self.width,))
    return kernel.astype(self.dtype), bias.astype(self.dtype)


class IntoHeads(_Dense):
  """[B, L, C] -> [B, N, L, d]."""

  @nn.compact
  def __call__(self, x_BLC: jax.Array) -> jax.Array:
    kernel_CC, bias_C = self.weights(x_BLC.shape[-1])
    if self.direct:
      return product_into_heads(x_BLC, kernel_CC, bias_C, self.heads)
    out = (flat_tokens(x_BLC) @ kernel_CC + bias_C).reshape(x_BLC.shape)
    return checkpoint_name(split_heads(out, self.heads), PRODUCT)


class OutOfHeads(_Dense):
  """[B, N, L, d] -> [B, L, C]."""

  @nn.compact
  def __call__(self, x_BNLd: jax.Array) -> jax.Array:
    kernel_CC, bias_C = self.weights(self.width)
    if self.direct:
      kernel = rearrange(kernel_CC, "(n d) c -> n d c", n=self.heads)
      out = jnp.einsum("bnld,ndc->blc", x_BNLd, kernel) + bias_C
    else:
      x_BLC = rearrange(x_BNLd, "b n l d -> b l (n d)")
      out = flat_tokens(x_BLC) @ kernel_CC + bias_C
      out = out.reshape(*x_BLC.shape[:2], self.width)
    return checkpoint_name(out, PRODUCT)
