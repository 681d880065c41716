"""Condition to picture: one jitted function around the loops of `loops`.

Draws are per sample: sample b uses keys_B[b] and nothing else, whatever the
batch.

B: samples, K: scales, L: tokens of all scales, V: vocabulary, h w: latent grid,
Cv: code width, H W: pixels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from star_jax.model.condition import Given
from star_jax.model.config import StarConfig
from star_jax.model.refine import RefineHead
from star_jax.model.star import Star
from star_jax.sampling.accelerate import Accelerate
from star_jax.sampling.loops import draw_all_scales, draw_all_tokens
from star_jax.sampling.passes import Models
from star_jax.sampling.rounds import RefineSampling, check_refine
from star_jax.sharding import constrain, use_mesh
from star_jax.tokenizer.vqvae import VQVAE

# Pixels per side from which on a CPU decodes one picture after the other: maps
# of several do not stay in its cache. The official decoder, four pictures of
# 256 px on two cores: 7.9 instead of 12.3 s.
CPU_SIDE = 128


@dataclasses.dataclass(frozen=True)
class SamplerConfig:
  """What changes the compiled program; everything else is in `Knobs`.

  Attributes:
    guided: run the null half too. Without it cfg_scale is ignored and half of
      the work is saved, so cfg_scale == 0 should use guided=False.
    gumbel_smooth: feed soft mixtures of codes to the next scale and to the
      picture (VAR's `more_smooth`); tokens are still drawn. For looks only.
    smooth_filtered: smooth the logits after top-k and top-p, as in VAR; False:
      before them, as in STAR. Without gumbel_smooth it changes nothing.
    return_image: decode the last f_hat.
    return_logits: return the logits that were drawn from, after guidance and
      before temperature and filters; of a refined scale those of the
      transformer, which are not what its tokens are drawn from.
    cfg_ramp: guidance grows from scale to scale; False: cfg_scale on all of
      them (0 draws from the conditional half alone, -1 from the null half).
    refine: draw the scales of the refinement head in rounds; None: like the
      others.
    decode_one_by_one: the decoder sees one picture after the other, so that
      its temporaries do not grow with the batch; for large pictures.
    decoder_dtype: computes the decoder in another dtype than the tokenizer's
      own, for half of its temporaries. Tokens do not change.
    accelerate: spend less on the late scales; None: nothing is left out.
  """

  guided: bool = True
  gumbel_smooth: bool = False
  smooth_filtered: bool = True
  return_image: bool = True
  return_logits: bool = False
  cfg_ramp: bool = True
  refine: RefineSampling | None = None
  decode_one_by_one: bool = False
  decoder_dtype: str | None = None
  accelerate: Accelerate | None = None


@flax.struct.dataclass
class Knobs:
  """Traced scalars: changing them compiles nothing.

  Attributes:
    cfg_scale: guidance at the last scale, 0 = off.
    temperature: above 0; 1 leaves the model's distribution.
    top_k: tokens kept per draw, 0 = all.
    top_p: nucleus in (0, 1], 1 = all.
    A head of bits filters the two values of each bit (`logits.bit_pairs`).
  """

  cfg_scale: jax.Array | float
  temperature: jax.Array | float = 1.0
  top_k: jax.Array | int = 0
  top_p: jax.Array | float = 1.0

  @classmethod
  def of(cls, settings: Mapping[str, Any]) -> Knobs:
    """From the settings that users give, see `sampling.settings`."""
    return cls(
      cfg_scale=np.float32(settings["cfg_scale"]),
      temperature=np.float32(settings["temperature"]),
      top_k=np.int32(settings["top_k"]),
      top_p=np.float32(settings["top_p"]),
    )


@flax.struct.dataclass
class SampleOutput:
  """What the sampler returns; fields that were not asked for are None.

  Attributes:
    idx_BL: int32 tokens.
    f_hats_KBhwCv: float32, f_hat after every scale; the decoder turned the
      last one into the picture, see `build_scale_decoder` for the others.
    image_BHW3: float32 in [-1, 1].
    logits_BLV: float32, guided logits before temperature and filters; of a head
      of bits [B, L, n].
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
  mesh: Mesh | None = None,
  small: Star | None = None,
) -> SampleFn:
  """The jitted sampler of a model and its tokenizer.

  Args:
    star, vqvae: the model and its tokenizer.
    config: see there.
    head: what `config.refine` asks.
    mesh: that the parameters lie on (star_jax/sharding.py); None: one device.
    small: draws the last scales, if `config.accelerate` asks for it.

  Returns:
    fn(params, given, null, keys_B, knobs, edit=None) -> SampleOutput, with
      params: {"star": ..., "tokenizer": ...}, and "refine" with a head, "small"
        with a small model;
      given: TextStates of the B prompts, or int32 [B] classes;
      null: the same of the empty prompt or null class, batch 1 (or B);
      keys_B: typed PRNG keys, see `sample_keys`;
      knobs: `Knobs`;
      edit: an `Edit`, whose kept tokens replace those drawn; None: none.
    One compilation per B (and one with an edit); the jitted function itself is
    returned, so that its cache can be inspected.

  Raises:
    ValueError: model and tokenizer do not fit together; refinement without a
      head, or of scales too small for their rounds; an acceleration that these
      models cannot do; at the first call, an edit by, or Gumbel smoothing of, a
      model that predicts token by token.
  """
  check_pair(star, vqvae)
  check_smooth(star.config, config.gumbel_smooth)
  check_refine(star.config, config.refine, head)
  check_accelerate(star, config, small)
  models = Models(star, vqvae, head, small)
  by_scale = star.config.prediction == "scale"
  draw_all = draw_all_scales if by_scale else draw_all_tokens
  decoder = vqvae
  if config.decoder_dtype:
    settings = dataclasses.replace(vqvae.config, dtype=config.decoder_dtype)
    decoder = VQVAE(settings)

  def sample(params, given, null, keys_B, knobs, edit=None):
    with use_mesh(mesh):
      out = draw_all(models, config, params, given, null, keys_B, knobs, edit)
      image = None
      if config.return_image:
        f_hat_BhwCv = out["f_hats_KBhwCv"][-1]
        image = _decode(decoder, params, f_hat_BhwCv, config.decode_one_by_one)
        image = constrain(image, "image_BHW3")
      return SampleOutput(image_BHW3=image, **out)

  return jax.jit(sample)


