"""A linear map between a patch of pixels and its feature vector.

A convolutional tokenizer needs a long training before it beats the principal
components of the patches. With those as its start, and the convolutions as a
correction that begins at 0, the first step already has what linear coding can
give.

B: batch, H W: pixels, h w: latent grid, p: patch side in pixels, Cv: code
width, P: values of a patch (3 p p), N: patches.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from star_jax.tokenizer.quantizer import HIGHEST


class LinearPath(nn.Module):
  """`encode` and `decode`, float32, each its own weights."""

  code_dim: int
  patch_size: int

  def setup(self):
    dense = {"precision": HIGHEST, "dtype": jnp.float32}
    self.into = nn.Dense(self.code_dim, **dense)
    self.out = nn.Dense(3 * self.patch_size**2, **dense)

  def encode(self, image_BHW3: jax.Array) -> jax.Array:
    """Images [B, H, W, 3] -> [B, h, w, Cv]."""
    return self.into(fold(image_BHW3.astype(jnp.float32), self.patch_size))

  def decode(self, f_hat_BhwCv: jax.Array) -> jax.Array:
    """[B, h, w, Cv] -> images [B, H, W, 3]."""
    p = self.patch_size
    return einops.rearrange(
      self.out(f_hat_BhwCv), "b h w (p q c) -> b (h p) (w q) c", p=p, q=p
    )


def fold(image_BHW3: jax.Array, patch_size: int) -> jax.Array:
  """[B, H, W, 3] -> patches [B, h, w, P]."""
  p = patch_size
  return einops.rearrange(
    image_BHW3, "b (h p) (w q) c -> b h w (p q c)", p=p, q=p
  )


def init_linear_path(
  params: Mapping[str, Any], image_BHW3: jax.Array, patch_size: int
) -> dict[str, Any]:
  """Parameters whose linear path keeps the principal components of `image`.

  Args:
    params: parameters of a `VQVAE` with `linear_path`.
    image_BHW3: pictures in [-1, 1]; more patches than a patch has values.
    patch_size: p, `VQVAEConfig.downsample`.

  Returns:
    A copy of `params` in which `decode` is the transpose of `encode`.
  """
  patches = np.asarray(fold(image_BHW3, patch_size), np.float64)
  x_NP = patches.reshape(-1, patches.shape[-1])
  mean_P = x_NP.mean(0)
  _, vectors = np.linalg.eigh(np.cov((x_NP - mean_P).T))
  code_dim = params["linear_path"]["into"]["kernel"].shape[1]
  basis = vectors[:, ::-1][:, :code_dim]
  # A code wider than the patch leaves its last channels unused.
  basis = np.pad(basis, ((0, 0), (0, code_dim - basis.shape[1])))
  path = {
    "into": {"kernel": basis, "bias": -mean_P @ basis},
    "out": {"kernel": basis.T, "bias": mean_P},
  }
  path = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), path)
  return {**params, "linear_path": path}
