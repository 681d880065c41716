"""The two loops of the sampler: scale after scale, or token after token.

Both are traced inside `sampler.build_sampler`. What depends on the prompt or
class alone is computed once; guidance runs the batch [cond; null] with the
linear ramp t = cfg_scale * k / (K - 1) (golden README, rule 11).

Streams of random numbers of a sample: 0 .. K-1 draw the scales, K .. 2K-1
smooth them, 2K .. 3K-1 refine them; token by token, stream i draws token i.

B: samples, R: rows of the model's batch (2B with guidance), K: scales, l:
tokens of a scale, L: of all, V: vocabulary, h w: latent grid, Cv: code width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from star_jax import bits as bit_ops
from star_jax.model.condition import batch_of
from star_jax.sampling import logits as logit_ops
from star_jax.sampling.passes import (
  Models,
  both_halves,
  condition_rows,
  decode_scale,
  start_passes,
)
from star_jax.sampling.raster import draw_token_by_token
from star_jax.sampling.rounds import draw_in_rounds, random_confidence

if TYPE_CHECKING:
  from star_jax.sampling.sampler import Knobs, SamplerConfig

NEXT = "next_scale_input"


def draw_all_scales(
  models: Models,
  config: SamplerConfig,
  params,
  given,
  null,
  keys_B,
  knobs,
  edit,
) -> dict[str, Any]:
  """Scale after scale; the fields of `SampleOutput` but the picture.

  The loop is unrolled, since token counts differ from scale to scale, so every
  offset is static; layers are scanned inside `Star.decode_scale`.
  """
  vqvae, schedule = models.vqvae, models.star.config.schedule
  tokenizer, batch = {"params": params["tokenizer"]}, batch_of(given)
  passes = start_passes(models, config, params, given, null)
  f_hat = jnp.zeros((batch, *schedule.final_grid, vqvae.config.code_dim))
  given_f_hat = f_hat
  x_BlCv, idx, f_hats, all_logits, drawn = None, [], [], [], []
  for k in range(schedule.num_scales):
    logits, features, passes = decode_scale(
      models, config, params, given, null, k, x_BlCv, passes
    )
    guided = passes.plan[k].guided
    ramp = schedule.cfg_ratio(k) if config.cfg_ramp else 1.0
    logits = _guided(logits, guided, knobs, ramp)
    if config.refine and k >= models.head.refine.first_scale:
      idx_Bl = choice = _draw_refined(
        models,
        config,
        params,
        k,
        logits,
        features,
        _pooled(given, null, guided),
        keys_B,
        knobs,
        guided,
      )
    else:
      idx_Bl, choice = _choose(models.star, logits, keys_B, k, knobs, config)
    if config.return_logits:
      all_logits.append(logits)
      drawn.append(idx_Bl)
    if edit is not None:
      part = slice(*schedule.begin_ends[k])
      idx_Bl, choice = _keep(
        edit.idx_BL[:, part], edit.keep_BL[:, part], idx_Bl, choice
      )
    f_hat, x_BlCv = vqvae.apply(tokenizer, k, f_hat, choice, method=NEXT)
    idx.append(idx_Bl)
    if edit is not None and edit.restore_hw is not None:
      given_f_hat, _ = vqvae.apply(
        tokenizer, k, given_f_hat, edit.idx_BL[:, part], method=NEXT
      )
      f_hat = jnp.where(edit.restore_hw[:, :, None], given_f_hat, f_hat)
      if k + 1 < schedule.num_scales:
        x_BlCv = vqvae.apply(tokenizer, k + 1, f_hat, method="scale_input")
    f_hats.append(f_hat)
  return {
    "idx_BL": jnp.concatenate(idx, axis=1),
    "f_hats_KBhwCv": jnp.stack(f_hats),
    "logits_BLV": jnp.concatenate(all_logits, 1) if all_logits else None,
    "drawn_BL": jnp.concatenate(drawn, 1) if drawn else None,
  }


def _guided(logits_RlV, guided: bool, knobs, ratio) -> jax.Array:
  """Both halves mixed at `ratio` of the guidance, [B, l, V]."""
  if not guided:
    return logits_RlV
  cond, uncond = jnp.split(logits_RlV, 2)
  return logit_ops.guide(cond, uncond, knobs.cfg_scale * ratio)


def _pooled(given, null, guided: bool) -> jax.Array:
  """float32 [R, D]: the pooled texts of the rows of the model's batch."""
  pooled_BD = jnp.asarray(given.pooled_BD, jnp.float32)
  if not guided:
    return pooled_BD
  empty = jnp.asarray(null.pooled_BD, jnp.float32)
  return jnp.concatenate([pooled_BD, jnp.broadcast_to(empty, pooled_BD.shape)])


