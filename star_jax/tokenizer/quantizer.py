"""The multi-scale residual quantizer (VAR, arXiv 2404.02905, Alg. 1 and 2).

A feature map f is explained by K token maps, coarse to fine: the residual is
shrunk to the grid of scale k, each vector is replaced by its nearest codebook
entry, the result is grown back to the full grid, filtered by phi, and
subtracted. f_hat is the sum of what was subtracted.

B: batch, K: scales, k: scale index, l: tokens of one scale, L: of all scales,
V: codebook size, Cv: code width, h w: grid of the last scale. Everything is
float32, and every product states HIGHEST precision: accelerators otherwise
round float32 products, which flips nearest-neighbour decisions.
"""

from __future__ import annotations

import einops
import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from star_jax.reductions import argmax_last, argmin_last
from star_jax.tokenizer import resize
from star_jax.tokenizer.config import VQVAEConfig

HIGHEST = jax.lax.Precision.HIGHEST
# Mixing ratios below this switch phi off, as in the official code.
MIN_QUANT_RESI = 1e-6
NORMALIZE_EPS = 1e-12


@flax.struct.dataclass
class QuantizerOutput:
  """What the training forward of the quantizer returns.

  Attributes:
    f_hat_BhwCv: the value of f_hat with the gradient of f (straight-through).
    vq_loss: scalar, codebook and commitment loss.
    idx_BL: int32 tokens of all scales.
    usage_KV: float32, how often scale k chose entry v in this batch.
  """

  f_hat_BhwCv: jax.Array
  vq_loss: jax.Array
  idx_BL: jax.Array
  usage_KV: jax.Array


def num_phi(config: VQVAEConfig) -> int:
  """How many phi convolutions there are (0 if the mixing ratio is 0)."""
  if abs(config.quant_resi) < MIN_QUANT_RESI:
    return 0
  return config.share_quant_resi or config.schedule.num_scales


def phi_indices(num_scales: int, count: int) -> tuple[int, ...]:
  """Which of `count` phi convolutions each scale uses.

  Convolution j sits at tick j on [0, 1], scale k at k / (K - 1); the nearest
  tick wins, the first one at equal distance. The ticks leave a margin of half
  their spacing at both ends, except for 4 convolutions, where the official
  code leaves a third.
  """
  margin = 1 / (3 * count) if count == 4 else 1 / (2 * count)
  ticks = np.linspace(margin, 1 - margin, count)
  places = np.arange(num_scales) / max(num_scales - 1, 1)
  return tuple(int(np.argmin(np.abs(ticks - place))) for place in places)


class Phi(nn.Module):
  """phi(h) = (1 - r) h + r conv3x3(h), r = |quant_resi|."""

  ratio: float

  @nn.compact
  def __call__(self, h_BhwCv: jax.Array) -> jax.Array:
    width = h_BhwCv.shape[-1]
    kernel = self.param("kernel", _init_identity, (3, 3, width, width))
    bias_Cv = self.param("bias", nn.initializers.zeros, (width,))
    out = jax.lax.conv_general_dilated(
      h_BhwCv,
      kernel,
      window_strides=(1, 1),
      padding="SAME",
      dimension_numbers=("NHWC", "HWIO", "NHWC"),
      precision=HIGHEST,
    )
    return (1 - self.ratio) * h_BhwCv + self.ratio * (out + bias_Cv)


