"""Small trained heads on the features of a frozen network.

After Projected GANs (arXiv 2111.01007) and StyleGAN-T (arXiv 2301.09515): the
network is pretrained and never trained on, so that a discriminator of few
weights knows about pictures from the first step and has little to overfit with.

B: batch, H W: pixels, h w: positions, C: channels, N: positions of all depths.
"""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from star_jax.adversarial.spectral import Conv

_SLOPE = 0.2


class Head(nn.Module):
  """Logits of one depth, one for each position.

  Attributes:
    channels: inside.
    spectral: normalises the weights (arXiv 1802.05957).
  """

  channels: int
  spectral: bool

  @nn.compact
  def __call__(self, x_BhwC: jax.Array) -> jax.Array:
    x = Conv(self.channels, 1, 1, self.spectral, name="reduce")(x_BhwC)
    x = nn.leaky_relu(x, _SLOPE)
    # Neighbours count, beside each position itself.
    y = Conv(self.channels, 3, 1, self.spectral, name="mix")(x)
    x = (x + nn.leaky_relu(y, _SLOPE)) / jnp.sqrt(2.0)
    x = Conv(1, 1, 1, self.spectral, name="verdict")(x)
    return x.reshape(x.shape[0], -1)


class FeatureHeads(nn.Module):
  """A head for every depth.

  Attributes:
    channels, spectral: see `Head`.
  """

  channels: int
  spectral: bool

  @nn.compact
  def __call__(self, features: Sequence[jax.Array]) -> jax.Array:
    """Features [B, h, w, C] of every depth -> logits float32 [B, N].

    Channels of a depth differ in size by orders of magnitude between networks;
    features are divided by their root mean square over the picture first.
    """
    logits = []
    for i, x_BhwC in enumerate(features):
      x = x_BhwC.astype(jnp.float32)
      square = jnp.mean(jnp.square(x), axis=(1, 2, 3), keepdims=True)
      x = x * jax.lax.rsqrt(square + 1e-6)
      head = Head(self.channels, self.spectral, name=f"depth{i}")
      logits.append(head(x))
    return jnp.concatenate(logits, axis=1)
