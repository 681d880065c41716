"""The multi-scale residual quantizer (VAR, arXiv 2404.02905, Alg. 1 and 2).

A feature map f is explained by K token maps, coarse to fine: the residual is
shrunk to the grid of scale k, each vector is replaced by a code
(scale_quantizers.py: the nearest entry of a codebook, or a rounded vector), the
result is grown back to the full grid, filtered by phi, and subtracted. f_hat is
the sum of what was subtracted.

B: batch, K: scales, k: scale index, l: tokens of one scale, L: of all scales,
V: codes, Cv: code width, h w: grid of the last scale. Everything is float32,
and every product states HIGHEST precision: accelerators otherwise round float32
products, which flips nearest-neighbour decisions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import einops
import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from star_jax import bits as bit_ops
from star_jax.tokenizer import resize
from star_jax.tokenizer.config import VQVAEConfig
from star_jax.tokenizer.scale_quantizers import HIGHEST, scale_quantizer

# Mixing ratios below this switch phi off, as in the official code.
MIN_QUANT_RESI = 1e-6


@flax.struct.dataclass
class QuantizerOutput:
  """What the training forward of the quantizer returns.

  Attributes:
    f_hat_BhwCv: the value of f_hat with the gradient of f (straight-through).
    vq_loss: scalar, the weighted sum of `terms`.
    idx_BL: int32 tokens of all scales.
    usage_KV: float32, how often scale k chose code v in this batch; of more
      than `VQVAEConfig.counted_codes` codes the first bits are counted.
    terms: scalars by name, not weighted: "codebook" and "commitment", and what
      the quantizer adds ("entropy", "kl").
  """

  f_hat_BhwCv: jax.Array
  vq_loss: jax.Array
  idx_BL: jax.Array
  usage_KV: jax.Array
  terms: dict[str, jax.Array]


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
  """Codes and phi convolutions; all methods take and return float32."""

  config: VQVAEConfig

  def setup(self):
    c = self.config
    self.scale_quantizer = scale_quantizer(c, self.param)
    count = num_phi(c)
    self.phi = [Phi(abs(c.quant_resi), name=f"phi_{j}") for j in range(count)]
    self.phi_of_scale = phi_indices(c.schedule.num_scales, count or 1)

  def __call__(
    self, f_BhwCv: jax.Array, *, train: bool = False
  ) -> QuantizerOutput:
    """Training forward: [B, h, w, Cv] -> `QuantizerOutput`.

    The loss is the mean (or sum) over scales of beta * mse(sg(f_hat_k), f) +
    mse(f_hat_k, sg(f)), f_hat_k after scale k, plus what the quantizer of the
    scale adds. Codes and phi learn from it alone: f_hat passes the gradient of
    what follows straight to f.

    With `train` and `scale_dropout` some samples end with an earlier scale; the
    rng is "dropout".
    """
    c = self.config
    f = self._bounded(f_BhwCv)
    target = jax.lax.stop_gradient(f)
    last_B = self._last_scales(f.shape[0]) if train else None
    loss, idx, usage, terms = 0.0, [], [], []
    f_hat_before, shown = jnp.zeros_like(target), None
    for k, idx_Bl, f_hat in self._residual_steps(target):
      commitment = jnp.mean(jnp.square(jax.lax.stop_gradient(f_hat) - f))
      codebook = jnp.mean(jnp.square(f_hat - target))
      loss += c.beta * commitment + codebook
      added = self._loss_terms(k, f, f_hat_before)
      if added:
        loss += c.entropy_weight * added["entropy"]
      terms.append({"codebook": codebook, "commitment": commitment, **added})
      idx.append(idx_Bl)
      usage.append(self._histogram(idx_Bl))
      if last_B is None or k == 0:
        shown = f_hat
      else:
        goes_on = (last_B >= k)[:, None, None, None]
        shown = jnp.where(goes_on, f_hat, shown)
      f_hat_before = f_hat
    if c.vq_loss_reduction == "mean":
      loss /= c.schedule.num_scales
    return QuantizerOutput(
      f_hat_BhwCv=jax.lax.stop_gradient(shown - f) + f,
      vq_loss=loss,
      idx_BL=jnp.concatenate(idx, axis=1),
      usage_KV=jnp.stack(usage),
      terms=self._reduced(terms),
    )

  def encode(self, f_BhwCv: jax.Array) -> jax.Array:
    """Algorithm 1: [B, h, w, Cv] -> tokens int32 [B, L]."""
    steps = self._residual_steps(self._bounded(f_BhwCv))
    return jnp.concatenate([idx_Bl for _, idx_Bl, _ in steps], axis=1)

  def self_correct(
    self, f_BhwCv: jax.Array, keys_B: jax.Array, rate: jax.Array | float
  ) -> tuple[jax.Array, jax.Array]:
    """What stage 2 learns from if its own mistakes are to be corrected: bits
    are flipped on the way, and later scales encode what is then missing
    (Infinity, arXiv 2412.04431, algorithm 2).

    Args:
      f_BhwCv: features.
      keys_B: a key a sample.
      rate: see `bits.flip`; 0 gives `encode` and `teacher_forcing_input`.

    Returns:
      int32 [B, L], the tokens of each scale as they should be, given the
      flipped ones before; and float32 [B, L - l_0, Cv], what is read, made of
      the flipped ones.

    Raises:
      ValueError: codes that are not bits.
    """
    c = self.config
    if not c.binary:
      raise ValueError(
        "Self-correction flips bits, which tokens of quantizer"
        f" {c.quantizer!r} do not have; 'lfq' and 'bsq' do."
      )

    def flipped(k, idx_Bl):
      scale_keys_B = jax.vmap(lambda key: jax.random.fold_in(key, k))(keys_B)
      return bit_ops.flip(idx_Bl, scale_keys_B, rate, c.code_dim)

    idx, read = [], []
    steps = self._residual_steps(self._bounded(f_BhwCv), flipped)
    for k, idx_Bl, f_hat in steps:
      idx.append(idx_Bl)
      if k + 1 < c.schedule.num_scales:
        read.append(self.scale_input(k + 1, f_hat))
    return jnp.concatenate(idx, axis=1), self._joined(read, len(keys_B))

  def residuals(self, f_BhwCv: jax.Array) -> jax.Array:
    """The vectors [B, L, Cv] that `encode` chooses codes for."""
    f = self._bounded(f_BhwCv)
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
    return self._joined(out, idx_BL.shape[0])

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

  def codes(self, idx: jax.Array, k: int | None = None) -> jax.Array:
    """Tokens int32 [...] -> codes [..., Cv] of scale k; None: without the gain
    of a scale."""
    return self.scale_quantizer.codes(idx, k)

  def empty_f_hat(self, batch: int) -> jax.Array:
    """f_hat before the first scale."""
    return jnp.zeros(
      (batch, *self.config.schedule.final_grid, self.config.code_dim)
    )

  def nearest(self, z_NCv: jax.Array, k: int) -> jax.Array:
    """Tokens for vectors of scale k: [N, Cv] -> int32 [N]."""
    return self.scale_quantizer.nearest(z_NCv, k)

  def _bounded(self, f_BhwCv: jax.Array) -> jax.Array:
    return self.scale_quantizer.bounded(f_BhwCv.astype(jnp.float32))

  def _residual_steps(
    self,
    f_BhwCv: jax.Array,
    change: Callable[[int, jax.Array], jax.Array] | None = None,
  ) -> Iterator[tuple[int, jax.Array, jax.Array]]:
    """Yields (k, idx_Bl, f_hat after scale k), the loop of Algorithm 1.

    `change` (k, idx_Bl) -> idx_Bl: what is added instead of the tokens chosen.
    """
    f_hat, f_rest = jnp.zeros_like(f_BhwCv), f_BhwCv
    for k, grid in enumerate(self.config.schedule.grids):
      z = resize.shrink(jax.lax.stop_gradient(f_rest), grid)
      idx_N = self.nearest(einops.rearrange(z, "b h w c -> (b h w) c"), k)
      idx_Bl = einops.rearrange(idx_N, "(b l) -> b l", b=f_BhwCv.shape[0])
      h = self.contribution(k, change(k, idx_Bl) if change else idx_Bl)
      # Two sums, as in the reference: f - f_hat would round differently.
      f_hat, f_rest = f_hat + h, f_rest - h
      yield k, idx_Bl, f_hat

  def _loss_terms(self, k, f_BhwCv, f_hat_BhwCv) -> dict[str, jax.Array]:
    """What the quantizer of scale k adds, given f_hat of those before; f learns
    from it."""
    if not self.config.entropy_weight:
      return {}
    rest = f_BhwCv - jax.lax.stop_gradient(f_hat_BhwCv)
    z = resize.shrink(rest, self.config.schedule.grids[k])
    z_NCv = einops.rearrange(z, "b h w c -> (b h w) c")
    return self.scale_quantizer.loss_terms(z_NCv, k)

  def _reduced(self, terms: list[dict]) -> dict[str, jax.Array]:
    """Terms of all scales, reduced as the loss is."""
    mean = self.config.vq_loss_reduction == "mean"
    reduce = jnp.mean if mean else jnp.sum
    return {
      name: reduce(jnp.stack([term[name] for term in terms]))
      for name in terms[0]
    }

  def _last_scales(self, batch: int) -> jax.Array | None:
    """int32 [B], the last scale of each sample; None: the last of all."""
    c = self.config
    if not c.scale_dropout or c.schedule.num_scales == 1:
      return None
    drop_key, scale_key = jax.random.split(self.make_rng("dropout"))
    last = c.schedule.num_scales - 1
    drop_B = jax.random.bernoulli(drop_key, c.scale_dropout, (batch,))
    earlier_B = jax.random.randint(scale_key, (batch,), 0, last)
    return jnp.where(drop_B, earlier_B, last)

  def _embed(self, k: int, idx_Bl: jax.Array) -> jax.Array:
    """Codes [B, h_k, w_k, Cv] of tokens int [B, l], or of soft choices: float
    weights [B, l, V] over all codes (Gumbel smoothing)."""
    h, w = self.config.schedule.grids[k]
    if idx_Bl.ndim == 3:
      codes_BlCv = self.scale_quantizer.mixture(idx_Bl, k)
    else:
      codes_BlCv = self.scale_quantizer.codes(idx_Bl, k)
    return einops.rearrange(codes_BlCv, "b (h w) c -> b h w c", h=h, w=w)

  def _joined(self, inputs: list[jax.Array], batch: int) -> jax.Array:
    if not inputs:
      return jnp.zeros((batch, 0, self.config.code_dim))
    return jnp.concatenate(inputs, axis=1)

  def _histogram(self, idx_Bl: jax.Array) -> jax.Array:
    """float32 [V]: how often each code occurs."""
    size = self.config.counted_codes
    idx = idx_Bl.reshape(-1)
    if size < self.config.vocab_size:
      idx %= size
    return jnp.zeros(size, jnp.float32).at[idx].add(1.0)

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


def _init_identity(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """The filter that changes nothing.

  A random filter distorts every code at the start, so that finer scales spend
  their tokens on undoing it.
  """
  del key
  height, width, n_in, n_out = shape
  kernel = jnp.zeros(shape, jnp.float32)
  return kernel.at[height // 2, width // 2].set(jnp.eye(n_in, n_out))
