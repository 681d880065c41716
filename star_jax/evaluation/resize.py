"""Bilinear scaling to the input of InceptionV3, as the tools define it.

"tf1" is TensorFlow 1's ResizeBilinear (corners not aligned, no half-pixel
centres), which FID was defined with and which torch-fidelity and OpenAI's
evaluator use. "torch" is interpolate(align_corners=False), which pytorch-fid
uses. Neither antialiases. The two give FIDs that differ visibly.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

KINDS = ("tf1", "torch")


def positions(length: int, out: int, kind: str) -> tuple[np.ndarray, ...]:
  """Where each output sample lies between two input samples.

  Returns:
    int32 numbers of the lower and the upper sample and the float32 share of
    the upper one, each [out].
  """
  # Both tools compute in float32.
  scale = np.float32(length / out)
  at = np.arange(out, dtype=np.float32)
  if kind == "tf1":
    at = at * scale
  else:
    half = np.float32(0.5)
    at = np.maximum(scale * (at + half) - half, np.float32(0))
  low = at.astype(np.int32)
  return low, np.minimum(low + 1, length - 1), at - low.astype(np.float32)


def resize_bilinear(image_BHW3: jax.Array, size: int, kind: str) -> jax.Array:
  """Scales to `size` pixels a side.

  Args:
    image_BHW3: float32.
    size: pixels.
    kind: one of KINDS.

  Returns:
    float32 [B, size, size, 3].
  """
  assert kind in KINDS, kind
  _, height, width, _ = image_BHW3.shape
  top, bottom, dy = positions(height, size, kind)
  left, right, dx = positions(width, size, kind)
  dy, dx = dy[None, :, None, None], dx[None, None, :, None]
  rows = image_BHW3[:, top], image_BHW3[:, bottom]
  upper, lower = (_mix(r[:, :, left], r[:, :, right], dx) for r in rows)
  return _mix(upper, lower, dy)


def _mix(a, b, share):
  # Product and sum are rounded one after the other, as in the tools. The
  # choice in between is always the product: it keeps compilers from fusing
  # the two, which neither rounding hints nor barriers do on a CPU.
  step = (b - a) * share
  return a + jnp.where(jnp.isnan(step), 0, step)
