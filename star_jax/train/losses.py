"""Losses and the figures logged beside them.

B: batch, L: tokens of all scales, V: codebook size, n: bits of a token, K:
scales.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from star_jax import bits as bit_ops
from star_jax.model.config import StarConfig

# (logits, tokens [B, L]) -> nats and hits of each token, float32 [B, L].
TokenLosses = Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]


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


def bit_losses(
  logits_BLn: jax.Array, idx_BL: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """`token_losses` of a head of independent bits: binary cross-entropy in nats
  summed over the bits of a token, and hits (1 where every bit is the likelier
  one)."""
  logits_BLn = logits_BLn.astype(jnp.float32)
  bits_BLn = bit_ops.unpack(idx_BL, logits_BLn.shape[-1])
  # The log-odds of the right value.
  right_BLn = (2 * bits_BLn - 1) * logits_BLn
  loss_BL = -jnp.sum(jax.nn.log_sigmoid(right_BLn), axis=-1)
  hit_BL = jnp.all(right_BLn >= 0, axis=-1)
  return loss_BL, jax.lax.stop_gradient(hit_BL.astype(jnp.float32))


def head_losses(config: StarConfig) -> TokenLosses:
  """What the loss of a model's logits is made of."""
  return bit_losses if config.head == "bits" else token_losses


def token_losses_by_parts(
  logits_of: Callable[[jax.Array], jax.Array],
  x_BLC: jax.Array,
  idx_BL: jax.Array,
  most: int,
  losses: TokenLosses = token_losses,
) -> tuple[jax.Array, jax.Array]:
  """`losses` of logits that are never there for all tokens at once: the
  backward pass computes those of a part again.

  Args:
    logits_of: [B, l, C] -> [B, l, V], token by token.
    x_BLC: what the logits are made from.
    idx_BL: targets.
    most: tokens of a picture in a part; 0: all of them.
    losses: see `head_losses`.
  """
  batch, length, width = x_BLC.shape
  if not most or length <= most:
    return losses(logits_of(x_BLC), idx_BL)
  parts = -(-length // most)
  padding = (0, -length % parts)
  x_BLC = jnp.pad(x_BLC, ((0, 0), padding, (0, 0)))
  idx_BL = jnp.pad(idx_BL, ((0, 0), padding))
  # Every n-th token: devices that share the tokens of a picture all have some
  # of every part.
  x_nBlC = jnp.moveaxis(x_BLC.reshape(batch, -1, parts, width), 2, 0)
  idx_nBl = jnp.moveaxis(idx_BL.reshape(batch, -1, parts), 2, 0)
  one = jax.checkpoint(lambda x, idx: losses(logits_of(x), idx))
  found = jax.lax.map(lambda part: one(*part), (x_nBlC, idx_nBl))
  return tuple(
    jnp.moveaxis(y_nBl, 0, 2).reshape(batch, -1)[:, :length] for y_nBl in found
  )


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
  newest_weight: jax.Array | float = 1.0,
  losses: TokenLosses = token_losses,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """`mean_loss` of logits [B, L, V] and the tokens; `losses`: `head_losses`."""
  return mean_loss(
    *losses(logits_BLV, idx_BL),
    lengths,
    weight_BL,
    scale_weights,
    newest_weight,
  )


def mean_loss(
  loss_BL: jax.Array,
  hit_BL: jax.Array,
  lengths: Sequence[int],
  weight_BL: jax.Array | None = None,
  scale_weights: Sequence[float] = (),
  newest_weight: jax.Array | float = 1.0,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Mean cross-entropy over the tokens at hand (golden README, rule 13).

  Args:
    loss_BL, hit_BL: see `token_losses`; of all scales, or of the first ones, a
      stage of progressive training: each then counts as much as it would among
      all.
    lengths: tokens of each of all scales. Where some were left out, a scale
      counts by those that are at hand: the coarse scales then weigh more than
      in the mean over all.
    weight_BL: how many tokens each stands for; None: one.
    scale_weights: counts the tokens of each scale so many times in what is
      returned, not in the metrics; (): once.
    newest_weight: factor of the finest scale at hand, not in the metrics.

  Returns:
    The loss, and the metrics loss, acc (all tokens at hand), loss_k, acc_k (per
    scale) and, of all scales, loss_tail, acc_tail (the last). Accuracies are
    shares in [0, 1].

  Raises:
    ValueError: `scale_weights` that are not one positive number a scale.
  """
  ends = np.cumsum(lengths).tolist()
  here = lengths[: ends.index(loss_BL.shape[1]) + 1]
  loss_k = scale_means(loss_BL, here, weight_BL)
  acc_k = scale_means(hit_BL, here, weight_BL)
  share_k = jnp.asarray(here, jnp.float32) / sum(here)
  metrics = {
    "loss": jnp.sum(loss_k * share_k),
    "acc": jnp.sum(acc_k * share_k),
    "loss_k": loss_k,
    "acc_k": acc_k,
  }
  if len(here) == len(lengths):
    metrics |= {"loss_tail": loss_k[-1], "acc_tail": acc_k[-1]}
  times_K = np.asarray(scale_weights or np.ones(len(lengths)))
  if len(times_K) != len(lengths) or min(times_K) <= 0:
    raise ValueError(
      "config.scale_weights is empty or one positive number for each of the"
      f" {len(lengths)} scales, got {tuple(scale_weights)}."
    )
  share_K = times_K * lengths / np.sum(times_K * lengths)
  counted_k = jnp.asarray(share_K[: len(here)], jnp.float32)
  counted_k = counted_k.at[-1].multiply(newest_weight)
  return jnp.sum(loss_k * counted_k), metrics


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
