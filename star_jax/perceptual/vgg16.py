"""VGG16 (arXiv 1409.1556, configuration D) up to its last convolution.

Five groups of 3x3 convolutions with a ReLU behind each, a 2x2 maximum between
groups. A perceptual distance compares what comes out of the groups.

B: batch, H W: pixels, h w: positions, C: channels.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from star_jax.tokenizer.conv import Conv3x3

# (convolutions, channels) of each group.
GROUPS = ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))
TAPS = len(GROUPS)


def conv_names(taps: int = TAPS) -> list[str]:
  """ "conv1_1", "conv1_2", ... of the first groups, in order."""
  return [
    f"conv{group}_{i}"
    for group, (count, _) in enumerate(GROUPS[:taps], 1)
    for i in range(1, count + 1)
  ]


def conv_shapes(taps: int = TAPS) -> dict[str, tuple[int, int, int, int]]:
  """Name -> shape of the kernel, [rows, columns, in, out]."""
  shapes, channels = {}, 3
  names = iter(conv_names(taps))
  for count, width in GROUPS[:taps]:
    for _ in range(count):
      shapes[next(names)] = (3, 3, channels, width)
      channels = width
  return shapes


def max_pool(x_BhwC: jax.Array) -> jax.Array:
  """The largest of 2x2: [B, h, w, C] -> [B, h // 2, w // 2, C].

  As a maximum over two axes, not a window: its gradient is elementwise, and
  shared by equal inputs, of which flat colour has many.
  """
  batch, height, width, channels = x_BhwC.shape
  h, w = height // 2, width // 2
  cut = x_BhwC[:, : 2 * h, : 2 * w]
  return jnp.max(cut.reshape(batch, h, 2, w, 2, channels), axis=(2, 4))


class VGG16(nn.Module):
  """The trunk; float32.

  Attributes:
    taps: groups that are computed, 1 to 5.
  """

  taps: int = TAPS

  @nn.compact
  def __call__(self, x_BHW3: jax.Array) -> tuple[jax.Array, ...]:
    """Features after relu1_2, relu2_2, relu3_3, relu4_3 and relu5_3.

    Args:
      x_BHW3: as the weights expect it; at least 2 ** (taps - 1) pixels a side.

    Returns:
      `taps` arrays float32 [B, h, w, C], each half the size of the one before.
    """
    x, features = x_BHW3.astype(jnp.float32), []
    names = iter(conv_names(self.taps))
    for group, (count, width) in enumerate(GROUPS[: self.taps]):
      x = max_pool(x) if group else x
      for _ in range(count):
        x = nn.relu(Conv3x3(width, "float32", name=next(names))(x))
      features.append(x)
    return tuple(features)
