"""The patch discriminator of pix2pix (arXiv 1611.07004) and VQGAN.

Strided 4x4 convolutions; every output judges one patch of the picture.

The published ones normalise by the statistics of the batch. Here it is done
within a picture, or not at all: real and reconstructed pictures come in batches
of their own whose statistics differ, so that a batch norm tells the two apart
for free; it makes the verdict on a picture depend on its neighbours, the
gradient of a penalty per picture wrong, and needs a sum over devices in every
layer.

B: batch, H W: pixels, h w: positions, C: channels, N: patches.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from star_jax.adversarial.spectral import Conv

NORMS = ("group", "spectral", "none")
_SLOPE = 0.2  # of the leaky ReLU, as published
_MOST_TIMES = 8  # width of the deepest layer in units of the first


class PatchDiscriminator(nn.Module):
  """NLayerDiscriminator; float32.

  Attributes:
    channels: of the first layer; each further one has twice as many, up to
      eight times.
    layers: of stride 2, n; a patch has 16, 34, 70 or 142 pixels a side for 1,
      2, 3 or 4.
    norm: "group": over groups of channels and all positions of one picture;
      "spectral": of the weights (arXiv 1802.05957); "none".
    groups: of a group norm; channels are a multiple of it.
  """

  channels: int
  layers: int
  norm: str
  groups: int

  @nn.compact
  def __call__(self, image_BHW3: jax.Array) -> jax.Array:
    """Pictures in [-1, 1] -> logits float32 [B, N], higher is more real."""
    spectral = self.norm == "spectral"
    x = image_BHW3.astype(jnp.float32)
    for i in range(self.layers + 1):
      width = self.channels * min(2**i, _MOST_TIMES)
      stride = 2 if i < self.layers else 1
      x = Conv(width, 4, stride, spectral, name=f"conv{i}")(x)
      if self.norm == "group" and i:
        x = nn.GroupNorm(self.groups, name=f"norm{i}")(x)
      x = nn.leaky_relu(x, _SLOPE)
    x = Conv(1, 4, 1, spectral, name="verdict")(x)
    return x.reshape(x.shape[0], -1)