def _draw_refined(
  models,
  config,
  params,
  k,
  logits,
  features_RlC,
  pooled_RD,
  keys_B,
  knobs,
  guided: bool,
) -> jax.Array:
  """Tokens [B, l] of scale k, drawn in rounds.

  The head's logits are guided in full, whatever the scale.
  """
  vqvae, head = models.vqvae, models.head
  num_scales = models.star.config.schedule.num_scales
  length = logits.shape[1]

  variables = {"params": params["refine"]}
  known = head.apply(
    variables, features_RlC, pooled_RD, (k,), method="surroundings"
  )

  def ask(visible_Bl, fixed_Bl):
    codes_BlCv = vqvae.apply(
      {"params": params["tokenizer"]}, fixed_Bl, method="codes"
    )
    shown = jnp.where(visible_Bl[..., None], codes_BlCv, 0.0)
    shown = both_halves(shown, guided)
    out = head.apply(variables, shown, known, method="complete")
    return _guided(out, guided, knobs, 1.0)

  # Streams of a refined scale, behind those of draws and smoothing.
  scale_keys_B = _streams(keys_B, 2 * num_scales + k)

  def draw(number, logits_BlV):
    filtered = _filtered(logits_BlV, knobs)
    noise = _noise(scale_keys_B, 1 + number, filtered.shape[1:])
    return filtered, logit_ops.draw(filtered, noise)

  return draw_in_rounds(
    ask,
    draw,
    logits if config.refine.asks_transformer(k) else None,
    random_confidence(scale_keys_B, length),
    config.refine.rounds_of(k),
  )


def draw_all_tokens(
  models: Models,
  config: SamplerConfig,
  params,
  given,
  null,
  keys_B,
  knobs,
  edit,
) -> dict[str, Any]:
  """The same where tokens come one after the other."""
  star, vqvae = models.star, models.vqvae
  if edit is not None or config.gumbel_smooth:
    raise ValueError(
      "This model predicts token by token: editing and Gumbel smoothing need"
      " one that predicts scale by scale."
    )
  variables = {"params": params["star"]}

  def draw(logits, ratio, place):
    logits = _guided(logits, config.guided, knobs, ratio)
    return logits, _draw(star, logits, keys_B, place, knobs)[0]

  idx_BL, logits_BLV = draw_token_by_token(
    star,
    vqvae,
    params,
    condition_rows(star, variables, given, null, config.guided),
    draw,
    guided=config.guided,
    return_logits=config.return_logits,
  )
  f_hats = vqvae.apply(
    {"params": params["tokenizer"]}, idx_BL, method="tokens_to_f_hats"
  )
  drawn = idx_BL if config.return_logits else None
  return {
    "idx_BL": idx_BL,
    "f_hats_KBhwCv": f_hats,
    "logits_BLV": logits_BLV,
    "drawn_BL": drawn,
  }


def _keep(given_Bl, keep_Bl, idx_Bl, choice):
  """Tokens, and what the next scale is made from, with the given ones kept."""
  out_Bl = jnp.where(keep_Bl, given_Bl, idx_Bl)
  if choice is idx_Bl:
    return out_Bl, out_Bl
  given_BlV = jax.nn.one_hot(given_Bl, choice.shape[-1], dtype=choice.dtype)
  return out_Bl, jnp.where(keep_Bl[..., None], given_BlV, choice)


def _choose(star, logits_BlV, keys_B, k: int, knobs, config):
  """Draws the tokens of scale k.

  Returns:
    idx_Bl, and what the next scale is made from: the same tokens, or weights
    [B, l, V] over the codebook with Gumbel smoothing.
  """
  idx_Bl, logits = _draw(star, logits_BlV, keys_B, k, knobs)
  if not config.gumbel_smooth:
    return idx_Bl, idx_Bl
  schedule = star.config.schedule
  # Streams 0 .. K-1 are the draws, K .. 2K-1 the smoothing.
  smooth = _noise(keys_B, schedule.num_scales + k, logits.shape[1:])
  ratio = schedule.cfg_ratio(k)
  if not config.smooth_filtered:
    logits = logit_ops.apply_temperature(logits_BlV, knobs.temperature)
  return idx_Bl, logit_ops.smooth_weights(logits, smooth, ratio)


def _draw(star, logits_BlV, keys_B, stream, knobs):
  """Tokens [B, l] and the filtered logits that they are drawn from; a head of
  bits draws each bit on its own."""
  by_bits = star.config.head == "bits"
  logits = logit_ops.bit_pairs(logits_BlV) if by_bits else logits_BlV
  logits = _filtered(logits, knobs)
  drawn = logit_ops.draw(logits, _noise(keys_B, stream, logits.shape[1:]))
  return bit_ops.pack(drawn) if by_bits else drawn, logits


def _filtered(logits_BlV: jax.Array, knobs: Knobs) -> jax.Array:
  """What is drawn from: temperature, then top-k, then top-p."""
  logits = logit_ops.apply_temperature(logits_BlV, knobs.temperature)
  logits = logit_ops.filter_top_k(logits, knobs.top_k)
  return logit_ops.filter_top_p(logits, knobs.top_p)


def _noise(keys_B, stream, shape) -> jax.Array:
  """Gumbel noise [B, *shape]; every sample's own, from stream `stream`."""
  return logit_ops.gumbel_noise(_streams(keys_B, stream), shape)


def _streams(keys_B, stream) -> jax.Array:
  """Every sample's key of a stream."""
  return jax.vmap(lambda key: jax.random.fold_in(key, stream))(keys_B)
