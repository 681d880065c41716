"""Condition to picture: the loop over scales inside one jitted function.

The loop is unrolled, since token counts differ from scale to scale, so every
offset is static; layers are scanned inside `Star.decode_scale`. What depends on
the prompt or class alone is computed once, the cache of the tokens is an
argument and a return value. Guidance runs the batch [cond; null] with the
linear ramp t = cfg_scale * k / (K - 1) (golden README, rule 11).

Draws are per sample: scale k of sample b uses fold_in(keys_B[b], k) and
nothing else, whatever the batch.

B: samples, R: rows of the model's batch (2B with guidance), K: scales, k:
scale index, l: tokens of scale k, L: tokens of all scales, V: vocabulary,
h w: latent grid, Cv: code width, H W: pixels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp

from star_jax.model.attention import init_cache
from star_jax.model.condition import Condition, Given
from star_jax.model.refine import RefineHead
from star_jax.model.star import Star
from star_jax.sampling import logits as logit_ops
from star_jax.sampling.raster import draw_token_by_token
from star_jax.sampling.rounds import (
  RefineSampling,
  check_refine,
  draw_in_rounds,
  random_confidence,
)
from star_jax.tokenizer.vqvae import VQVAE

NEXT = "next_scale_input"


@dataclasses.dataclass(frozen=True)
class SamplerConfig:
  """What changes the compiled program; everything else is in `Knobs`.

  Attributes:
    guided: run the null half too. Without it cfg_scale is ignored and half of
      the work is saved, so cfg_scale == 0 should use guided=False.
    gumbel_smooth: feed soft mixtures of codes to the next scale and to the
      picture (VAR's `more_smooth`); tokens are still drawn. For looks only.
    return_image: decode the last f_hat.
    return_logits: return the logits that were drawn from, after guidance and
      before temperature and filters; of a refined scale those of the
      transformer, which are not what its tokens are drawn from.
    refine: draw the scales of the refinement head in rounds; None: like the
      others.
  """

  guided: bool = True
  gumbel_smooth: bool = False
  return_image: bool = True
  return_logits: bool = False
  refine: RefineSampling | None = None


@flax.struct.dataclass
class Knobs:
  """Traced scalars: changing them compiles nothing.

  Attributes:
    cfg_scale: guidance at the last scale, 0 = off.
    temperature: above 0; 1 leaves the model's distribution.
    top_k: tokens kept per draw, 0 = all.
    top_p: nucleus in (0, 1], 1 = all.
  """

  cfg_scale: jax.Array | float
  temperature: jax.Array | float = 1.0
  top_k: jax.Array | int = 0
  top_p: jax.Array | float = 1.0


@flax.struct.dataclass
class SampleOutput:
  """What the sampler returns; fields that were not asked for are None.

  Attributes:
    idx_BL: int32 tokens.
    f_hats_KBhwCv: float32, f_hat after every scale; the decoder turned the
      last one into the picture, see `build_scale_decoder` for the others.
    image_BHW3: float32 in [-1, 1].
    logits_BLV: float32, guided logits before temperature and filters.
    drawn_BL: int32, what was drawn, also where an edit kept another token;
      comes with the logits.
  """

  idx_BL: jax.Array
  f_hats_KBhwCv: jax.Array
  image_BHW3: jax.Array | None = None
  logits_BLV: jax.Array | None = None
  drawn_BL: jax.Array | None = None

  @property
  def f_hat_BhwCv(self) -> jax.Array:
    """After the last scale."""
    return self.f_hats_KBhwCv[-1]


SampleFn = Callable[[Any, Given, Given, jax.Array, Knobs], SampleOutput]


def sample_keys(seed: int, indices: jax.Array) -> jax.Array:
  """One key a sample, fold_in(key(seed), index); indices int [B]."""
  base = jax.random.key(seed)
  return jax.vmap(lambda i: jax.random.fold_in(base, i))(jnp.asarray(indices))


def build_sampler(
  star: Star,
  vqvae: VQVAE,
  config: SamplerConfig,
  head: RefineHead | None = None,
) -> SampleFn:
  """The jitted sampler of a model and its tokenizer.

  Args:
    star, vqvae: the model and its tokenizer.
    config: see there.
    head: what `config.refine` asks.

  Returns:
    fn(params, given, null, keys_B, knobs, edit=None) -> SampleOutput, with
      params: {"star": ..., "tokenizer": ...}, and "refine" with a head;
      given: TextStates of the B prompts, or int32 [B] classes;
      null: the same of the empty prompt or null class, batch 1 (or B);
      keys_B: typed PRNG keys, see `sample_keys`;
      knobs: `Knobs`;
      edit: an `Edit`, whose kept tokens replace those drawn; None: none.
    One compilation per B (and one with an edit); the jitted function itself is
    returned, so that its cache can be inspected.

  Raises:
    ValueError: model and tokenizer do not fit together; refinement without a
      head, or of scales too small for their rounds; at the first call, an edit
      by, or Gumbel smoothing of, a model that predicts token by token.
  """
  check_pair(star, vqvae)
  check_refine(star.config, config.refine, head)
  models = Models(star, vqvae, head)
  by_scale = star.config.prediction == "scale"
  draw_all = _draw_all_scales if by_scale else _draw_all_tokens

  def sample(params, given, null, keys_B, knobs, edit=None):
    out = draw_all(models, config, params, given, null, keys_B, knobs, edit)
    image = None
    if config.return_image:
      image = _decode(vqvae, params, out["f_hats_KBhwCv"][-1])
    return SampleOutput(image_BHW3=image, **out)

  return jax.jit(sample)


def build_scale_decoder(
  vqvae: VQVAE,
) -> Callable[[Any, jax.Array], jax.Array]:
  """The jitted fn(params, f_hats_KBhwCv) -> pictures [K, B, H, W, 3].

  A program of its own, so that asking for these pictures cannot change the
  rounding, and with it a draw, of the sampler.
  """

  def decode(params, f_hats_KBhwCv: jax.Array) -> jax.Array:
    # One scale after the other: the decoder is compiled once, and its
    # temporaries stay those of one batch.
    return jax.lax.map(lambda f: _decode(vqvae, params, f), f_hats_KBhwCv)

  return jax.jit(decode)


def check_pair(star: Star, vqvae: VQVAE) -> None:
  """ValueError unless the model predicts the tokens of this tokenizer."""
  for name in ("schedule", "vocab_size", "code_dim"):
    ours, theirs = getattr(star.config, name), getattr(vqvae.config, name)
    if ours != theirs:
      ours = getattr(ours, "grids", ours)
      theirs = getattr(theirs, "grids", theirs)
      raise ValueError(
        f"The model was made for another tokenizer: its {name} is {ours},"
        f" the tokenizer's is {theirs}."
      )


class Models(NamedTuple):
  """What a sampler runs."""

  star: Star
  vqvae: VQVAE
  head: RefineHead | None


def _draw_all_scales(
  models: Models,
  config: SamplerConfig,
  params,
  given,
  null,
  keys_B,
  knobs,
  edit,
) -> dict[str, Any]:
  """The loop; returns the fields of `SampleOutput` but the picture."""
  star, vqvae, _ = models
  schedule, batch = star.config.schedule, batch_of(given)
  tokenizer = {"params": params["tokenizer"]}
  condition = _condition(
    star, {"params": params["star"]}, given, null, config.guided
  )
  cache = init_cache(star.config, batch_of(condition))
  f_hat = jnp.zeros((batch, *schedule.final_grid, vqvae.config.code_dim))
  given_f_hat = f_hat
  x_BlCv, idx, f_hats, all_logits, drawn = None, [], [], [], []
  for k in range(schedule.num_scales):
    logits, cache, features = star.apply(
      {"params": params["star"]},
      k,
      _both_halves(x_BlCv, config.guided),
      condition,
      cache,
      return_features=True,
      method="decode_scale",
    )
    logits = _guided(logits, config.guided, knobs, schedule.cfg_ratio(k))
    if config.refine and k >= models.head.refine.first_scale:
      idx_Bl = choice = _draw_refined(
        models,
        config,
        params,
        k,
        logits,
        features,
        _pooled(given, null, config.guided),
        keys_B,
        knobs,
      )
    else:
      idx_Bl, choice = _choose(logits, keys_B, k, schedule, knobs, config)
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
  models, config, params, k, logits, features_RlC, pooled_RD, keys_B, knobs
) -> jax.Array:
  """Tokens [B, l] of scale k, drawn in rounds.

  The head's logits are guided in full, whatever the scale.
  """
  star, vqvae, head = models
  num_scales, length = star.config.schedule.num_scales, logits.shape[1]

  def ask(visible_Bl, fixed_Bl):
    codes_BlCv = vqvae.apply(
      {"params": params["tokenizer"]}, fixed_Bl, method="codes"
    )
    shown = jnp.where(visible_Bl[..., None], codes_BlCv, 0.0)
    out = head.apply(
      {"params": params["refine"]},
      _both_halves(shown, config.guided),
      features_RlC,
      pooled_RD,
      (k,),
    )
    return _guided(out, config.guided, knobs, 1.0)

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


def _draw_all_tokens(
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
  star, vqvae, _ = models
  if edit is not None or config.gumbel_smooth:
    raise ValueError(
      "This model predicts token by token: editing and Gumbel smoothing need"
      " one that predicts scale by scale."
    )
  variables = {"params": params["star"]}

  def draw(logits, ratio, place):
    logits = _guided(logits, config.guided, knobs, ratio)
    noise = _noise(keys_B, place, logits.shape[1:])
    return logits, logit_ops.draw(_filtered(logits, knobs), noise)

  idx_BL, logits_BLV = draw_token_by_token(
    star,
    vqvae,
    params,
    _condition(star, variables, given, null, config.guided),
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


def _condition(star, variables, given, null, guided: bool) -> Condition:
  """The condition of the R rows of the model's batch.

  The null condition is computed once, not B times.
  """
  if not guided:
    return star.apply(variables, given, method="condition")
  batch, nulls = batch_of(given), batch_of(null)
  assert nulls in (1, batch), (nulls, batch)
  both = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), given, null)
  rows = jnp.concatenate(
    [
      jnp.arange(batch),
      batch + (jnp.arange(batch) if nulls > 1 else jnp.zeros(batch, int)),
    ]
  )
  return star.apply(variables, both, method="condition")[rows]


def batch_of(given: Given) -> int:
  """B, the number of prompts or classes."""
  return jax.tree.leaves(given)[0].shape[0]


def _both_halves(x_BlCv, guided: bool):
  """The same tokens for the conditional and for the null half."""
  if x_BlCv is None or not guided:
    return x_BlCv
  return jnp.concatenate([x_BlCv, x_BlCv])


def _choose(logits_BlV, keys_B, k: int, schedule, knobs, config):
  """Draws the tokens of scale k.

  Returns:
    idx_Bl, and what the next scale is made from: the same tokens, or weights
    [B, l, V] over the codebook with Gumbel smoothing.
  """
  logits = _filtered(logits_BlV, knobs)
  idx_Bl = logit_ops.draw(logits, _noise(keys_B, k, logits.shape[1:]))
  if not config.gumbel_smooth:
    return idx_Bl, idx_Bl
  # Streams 0 .. K-1 are the draws, K .. 2K-1 the smoothing.
  smooth = _noise(keys_B, schedule.num_scales + k, logits.shape[1:])
  ratio = schedule.cfg_ratio(k)
  return idx_Bl, logit_ops.smooth_weights(logits, smooth, ratio)


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


def _decode(vqvae, params, f_hat_BhwCv: jax.Array) -> jax.Array:
  return vqvae.apply(
    {"params": params["tokenizer"]}, f_hat_BhwCv, method="decode"
  )
