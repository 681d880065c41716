"""Losses and the figures logged beside them.

B: batch, L: tokens of all scales, V: codebook size, K: scales.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np


def token_losses(
  logits_BLV: jax.Array, idx_BL: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Cross-entropy in nats and hits (1 where the target is the likeliest
  token), both float32 [B, L]."""
  logits_BLV = logits_BLV.astype(jnp.float32)
  # The target's logit as a masked sum: its gradient is elementwise, while the
  # gradient of an indexed read is a scatter into B x L x V.
  target_BLV = jnp.arange(logits_BLV.shape[-1]) == idx_BL[..., None]
  target_BL = jnp.sum(jnp.where(target_BLV, logits_BLV, 0.0), axis=-1)
  loss_BL = jax.nn.logsumexp(logits_BLV, axis=-1) - target_BL
  # Compared with the largest, since argmax is slow on a CPU.
  hit_BL = target_BL >= jnp.max(logits_BLV, axis=-1)
  return loss_BL, jax.lax.stop_gradient(hit_BL.astype(jnp.float32))


def scale_means(
  values_BL: jax.Array, lengths: Sequence[int], weight_BL: jax.Array | None
) -> jax.Array:
  """Mean over the batch and the tokens of each scale, [K].

  Args:
    values_BL: of the tokens at hand.
    lengths: how many of them belong to each scale.
    weight_BL: how many tokens each stands for; None: one.
  """
  ends, means = np.cumsum(lengths), []
  for end, length in zip(ends, lengths):
    part = slice(end - length, end)
    if weight_BL is None:
      means.append(jnp.mean(values_BL[:, part]))
    else:
      weight = weight_BL[:, part]
      means.append(jnp.sum(values_BL[:, part] * weight) / jnp.sum(weight))
  return jnp.stack(means)


def next_scale_loss(
  logits_BLV: jax.Array,
  idx_BL: jax.Array,
  lengths: Sequence[int],
  weight_BL: jax.Array | None = None,
  scale_weights: Sequence[float] = (),
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Mean cross-entropy over the tokens at hand (golden README, rule 13).

  `lengths` are the tokens of each scale, `weight_BL` is how many tokens each
  stands for (None: one). Where some were left out, a scale counts by those that
  are at hand: the coarse scales then weigh more than in the mean over all.
  `scale_weights` counts the tokens of each scale so many times in what is
  returned, not in the metrics; (): once.

  Returns:
    The loss, and the metrics loss, acc (all tokens), loss_k, acc_k (per scale,
    [K]), loss_tail, acc_tail (last scale). Accuracies are shares in [0, 1].

  Raises:
    ValueError: `scale_weights` that are not one positive number a scale.
  """
  loss_BL, hit_BL = token_losses(logits_BLV, idx_BL)
  loss_k = scale_means(loss_BL, lengths, weight_BL)
  acc_k = scale_means(hit_BL, lengths, weight_BL)
  share_K = jnp.asarray(lengths, jnp.float32) / sum(lengths)
  loss, acc = jnp.sum(loss_k * share_K), jnp.sum(acc_k * share_K)
  metrics = {
    "loss": loss,
    "acc": acc,
    "loss_k": loss_k,
    "acc_k": acc_k,
    "loss_tail": loss_k[-1],
    "acc_tail": acc_k[-1],
  }
  if not scale_weights:
    return loss, metrics
  if len(scale_weights) != len(lengths) or min(scale_weights) <= 0:
    raise ValueError(
      "config.scale_weights is empty or one positive number for each of the"
      f" {len(lengths)} scales, got {tuple(scale_weights)}."
    )
  share_K *= jnp.asarray(scale_weights, jnp.float32)
  return jnp.sum(loss_k * share_K) / jnp.sum(share_K), metrics


def reconstruction_loss(
  recon_BHW3: jax.Array, image_BHW3: jax.Array, *, l1: float, l2: float
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """`l1` * mean absolute error + `l2` * mean squared error.

  Images are in [-1, 1]; PSNR is in dB of the 8-bit range with the
  reconstruction clamped, as it would be shown.
  """
  error = recon_BHW3.astype(jnp.float32) - image_BHW3
  abs_error = jnp.mean(jnp.abs(error))
  squared = jnp.mean(jnp.square(error))
  shown = jnp.square(jnp.clip(recon_BHW3, -1.0, 1.0) - image_BHW3)
  per_image = jnp.mean(shown, axis=(1, 2, 3))
  psnr = jnp.mean(10 * jnp.log10(4.0 / jnp.maximum(per_image, 1e-10)))
  loss = l1 * abs_error + l2 * squared
  return loss, {"l1": abs_error, "l2": squared, "psnr": psnr}
