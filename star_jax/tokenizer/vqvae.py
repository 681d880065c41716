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
from star_jax.tokenizer.linear_path import LinearPath
from star_jax.tokenizer.quantizer import HIGHEST, Quantizer


@flax.struct.dataclass
class VQVAEOutput:
  """What the training forward returns.

  Attributes:
    recon_BHW3: reconstruction, not clamped.
    vq_loss: scalar, codebook and commitment loss.
    idx_BL: int32 tokens of all scales.
    f_BhwCv: encoder features, what the quantizer approximates.
    f_hat_BhwCv: their approximation (gradient straight-through).
    usage_KV: float32, how often scale k chose entry v in this batch.
  """

  recon_BHW3: jax.Array
  vq_loss: jax.Array
  idx_BL: jax.Array
  f_BhwCv: jax.Array
  f_hat_BhwCv: jax.Array
  usage_KV: jax.Array


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
    self.quantizer = Quantizer(c)
    # These two belong to the quantizer's side of the precision policy.
    if c.deep_encoder:
      self.encoder = Encoder(code_dim=c.code_dim, **shared)
      # Beside a linear path the deep one starts as a correction of 0.
      init = nn.initializers.zeros if c.linear_path else default_kernel_init
      self.quant_conv = nn.Conv(
        c.code_dim, side, precision=HIGHEST, kernel_init=init
      )
    if c.linear_path:
      self.linear_path = LinearPath(c.code_dim, c.downsample)
    self.post_quant_conv = nn.Conv(c.code_dim, side, precision=HIGHEST)

  def __call__(
    self, image_BHW3: jax.Array, *, train: bool = False
  ) -> VQVAEOutput:
    """Training forward; with dropout and `train`, needs the rng "dropout"."""
    deterministic = not train
    f_BhwCv = self._features(image_BHW3, deterministic)
    quantized = self.quantizer(f_BhwCv)
    return VQVAEOutput(
      recon_BHW3=self._decoded(quantized.f_hat_BhwCv, deterministic),
      vq_loss=quantized.vq_loss,
      idx_BL=quantized.idx_BL,
      f_BhwCv=f_BhwCv,
      f_hat_BhwCv=quantized.f_hat_BhwCv,
      usage_KV=quantized.usage_KV,
    )

  def features(self, image_BHW3: jax.Array) -> jax.Array:
    """Images [B, H, W, 3] -> features [B, h, w, Cv], float32."""
    return self._features(image_BHW3, deterministic=True)

  def encode(self, image_BHW3: jax.Array) -> jax.Array:
    """Images [B, H, W, 3] -> tokens int32 [B, L]."""
    return self.quantizer.encode(self.features(image_BHW3))

  def decode(self, f_hat_BhwCv: jax.Array) -> jax.Array:
    """f_hat [B, h, w, Cv] -> images [B, H, W, 3] clamped to [-1, 1]."""
    return jnp.clip(self._decoded(f_hat_BhwCv, deterministic=True), -1, 1)

  def residuals(self, f_BhwCv: jax.Array) -> jax.Array:
    """Features -> the vectors [B, L, Cv] that are looked up as tokens."""
    return self.quantizer.residuals(f_BhwCv)

  def tokens_to_f_hat(self, idx_BL: jax.Array) -> jax.Array:
    """Tokens [B, L] -> f_hat [B, h, w, Cv]."""
    return self.quantizer.tokens_to_f_hat(idx_BL)

  def tokens_to_f_hats(self, idx_BL: jax.Array) -> jax.Array:
    """Tokens [B, L] -> f_hat after every scale [K, B, h, w, Cv]."""
    return self.quantizer.tokens_to_f_hats(idx_BL)

  def tokens_to_image(self, idx_BL: jax.Array) -> jax.Array:
    """Tokens [B, L] -> images [B, H, W, 3] in [-1, 1]."""
    return self.decode(self.tokens_to_f_hat(idx_BL))

  def reconstruct_scales(self, image_BHW3: jax.Array) -> jax.Array:
    """The picture after every scale, [K, B, H, W, 3] in [-1, 1]."""
    f_hats = self.tokens_to_f_hats(self.encode(image_BHW3))
    flat = einops.rearrange(f_hats, "k b h w c -> (k b) h w c")
    return einops.rearrange(
      self.decode(flat), "(k b) h w c -> k b h w c", k=f_hats.shape[0]
    )

  def teacher_forcing_input(self, idx_BL: jax.Array) -> jax.Array:
    """Tokens [B, L] -> transformer inputs [B, L - l_0, Cv], float32."""
    return self.quantizer.teacher_forcing_input(idx_BL)

  def previous_codes(self, idx_BL: jax.Array) -> jax.Array:
    """Tokens [B, L] -> the code before each but the first, [B, L - 1, Cv]."""
    return self.quantizer.codes(idx_BL[:, :-1])

  def codes(self, idx_BL: jax.Array) -> jax.Array:
    """Tokens int32 [...] -> rows of the codebook [..., Cv]."""
    return self.quantizer.codes(idx_BL)

  def next_scale_input(
    self, k: int, f_hat_BhwCv: jax.Array, idx_Bl: jax.Array
  ) -> tuple[jax.Array, jax.Array | None]:
    """See `Quantizer.next_scale_input`; k is static."""
    return self.quantizer.next_scale_input(k, f_hat_BhwCv, idx_Bl)

  def scale_input(self, k: int, f_hat_BhwCv: jax.Array) -> jax.Array:
    """See `Quantizer.scale_input`; k is static."""
    return self.quantizer.scale_input(k, f_hat_BhwCv)

  def _features(self, image_BHW3: jax.Array, deterministic: bool) -> jax.Array:
    size = (*self.config.image_size, 3)
    if image_BHW3.ndim != 4 or image_BHW3.shape[1:] != size:
      raise ValueError(
        f"This tokenizer takes images of the shape (batch, {size[0]},"
        f" {size[1]}, 3) ({self.config.schedule.final_grid} tokens of"
        f" {self.config.downsample} px), got {image_BHW3.shape}."
      )
    f_BhwCv = 0.0
    if self.config.deep_encoder:
      z_BhwCv = self.encoder(image_BHW3, deterministic)
      f_BhwCv = self.quant_conv(z_BhwCv.astype(jnp.float32))
    if self.config.linear_path:
      f_BhwCv += self.linear_path.encode(image_BHW3)
    return f_BhwCv

  def _decoded(self, f_hat_BhwCv: jax.Array, deterministic: bool) -> jax.Array:
    z_BhwCv = self.post_quant_conv(f_hat_BhwCv)
    image_BHW3 = self.decoder(z_BhwCv, deterministic)
    if self.config.linear_path:
      image_BHW3 += self.linear_path.decode(f_hat_BhwCv)
    return image_BHW3
