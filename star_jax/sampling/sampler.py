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
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from star_jax.model.attention import init_cache
from star_jax.model.condition import Condition, Given
from star_jax.model.star import Star
from star_jax.sampling import logits as logit_ops
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
      before temperature and filters.
    cfg_ramp: guidance grows from scale to scale; False: cfg_scale on all of
      them (0 draws from the conditional half alone, -1 from the null half).
  """

  guided: bool = True
  gumbel_smooth: bool = False
  return_image: bool = True
  return_logits: bool = False
  cfg_ramp: bool = True


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


def build_sampler(star: Star, vqvae: VQVAE, config: SamplerConfig) -> SampleFn:
  """The jitted sampler of a model and its tokenizer.

  Returns:
    fn(params, given, null, keys_B, knobs, edit=None) -> SampleOutput, with
      params: {"star": ..., "tokenizer": ...};
      given: TextStates of the B prompts, or int32 [B] classes;
      null: the same of the empty prompt or null class, batch 1 (or B);
      keys_B: typed PRNG keys, see `sample_keys`;
      knobs: `Knobs`;
      edit: an `Edit`, whose kept tokens replace those drawn; None: none.
    One compilation per B (and one with an edit); the jitted function itself is
    returned, so that its cache can be inspected.

  Raises:
    ValueError: model and tokenizer do not fit together.
  """
  check_pair(star, vqvae)

  def sample(params, given, null, keys_B, knobs, edit=None):
    out = _draw_all_scales(
      star, vqvae, config, params, given, null, keys_B, knobs, edit
    )
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


def _draw_all_scales(
  star, vqvae, config: SamplerConfig, params, given, null, keys_B, knobs, edit
) -> dict[str, Any]:
  """The loop; returns the fields of `SampleOutput` but the picture."""
  schedule, batch = star.config.schedule, batch_of(given)
  variables, tokenizer = (
    {"params": params[part]} for part in ("star", "tokenizer")
  )
  condition = _condition(star, variables, given, null, config.guided)
  cache = init_cache(star.config, batch_of(condition))
  f_hat = jnp.zeros((batch, *schedule.final_grid, vqvae.config.code_dim))
  given_f_hat = f_hat
  x_BlCv, idx, f_hats, all_logits, drawn = None, [], [], [], []
  for k in range(schedule.num_scales):
    logits, cache = star.apply(
      variables,
      k,
      _both_halves(x_BlCv, config.guided),
      condition,
      cache,
      method="decode_scale",
    )
    if config.guided:
      cond, uncond = jnp.split(logits, 2)
      ramp = schedule.cfg_ratio(k) if config.cfg_ramp else 1.0
      t = knobs.cfg_scale * ramp
      logits = logit_ops.guide(cond, uncond, t)
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
  logits = logit_ops.apply_temperature(logits_BlV, knobs.temperature)
  logits = logit_ops.filter_top_k(logits, knobs.top_k)
  logits = logit_ops.filter_top_p(logits, knobs.top_p)

  def noise(stream: int):
    keys = jax.vmap(lambda key: jax.random.fold_in(key, stream))(keys_B)
    return logit_ops.gumbel_noise(keys, logits.shape[1:])

  idx_Bl = logit_ops.draw(logits, noise(k))
  if not config.gumbel_smooth:
    return idx_Bl, idx_Bl
  # Streams 0 .. K-1 are the draws, K .. 2K-1 the smoothing.
  smooth = noise(schedule.num_scales + k)
  ratio = schedule.cfg_ratio(k)
  return idx_Bl, logit_ops.smooth_weights(logits, smooth, ratio)


def _decode(vqvae, params, f_hat_BhwCv: jax.Array) -> jax.Array:
  return vqvae.apply(
    {"params": params["tokenizer"]}, f_hat_BhwCv, method="decode"
  )
