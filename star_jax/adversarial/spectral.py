"""Spectral normalisation without a state (arXiv 1802.05957).

The paper carries one vector a layer from step to step and takes one step of
power iteration each time. Here every call takes several from a fixed start:
that costs as much as a convolution at a dozen positions, and leaves no state
that would have to be averaged, sharded, saved and kept apart for two passes.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

STEPS = 8
_TINY = 1e-12


def spectral_norm(kernel: jax.Array, steps: int = STEPS) -> jax.Array:
  """Largest singular value of a kernel [..., O] as a matrix of O columns.

  An estimate from below that meets it as far as `steps` separate the first
  singular value from the second. The gradient is that of u' W v with both
  vectors held, as in the paper.
  """
  matrix = kernel.reshape(-1, kernel.shape[-1])
  held = jax.lax.stop_gradient(matrix)
  start = np.random.default_rng(0).standard_normal(matrix.shape[-1])
  v_O = jnp.asarray(start / np.linalg.norm(start), matrix.dtype)
  for _ in range(steps):
    u = _unit(held @ v_O)
    v_O = _unit(u @ held)
  return u @ (matrix @ v_O)


def _unit(x: jax.Array) -> jax.Array:
  return x / (jnp.sqrt(jnp.sum(jnp.square(x))) + _TINY)


class Conv(nn.Module):
  """A convolution with bias; parameters are those of `nn.Conv`.

  Attributes:
    features: channels out.
    size: of the kernel.
    stride: of the output.
    spectral: divides the kernel by its largest singular value.
  """

  features: int
  size: int
  stride: int = 1
  spectral: bool = False

  @nn.compact
  def __call__(self, x_BhwC: jax.Array) -> jax.Array:
    shape = (self.size, self.size, x_BhwC.shape[-1], self.features)
    kernel = self.param("kernel", nn.linear.default_kernel_init, shape)
    bias = self.param("bias", nn.initializers.zeros, (self.features,))
    if self.spectral:
      kernel = kernel / jnp.maximum(spectral_norm(kernel), _TINY)
    # As PyTorch's `padding=size // 2` or, for 4, 1: what the published
    # discriminators have.
    before = (self.size - 1) // 2
    out = jax.lax.conv_general_dilated(
      x_BhwC,
      kernel,
      (self.stride, self.stride),
      ((before, before), (before, before)),
      dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return out + bias