class Quantizer(nn.Module):
  """Codebook and phi convolutions; all methods take and return float32."""

  config: VQVAEConfig

  def setup(self):
    c = self.config
    self.codebook_VCv = self.param(
      "codebook_VCv", _init_codebook, (c.vocab_size, c.code_dim)
    )
    if c.rate_weight:
      # Weighted length of each code, set by `codebook.code_rates`; it has no
      # gradient.
      shape = (c.schedule.num_scales, c.vocab_size)
      self.rate_KV = self.param("rate_KV", nn.initializers.zeros, shape)
    count = num_phi(c)
    self.phi = [Phi(abs(c.quant_resi), name=f"phi_{j}") for j in range(count)]
    self.phi_of_scale = phi_indices(c.schedule.num_scales, count or 1)

  def __call__(self, f_BhwCv: jax.Array) -> QuantizerOutput:
    """Training forward: [B, h, w, Cv] -> `QuantizerOutput`.

    The loss is the mean (or sum) over scales of beta * mse(sg(f_hat_k), f) +
    mse(f_hat_k, sg(f)), f_hat_k after scale k. The codebook and phi learn from
    it alone: f_hat passes the gradient of what follows straight to f.
    """
    c = self.config
    f = f_BhwCv.astype(jnp.float32)
    target = jax.lax.stop_gradient(f)
    loss, idx, usage = 0.0, [], []
    for _, idx_Bl, f_hat in self._residual_steps(target):
      commitment = jnp.mean(jnp.square(jax.lax.stop_gradient(f_hat) - f))
      codebook = jnp.mean(jnp.square(f_hat - target))
      loss += c.beta * commitment + codebook
      idx.append(idx_Bl)
      usage.append(_histogram(idx_Bl, c.vocab_size))
    if c.vq_loss_reduction == "mean":
      loss /= c.schedule.num_scales
    return QuantizerOutput(
      f_hat_BhwCv=jax.lax.stop_gradient(f_hat - f) + f,
      vq_loss=loss,
      idx_BL=jnp.concatenate(idx, axis=1),
      usage_KV=jnp.stack(usage),
    )

  def encode(self, f_BhwCv: jax.Array) -> jax.Array:
    """Algorithm 1: [B, h, w, Cv] -> tokens int32 [B, L]."""
    f = f_BhwCv.astype(jnp.float32)
    steps = self._residual_steps(f)
    return jnp.concatenate([idx_Bl for _, idx_Bl, _ in steps], axis=1)

  def residuals(self, f_BhwCv: jax.Array) -> jax.Array:
    """The vectors [B, L, Cv] that `encode` looks up in the codebook."""
    f = f_BhwCv.astype(jnp.float32)
    f_hat, out = jnp.zeros_like(f), []
    for k, _, f_hat_next in self._residual_steps(f):
      z = resize.shrink(f - f_hat, self.config.schedule.grids[k])
      out.append(einops.rearrange(z, "b h w c -> b (h w) c"))
      f_hat = f_hat_next
    return jnp.concatenate(out, axis=1)

  def tokens_to_f_hats(self, idx_BL: jax.Array) -> jax.Array:
    """Algorithm 2, f_hat after every scale: [B, L] -> [K, B, h, w, Cv]."""
    f_hat, out = self.empty_f_hat(idx_BL.shape[0]), []
    for k, idx_Bl in enumerate(self._split(idx_BL)):
      f_hat = f_hat + self.contribution(k, idx_Bl)
      out.append(f_hat)
    return jnp.stack(out)

  def tokens_to_f_hat(self, idx_BL: jax.Array) -> jax.Array:
    """Algorithm 2: tokens [B, L] -> f_hat [B, h, w, Cv]."""
    f_hat = self.empty_f_hat(idx_BL.shape[0])
    for k, idx_Bl in enumerate(self._split(idx_BL)):
      f_hat = f_hat + self.contribution(k, idx_Bl)
    return f_hat

  def tokens_to_growing_f_hat(self, idx_BL: jax.Array) -> jax.Array:
    """A variant of Algorithm 2 that never leaves the grid of the scale.

    f_hat itself is grown from grid to grid and each scale is added at its own
    size (`embed_to_fhat(all_to_max_scale=False)` in the official code).
    """
    f_hat = None
    for k, idx_Bl in enumerate(self._split(idx_BL)):
      h = self._filter(k, self._embed(k, idx_Bl))
      if f_hat is not None:
        grid = self.config.schedule.grids[k]
        h = h + resize.grow(f_hat, grid, self.config.growth)
      f_hat = h
    return f_hat

  def teacher_forcing_input(self, idx_BL: jax.Array) -> jax.Array:
    """What the transformer reads in training: [B, L] -> [B, L - l_0, Cv].

    For every scale but the first: f_hat of all coarser scales, shrunk to the
    grid of the scale.
    """
    f_hat, out = self.empty_f_hat(idx_BL.shape[0]), []
    for k, idx_Bl in enumerate(self._split(idx_BL)):
      f_hat, x_BlCv = self.next_scale_input(k, f_hat, idx_Bl)
      if x_BlCv is not None:
        out.append(x_BlCv)
    if not out:
      return jnp.zeros((idx_BL.shape[0], 0, self.config.code_dim))
    return jnp.concatenate(out, axis=1)

  def next_scale_input(
    self, k: int, f_hat_BhwCv: jax.Array, idx_Bl: jax.Array
  ) -> tuple[jax.Array, jax.Array | None]:
    """One step of sampling: adds scale k and prepares scale k + 1.

    Args:
      k: static scale index.
      f_hat_BhwCv: f_hat of the scales before k (zeros for k = 0).
      idx_Bl: tokens of scale k; or float weights [B, l, V] over the codebook.

    Returns:
      f_hat with scale k, and the input [B, l, Cv] of scale k + 1 (None after
      the last scale).
    """
    f_hat = f_hat_BhwCv + self.contribution(k, idx_Bl)
    if k + 1 == self.config.schedule.num_scales:
      return f_hat, None
    return f_hat, self.scale_input(k + 1, f_hat)

  def scale_input(self, k: int, f_hat_BhwCv: jax.Array) -> jax.Array:
    """What scale k sees of the scales before it, [B, l, Cv]; k is static."""
    x = resize.shrink(f_hat_BhwCv, self.config.schedule.grids[k])
    return einops.rearrange(x, "b h w c -> b (h w) c")

  def contribution(self, k: int, idx_Bl: jax.Array) -> jax.Array:
    """What tokens of scale k add to f_hat: phi(grow(codes))."""
    codes = self._embed(k, idx_Bl)
    c = self.config
    grown = resize.grow(codes, c.schedule.final_grid, c.growth)
    return self._filter(k, grown)

  def codes(self, idx_BL: jax.Array) -> jax.Array:
    """Tokens int32 [...] -> rows of the codebook [..., Cv]."""
    return self.codebook_VCv[idx_BL]

  def empty_f_hat(self, batch: int) -> jax.Array:
    """f_hat before the first scale."""
    return jnp.zeros(
      (batch, *self.config.schedule.final_grid, self.config.code_dim)
    )

  def nearest(self, z_NCv: jax.Array, k: int) -> jax.Array:
    """Codebook entries for vectors of scale k: [N, Cv] -> int32 [N].

    The nearest ones, or those of least distance plus rate (`rate_weight`).
    """
    codes = jax.lax.stop_gradient(self.codebook_VCv)
    if self.config.using_znorm:
      # Only the choice is by cosine; the entry is used as it is stored.
      cosine = _dot(_normalize(z_NCv), _normalize(codes))
      return argmax_last(cosine)
    distance = (
      jnp.sum(jnp.square(z_NCv), axis=-1, keepdims=True)
      + jnp.sum(jnp.square(codes), axis=-1)
      - 2 * _dot(z_NCv, codes)
    )
    if self.config.rate_weight:
      distance += jax.lax.stop_gradient(self.rate_KV[k])
    return argmin_last(distance)

  def _residual_steps(self, f_BhwCv: jax.Array):
    """Yields (k, idx_Bl, f_hat after scale k), the loop of Algorithm 1."""
    f_hat, f_rest = jnp.zeros_like(f_BhwCv), f_BhwCv
    for k, grid in enumerate(self.config.schedule.grids):
      z = resize.shrink(jax.lax.stop_gradient(f_rest), grid)
      idx_N = self.nearest(einops.rearrange(z, "b h w c -> (b h w) c"), k)
      idx_Bl = einops.rearrange(idx_N, "(b l) -> b l", b=f_BhwCv.shape[0])
      h = self.contribution(k, idx_Bl)
      # Two sums, as in the reference: f - f_hat would round differently.
      f_hat, f_rest = f_hat + h, f_rest - h
      yield k, idx_Bl, f_hat

  def _embed(self, k: int, idx_Bl: jax.Array) -> jax.Array:
    """Codes [B, h_k, w_k, Cv] of tokens int [B, l], or of soft choices: float
    weights [B, l, V] over the codebook (Gumbel smoothing)."""
    h, w = self.config.schedule.grids[k]
    if idx_Bl.ndim == 3:
      codes_BlCv = jnp.einsum(
        "blv,vc->blc", idx_Bl, self.codebook_VCv, precision=HIGHEST
      )
    else:
      codes_BlCv = self.codebook_VCv[idx_Bl]
    return einops.rearrange(codes_BlCv, "b (h w) c -> b h w c", h=h, w=w)

  def _filter(self, k: int, h_BhwCv: jax.Array) -> jax.Array:
    return self.phi[self.phi_of_scale[k]](h_BhwCv) if self.phi else h_BhwCv

  def _split(self, idx_BL: jax.Array) -> list[jax.Array]:
    schedule = self.config.schedule
    if idx_BL.ndim != 2 or idx_BL.shape[1] != schedule.num_tokens:
      raise ValueError(
        f"Tokens have the shape (batch, {schedule.num_tokens}) for this"
        f" schedule, got {idx_BL.shape}."
      )
    return [idx_BL[:, begin:end] for begin, end in schedule.begin_ends]