def build_scale_decoder(
  vqvae: VQVAE, one_by_one: bool = False
) -> Callable[[Any, jax.Array], jax.Array]:
  """The jitted fn(params, f_hats_KBhwCv) -> pictures [K, B, H, W, 3].

  A program of its own, so that asking for these pictures cannot change the
  rounding, and with it a draw, of the sampler. `one_by_one` is
  `SamplerConfig.decode_one_by_one`.
  """

  def decode(params, f_hats_KBhwCv: jax.Array) -> jax.Array:
    # One scale after the other: the decoder is compiled once, and its
    # temporaries stay those of one batch.
    return jax.lax.map(
      lambda f: _decode(vqvae, params, f, one_by_one), f_hats_KBhwCv
    )

  return jax.jit(decode)


def check_accelerate(
  star: Star, config: SamplerConfig, small: Star | None
) -> None:
  """ValueError unless the models can do what `config.accelerate` asks for."""
  accelerate = config.accelerate
  if accelerate is None:
    return
  accelerate.check(star.config, None if small is None else small.config)
  if accelerate.small_scales and config.refine:
    raise ValueError(
      "The refinement head reads the large model: small_scales goes with"
      " refine off."
    )


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
  quantizer = vqvae.config.quantizer
  if quantizer == "none":
    raise ValueError(
      "The model predicts tokens, which a continuous autoencoder (quantizer ="
      " 'none') does not have."
    )
  if star.config.head == "bits" and not vqvae.config.binary:
    raise ValueError(
      "The model has head 'bits', which needs a tokenizer with quantizer 'lfq'"
      f" or 'bsq', got {quantizer!r}."
    )


def check_smooth(config: StarConfig, gumbel_smooth: bool) -> None:
  """ValueError where there are no weights over codes to mix by."""
  if gumbel_smooth and config.head == "bits":
    raise ValueError(
      "gumbel_smooth mixes codes by the logits of whole tokens, which a model"
      " with head 'bits' does not have: set it to False."
    )


def _decode(
  vqvae, params, f_hat_BhwCv: jax.Array, one_by_one: bool
) -> jax.Array:
  def together(params, f_hat_BhwCv):
    return vqvae.apply({"params": params}, f_hat_BhwCv, method="decode")

  def in_turn(params, f_hat_BhwCv):
    return jax.lax.map(lambda f: together(params, f[None])[0], f_hat_BhwCv)

  args = (params["tokenizer"], f_hat_BhwCv)
  if one_by_one:
    return in_turn(*args)
  # Not len(): the batch of an exported sampler is a symbol.
  if f_hat_BhwCv.shape[0] != 1 and max(vqvae.config.image_size) >= CPU_SIDE:
    return jax.lax.platform_dependent(*args, cpu=in_turn, default=together)
  return together(*args)
