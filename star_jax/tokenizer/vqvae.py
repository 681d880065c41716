"""The image tokenizer: encoder, multi-scale quantizer, decoder, wired up.

B: batch, H W: pixels, h w: latent grid, Cv: code width, K: scales, k: scale
index, l: tokens of one scale, L: tokens of all scales. Images are float in
[-1, 1], channels last.
"""

from __future__ import annotations

import einops
import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.linear import default_kernel_init

from star_jax.tokenizer.blocks import Decoder, Encoder
from star_jax.tokenizer.config import VQVAEConfig
from star_jax.tokenizer.continuous import KLBottleneck
from star_jax.tokenizer.linear_path import LinearPath
from star_jax.tokenizer.quantizer import Quantizer
from star_jax.tokenizer.scale_quantizers import HIGHEST


@flax.struct.dataclass
class VQVAEOutput:
  """What the training forward returns.

  Attributes:
    recon_BHW3: reconstruction, not clamped.
    vq_loss: scalar, codebook and commitment loss and what the quantizer adds.
    idx_BL: int32 tokens of all scales.
    f_BhwCv: encoder features, what the quantizer approximates.
    f_hat_BhwCv: their approximation (gradient straight-through).
    usage_KV: float32, how often scale k chose entry v in this batch.
    terms: what `vq_loss` is made of, see `QuantizerOutput`.
  """

  recon_BHW3: jax.Array
  vq_loss: jax.Array
  idx_BL: jax.Array
  f_BhwCv: jax.Array
  f_hat_BhwCv: jax.Array
  usage_KV: jax.Array
  terms: dict[str, jax.Array]


