"""No quantizer at all: the latent of a variational autoencoder.

The same encoder and decoder with a continuous latent between them (arXiv
1312.6114, as in latent diffusion, arXiv 2112.10752) say how much of a
reconstruction's error is the quantizer's.

B: batch, h w: latent grid, Cv: code width.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from star_jax.tokenizer.config import VQVAEConfig
from star_jax.tokenizer.quantizer import QuantizerOutput

# At the start the noise is small: a picture comes through from the first step.
FIRST_LOGVAR = -6.0
LOGVAR_LIMITS = (-30.0, 20.0)


class KLBottleneck(nn.Module):
  """Takes the place of the quantizer in `VQVAE`."""

  config: VQVAEConfig

  @nn.compact
  def __call__(
    self, f_BhwCv: jax.Array, logvar_BhwCv: jax.Array, *, train: bool
  ) -> QuantizerOutput:
    """Mean and log variance [B, h, w, Cv] -> latent.

    In training the latent is drawn with the rng "dropout", otherwise it is the
    mean. The loss is kl_weight times the KL divergence from a standard normal,
    the mean over all numbers of the latent. There are no tokens.
    """
    c = self.config
    first = nn.initializers.constant(FIRST_LOGVAR)
    logvar_Cv = self.param("logvar_Cv", first, (c.code_dim,))
    logvar = jnp.clip(logvar_BhwCv + logvar_Cv, *LOGVAR_LIMITS)
    kl = 0.5 * jnp.mean(jnp.square(f_BhwCv) + jnp.exp(logvar) - 1 - logvar)
    latent = f_BhwCv
    if train:
      noise = jax.random.normal(self.make_rng("dropout"), f_BhwCv.shape)
      latent = f_BhwCv + jnp.exp(0.5 * logvar) * noise
    return QuantizerOutput(
      f_hat_BhwCv=latent,
      vq_loss=c.kl_weight * kl,
      idx_BL=jnp.zeros((len(f_BhwCv), 0), jnp.int32),
      usage_KV=jnp.zeros((c.schedule.num_scales, c.counted_codes)),
      terms={"kl": kl},
    )