def _init_codebook(key: jax.Array, shape: tuple[int, int]) -> jax.Array:
  """Uniform in +-1/V, the official choice."""
  bound = 1 / shape[0]
  return jax.random.uniform(key, shape, jnp.float32, -bound, bound)


def _init_identity(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """The filter that changes nothing.

  A random filter distorts every code at the start, so that finer scales spend
  their tokens on undoing it.
  """
  del key
  height, width, n_in, n_out = shape
  kernel = jnp.zeros(shape, jnp.float32)
  return kernel.at[height // 2, width // 2].set(jnp.eye(n_in, n_out))


def _dot(z_NCv: jax.Array, codes_VCv: jax.Array) -> jax.Array:
  return jnp.einsum("nc,vc->nv", z_NCv, codes_VCv, precision=HIGHEST)


def _normalize(x_NCv: jax.Array) -> jax.Array:
  norm = jnp.sqrt(jnp.sum(jnp.square(x_NCv), axis=-1, keepdims=True))
  return x_NCv / jnp.maximum(norm, NORMALIZE_EPS)


def _histogram(idx_Bl: jax.Array, vocab_size: int) -> jax.Array:
  """float32 [V]: how often each entry occurs."""
  counts = jnp.zeros(vocab_size, jnp.float32)
  return counts.at[idx_Bl.reshape(-1)].add(1.0)