class VQVAE(nn.Module):
  """Call methods with `vqvae.apply({"params": p}, x, method="encode")`."""

  config: VQVAEConfig

  def setup(self):
    c = self.config
    shared = {
      "ch": c.ch,
      "ch_mult": c.ch_mult,
      "num_res_blocks": c.num_res_blocks,
      "dropout": c.dropout,
      "attention": c.attention,
      "patch_size": c.patch_size,
      "dtype": c.dtype,
    }
    side = (c.quant_conv_ks, c.quant_conv_ks)
    self.decoder = Decoder(**shared, zero_init=c.linear_path)
    continuous = c.quantizer == "none"
    self.quantizer = KLBottleneck(c) if continuous else Quantizer(c)
    # These two belong to the quantizer's side of the precision policy.
    if c.deep_encoder:
      self.encoder = Encoder(code_dim=c.code_dim, **shared)
      # Beside a linear path the deep one starts as a correction of 0.
      init = nn.initializers.zeros if c.linear_path else default_kernel_init
      self.quant_conv = nn.Conv(
        # Beside the mean the log variance.
        2 * c.code_dim if continuous else c.code_dim,
        side,
        precision=HIGHEST,
        kernel_init=init,
      )
    if c.linear_path:
      self.linear_path = LinearPath(c.code_dim, c.downsample)
    self.post_quant_conv = nn.Conv(c.code_dim, side, precision=HIGHEST)

  def __call__(
    self, image_BHW3: jax.Array, *, train: bool = False
  ) -> VQVAEOutput:
    """Training forward; with `train` and dropout, scale dropout or a continuous
    latent, needs the rng "dropout"."""
    deterministic = not train
    f_BhwCv, logvar_BhwCv = self._encoded(image_BHW3, deterministic)
    if self.config.quantizer == "none":
      quantized = self.quantizer(f_BhwCv, logvar_BhwCv, train=train)
    else:
      quantized = self.quantizer(f_BhwCv, train=train)
    return VQVAEOutput(
      recon_BHW3=self._decoded(quantized.f_hat_BhwCv, deterministic),
      vq_loss=quantized.vq_loss,
      idx_BL=quantized.idx_BL,
      f_BhwCv=f_BhwCv,
      f_hat_BhwCv=quantized.f_hat_BhwCv,
      usage_KV=quantized.usage_KV,
      terms=quantized.terms,
    )

  def features(self, image_BHW3: jax.Array) -> jax.Array:
    """Images [B, H, W, 3] -> features [B, h, w, Cv], float32."""
    return self._encoded(image_BHW3, deterministic=True)[0]

  def encode(self, image_BHW3: jax.Array) -> jax.Array:
    """Images [B, H, W, 3] -> tokens int32 [B, L]."""
    return self._tokens.encode(self.features(image_BHW3))

  def decode(self, f_hat_BhwCv: jax.Array) -> jax.Array:
    """f_hat [B, h, w, Cv] -> images [B, H, W, 3] clamped to [-1, 1]."""
    return jnp.clip(self._decoded(f_hat_BhwCv, deterministic=True), -1, 1)

  def self_correct(
    self, image_BHW3: jax.Array, keys_B: jax.Array, rate: jax.Array | float
  ) -> tuple[jax.Array, jax.Array]:
    """Images -> tokens and inputs with flipped bits, see `Quantizer`."""
    f_BhwCv = self.features(image_BHW3)
    return self._tokens.self_correct(f_BhwCv, keys_B, rate)

  def residuals(self, f_BhwCv: jax.Array) -> jax.Array:
    """Features -> the vectors [B, L, Cv] that are looked up as tokens."""
    return self._tokens.residuals(f_BhwCv)

  def tokens_to_f_hat(self, idx_BL: jax.Array) -> jax.Array:
    """Tokens [B, L] -> f_hat [B, h, w, Cv]."""
    return self._tokens.tokens_to_f_hat(idx_BL)

  def tokens_to_f_hats(self, idx_BL: jax.Array) -> jax.Array:
    """Tokens [B, L] -> f_hat after every scale [K, B, h, w, Cv]."""
    return self._tokens.tokens_to_f_hats(idx_BL)

  def tokens_to_image(self, idx_BL: jax.Array) -> jax.Array:
    """Tokens [B, L] -> images [B, H, W, 3] in [-1, 1]."""
    return self.decode(self.tokens_to_f_hat(idx_BL))

  def reconstruct_scales(self, image_BHW3: jax.Array) -> jax.Array:
    """The picture after every scale, [K, B, H, W, 3] in [-1, 1]; of a
    continuous latent the one there is, [1, B, H, W, 3]."""
    if self.config.quantizer == "none":
      return self.decode(self.features(image_BHW3))[None]
    f_hats = self.tokens_to_f_hats(self.encode(image_BHW3))
    flat = einops.rearrange(f_hats, "k b h w c -> (k b) h w c")
    return einops.rearrange(
      self.decode(flat), "(k b) h w c -> k b h w c", k=f_hats.shape[0]
    )

  def teacher_forcing_input(self, idx_BL: jax.Array) -> jax.Array:
    """Tokens [B, L] -> transformer inputs [B, L - l_0, Cv], float32."""
    return self._tokens.teacher_forcing_input(idx_BL)

  def previous_codes(self, idx_BL: jax.Array) -> jax.Array:
    """Tokens [B, L] -> the code before each but the first, [B, L - 1, Cv]."""
    return self._tokens.codes(idx_BL[:, :-1])

  def codes(self, idx_BL: jax.Array) -> jax.Array:
    """Tokens int32 [...] -> codes [..., Cv]."""
    return self._tokens.codes(idx_BL)

  def next_scale_input(
    self, k: int, f_hat_BhwCv: jax.Array, idx_Bl: jax.Array
  ) -> tuple[jax.Array, jax.Array | None]:
    """See `Quantizer.next_scale_input`; k is static."""
    return self._tokens.next_scale_input(k, f_hat_BhwCv, idx_Bl)

  def scale_input(self, k: int, f_hat_BhwCv: jax.Array) -> jax.Array:
    """See `Quantizer.scale_input`; k is static."""
    return self._tokens.scale_input(k, f_hat_BhwCv)

  @property
  def _tokens(self) -> Quantizer:
    """The quantizer of a tokenizer that has one."""
    if self.config.quantizer == "none":
      raise ValueError(
        "This autoencoder is continuous (quantizer = 'none'): it has no tokens."
      )
    return self.quantizer

  def _encoded(
    self, image_BHW3: jax.Array, deterministic: bool
  ) -> tuple[jax.Array, jax.Array | float]:
    """Features [B, h, w, Cv], and of a continuous latent what the encoder says
    of their log variance, otherwise 0."""
    size = (*self.config.image_size, 3)
    if image_BHW3.ndim != 4 or image_BHW3.shape[1:] != size:
      raise ValueError(
        f"This tokenizer takes images of the shape (batch, {size[0]},"
        f" {size[1]}, 3) ({self.config.schedule.final_grid} tokens of"
        f" {self.config.downsample} px), got {image_BHW3.shape}."
      )
    f_BhwCv = logvar_BhwCv = 0.0
    if self.config.deep_encoder:
      z_BhwCv = self.encoder(image_BHW3, deterministic)
      f_BhwCv = self.quant_conv(z_BhwCv.astype(jnp.float32))
      if self.config.quantizer == "none":
        f_BhwCv, logvar_BhwCv = jnp.split(f_BhwCv, 2, axis=-1)
    if self.config.linear_path:
      f_BhwCv += self.linear_path.encode(image_BHW3)
    return f_BhwCv, logvar_BhwCv

  def _decoded(self, f_hat_BhwCv: jax.Array, deterministic: bool) -> jax.Array:
    z_BhwCv = self.post_quant_conv(f_hat_BhwCv)
    spatial = self.config.decoder_norm == "spatial"
    image_BHW3 = self.decoder(
      z_BhwCv, deterministic, f_hat_BhwCv if spatial else None
    )
    if self.config.linear_path:
      image_BHW3 += self.linear_path.decode(f_hat_BhwCv)
    return image_BHW3
