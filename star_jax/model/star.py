"""STAR and VAR: text or class to multi-scale tokens (arXiv 2406.10797,
2404.02905).

The model reads code vectors and a condition and returns logits; turning
tokens into code vectors is the tokenizer's business.

B: batch, K: scales, L: tokens of all scales, l: of one, C: width,
V: vocabulary (or the bits of a token, `StarConfig.head`), Cv: code width, p:
rotation planes.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from star_jax.model.blocks import BlockContext, LayerInputs, remat_block
from star_jax.model.cache import KVCache
from star_jax.model.condition import (
  AdaptiveNorm,
  ClassEmbedding,
  Condition,
  CrossKeyValue,
  Given,
  HeadNorm,
)
from star_jax.model.config import StarConfig
from star_jax.model.kept_tokens import KeptTokens
from star_jax.model.late_scales import (
  LateOutput,
  LateScale,
  pivotal_tokens,
  restore_tokens,
)
from star_jax.model.layers import (
  HIGHEST,
  flat_tokens,
  layer_norm,
  weight_init,
)
from star_jax.model.rope import rope_tables
from star_jax.model.sequence import padded_tokens
from star_jax.model.sinusoidal import sinusoidal_table
from star_jax.sharding import SEQUENCE, axis_size, constrain
from star_jax.text.states import TextStates


class Star(nn.Module):
  """The transformer. Parameters are float32; layers are stacked in `blocks`.

  Random number streams: "params"; "drop_path" when training with drop path.
  """

  config: StarConfig

  def setup(self):
    cfg = self.config
    # Of what reads no width, and of what reads one.
    init, inner = weight_init(cfg.input_std), weight_init(cfg.weight_std)

    def dense(features, **options):
      options = {"kernel_init": init, "precision": HIGHEST, **options}
      return nn.Dense(features, dtype=jnp.float32, **options)

    num_scales = cfg.schedule.num_scales
    if cfg.num_classes:
      self.class_embed = ClassEmbedding(cfg)
    else:
      self.start_proj = dense(cfg.width)
    self.pos_start = self.param("pos_start", init, (cfg.width,))
    self.word_embed = dense(cfg.width)
    if cfg.lvl_embed:
      self.lvl_embed = self.param("lvl_embed", init, (num_scales, cfg.width))
    if "absolute" in cfg.position:
      shape = (cfg.schedule.num_tokens, cfg.width)
      self.pos_embed = self.param("pos_embed", init, shape)
    if cfg.adaptive_norm == "level":
      self.lvl_embed_proj = dense(cfg.width, kernel_init=inner)
      self.lvl_embed_adaln = dense(6 * cfg.width, kernel_init=inner)
    if cfg.modulated_head:
      self.adaptive_norm = AdaptiveNorm(cfg)
      self.head_norm = HeadNorm(cfg)
    if cfg.cross_attention:
      self.cross = CrossKeyValue(cfg)
    self.head = dense(cfg.num_logits, kernel_init=weight_init(cfg.head_std))
    self.blocks = nn.scan(
      remat_block(cfg),
      variable_axes={"params": 0},
      split_rngs={"params": True, "drop_path": True},
      in_axes=(0, nn.broadcast),
      length=cfg.depth,
      # It traces the layers twice. Initial weights are drawn on the way, and
      # must stay what they are.
      check_constancy_invariants=self.is_initializing(),
    )(cfg)

  def __call__(
    self,
    x_BLCv_wo_first_l: jax.Array,
    given: Given,
    *,
    kept: KeptTokens | None = None,
    deterministic: bool = True,
    return_features: bool = False,
  ) -> jax.Array | tuple[jax.Array, jax.Array]:
    """Teacher forcing: logits of all tokens from the tokens before them.

    Args:
      x_BLCv_wo_first_l: float [B, L - 1, Cv], what `teacher_forcing_input` of
        star_jax/teacher_forcing.py makes of the tokens: for every scale k >= 1
        what it sees of the scales before, or for every token the one before.
        It may end with any scale, and so do the logits then.
      given: states of the B captions, or int32 [B] classes.
      kept: which tokens to look at; the others neither attend nor are attended
        to, and those kept of a scale stand for all of it in the softmax. None:
        all of them.
      deterministic: False in training: drop path is on.
      return_features: also return float32 [B, L, C], the output of the last
        block before the final norm.

    Returns:
      float32 logits [B, L, V]; L without the tokens not looked at.
    """
    x_BLC, condition = self.hidden(
      x_BLCv_wo_first_l, given, kept=kept, deterministic=deterministic
    )
    logits_BLV = self.logits(x_BLC, condition)
    if return_features:
      return logits_BLV, x_BLC.astype(jnp.float32)
    return logits_BLV

  def hidden(
    self,
    x_BLCv_wo_first_l: jax.Array,
    given: Given,
    *,
    kept: KeptTokens | None = None,
    deterministic: bool = True,
  ) -> tuple[jax.Array, Condition]:
    """What `logits` makes the logits of all tokens from: the output of the last
    block [B, L, C], and the condition. Arguments as of `__call__`."""
    cfg = self.config
    schedule = cfg.schedule
    _, num_tokens, code_dim = x_BLCv_wo_first_l.shape
    num_tokens += 1
    assert code_dim == cfg.code_dim, (code_dim, cfg.code_dim)
    assert num_tokens in np.cumsum(schedule.lengths), (num_tokens, schedule)
    tokens = np.arange(num_tokens)
    if kept is not None:
      tokens = kept
      x_BLCv_wo_first_l = jnp.take_along_axis(
        x_BLCv_wo_first_l, kept.index_BL[:, 1:, None] - 1, axis=1
      )
    condition = self.condition(given, by_layer=axis_size("fsdp") > 1)
    x_BLC = jnp.concatenate(
      [
        self._start(condition),
        self.word_embed(x_BLCv_wo_first_l.astype(jnp.float32)),
      ],
      axis=1,
    )
    x_BLC, _, _ = self._layers(x_BLC, tokens, condition, None, deterministic)
    return x_BLC, condition

  def condition(self, given: Given, by_layer: bool = False) -> Condition:
    """Everything that depends on the prompts or classes alone.

    Args:
      given: states of the B prompts, or int32 [B] classes.
      by_layer: each layer computes its keys and values of the text itself.
    """
    cfg = self.config
    if isinstance(given, TextStates) == bool(cfg.num_classes):
      kind = "classes" if cfg.num_classes else "texts"
      raise ValueError(f"This model draws {kind}, got {type(given).__name__}.")
    if cfg.num_classes:
      out = Condition(self.class_embed(given))
    else:
      pooled_BD = jnp.asarray(given.pooled_BD, jnp.float32)
      mask_BT = jnp.asarray(given.text_mask_BT, bool)
      out = Condition(self.start_proj(pooled_BD), mask_BT=mask_BT)
    if cfg.cross_attention and by_layer:
      text_BTD = jnp.asarray(given.text_BTD)
      out = out.replace(by_layer=self.cross.by_layer(text_BTD))
    elif cfg.cross_attention:
      k, v = self.cross(jnp.asarray(given.text_BTD))
      out = out.replace(cross_k=k, cross_v=v)
    if cfg.modulated_head:
      name = "layers_IB6C" if cfg.adaptive_norm == "block" else "shared_B6C"
      out = out.replace(
        **{name: self.adaptive_norm(out.start_BC)},
        head_B2C=self.head_norm(out.start_BC),
      )
    return out

  def decode_scale(
    self,
    k: int,
    x_BlCv: jax.Array | None,
    condition: Condition,
    cache: KVCache,
    *,
    return_features: bool = False,
    late: LateScale | None = None,
  ) -> tuple[jax.Array, ...] | LateOutput:
    """Logits of one scale, given the cache of all scales before it.

    Args:
      k: scale index, static.
      x_BlCv: float [B, l, Cv], the tokenizer's `next_scale_input` of scale
        k - 1; None for k = 0, whose input is the start token.
      condition: what `condition` returned.
      cache: `init_cache` at k = 0, then what the last call returned.
      return_features: see `__call__`.
      late: what the scale does otherwise than the others; None: nothing.

    Returns:
      float32 logits [B, l, V] and the cache with this scale's keys and values;
      with `return_features` also float32 [B, l, C]. With `late` a `LateOutput`.
    """
    schedule = self.config.schedule
    if not 0 <= k < schedule.num_scales:
      raise ValueError(
        f"The scale index is in [0, {schedule.num_scales}), got {k}."
      )
    if k == 0:
      x_BlC = self._start(condition)
    else:
      x_BlC = self.word_embed(x_BlCv.astype(jnp.float32))
    tokens = np.arange(*schedule.begin_ends[k])
    assert x_BlC.shape[1] == schedule.lengths[k], (k, x_BlC.shape, schedule)
    x_BlC, cache, input_BlC = self._layers(
      x_BlC, tokens, condition, cache, True, late
    )
    logits_BlV = self.logits(x_BlC, condition)
    if late is not None:
      features = x_BlC.astype(jnp.float32)
      update = features - input_BlC
      return LateOutput(logits_BlV, features, cache, update)
    if return_features:
      return logits_BlV, cache, x_BlC.astype(jnp.float32)
    return logits_BlV, cache

  def fill_cache(
    self,
    x_BMCv: jax.Array,
    condition: Condition,
    cache: KVCache,
    probe: tuple[int, ...] = (),
  ) -> tuple[KVCache, jax.Array]:
    """Reads the first scales in one pass, so that decoding can go on.

    Args:
      x_BMCv: float [B, M - 1, Cv], their inputs as `decode_scale` had them,
        without the first.
      condition: what `condition` returned.
      cache: an empty one with room for M tokens.
      probe: which of them leave their queries in the cache, see `KVCache`.

    Returns:
      The cache with M tokens; and float32 [B, M, C], what the layers added to
      each.
    """
    tokens = np.arange(1 + x_BMCv.shape[1])
    x_BMC = jnp.concatenate(
      [self._start(condition), self.word_embed(x_BMCv.astype(jnp.float32))], 1
    )
    late = LateScale(begin=None, keep=len(tokens), probe=probe)
    x_BMC, cache, input_BMC = self._layers(
      x_BMC, tokens, condition, cache, True, late
    )
    return cache, x_BMC.astype(jnp.float32) - input_BMC

  def decode_token(
    self,
    place: jax.Array,
    x_B1Cv: jax.Array,
    condition: Condition,
    cache: KVCache,
  ) -> tuple[jax.Array, KVCache]:
    """Logits of one token, where prediction is "token".

    Args:
      place: int32, which of the L tokens; may be traced.
      x_B1Cv: float [B, 1, Cv], the code of the token before it; not looked at
        for the first one.
      condition: what `condition` returned.
      cache: `init_cache` for the first token, then what the last call returned.

    Returns:
      float32 logits [B, 1, V] and the cache with this token.
    """
    assert self.config.prediction == "token", self.config.prediction
    x_B1C = jnp.where(
      place == 0,
      self._start(condition),
      self.word_embed(x_B1Cv.astype(jnp.float32)),
    )
    place_1 = jnp.reshape(place, (1,))
    x_B1C, cache, _ = self._layers(x_B1C, place_1, condition, cache, True)
    return self.logits(x_B1C, condition), cache

  def _start(self, condition: Condition) -> jax.Array:
    """[B, 1, C]: the start token."""
    return condition.start_BC[:, None] + self.pos_start

  def _layers(
    self,
    x_BLC: jax.Array,
    tokens: np.ndarray | jax.Array | KeptTokens,
    condition: Condition,
    cache: KVCache | None,
    deterministic: bool,
    late: LateScale | None = None,
  ) -> tuple[jax.Array, KVCache | None, jax.Array]:
    """Adds level and position, runs all blocks.

    Args:
      x_BLC: embedded tokens.
      tokens: which of all L tokens they are; a jax array is one token alone.
      condition: of the prompts or classes.
      cache: None for all scales at once.
      deterministic: no drop path.
      late: see `decode_scale`.

    Returns:
      The tokens behind the blocks, the cache, the tokens before the blocks.
    """
    cfg, content_BLC, index_Bn = self.config, x_BLC, None
    schedule, begin, place, weight_BL = cfg.schedule, None, None, None
    if isinstance(tokens, jax.Array):
      place, lengths = tokens[0], (1,)
      lvl_L = jnp.asarray(schedule.level_ids)[tokens]
    elif isinstance(tokens, KeptTokens):
      lengths = tokens.lengths
      lvl_L = np.repeat(np.arange(len(lengths)), lengths)
      weight_BL, tokens = tokens.weight_BL, tokens.index_BL
    else:
      lvl_L = schedule.level_ids[tokens]
      lengths = tuple(np.unique(lvl_L, return_counts=True)[1].tolist())
      if cfg.prediction == "token":
        lengths = (1,) * len(tokens)
      begin = None if cache is None else int(tokens[0])
    if cfg.lvl_embed:
      x_BLC = x_BLC + self.lvl_embed[lvl_L]
    cos_Lp = sin_Lp = cond_L6C = None
    if "absolute" in cfg.position:
      x_BLC = x_BLC + self.pos_embed[tokens]
    if cfg.position == "sinusoidal":
      table = sinusoidal_table(schedule, cfg.width, cfg.input_std)
      x_BLC = x_BLC + jnp.asarray(table)[tokens]
    input_BLC = x_BLC
    if late is not None:
      begin = late.begin
      if late.keep < len(tokens):
        index_Bn = pivotal_tokens(content_BLC, late.keep)
        x_BLC = jnp.take_along_axis(x_BLC, index_Bn[..., None], axis=1)
        tokens, lvl_L = tokens[0] + index_Bn, lvl_L[: late.keep]
    if "rope" in cfg.position:
      # [L, p], or [B, 1, L, p] where each sample has tokens of its own.
      places = tokens if tokens.ndim == 1 else tokens[:, None]
      cos_Lp, sin_Lp = (
        jnp.asarray(table)[places]
        for table in rope_tables(
          cfg.schedule,
          cfg.head_dim,
          cfg.rope_theta,
          cfg.rope_norm,
          cfg.rope_coords,
        )
      )
    if cfg.adaptive_norm == "level":
      cond_L6C = self._level_condition()[lvl_L]
    elif condition.shared_B6C is not None:
      cond_L6C = condition.shared_B6C[:, None]
    num_tokens = x_BLC.shape[1]
    if cache is None and axis_size(SEQUENCE) > 1:
      x_BLC = constrain(padded_tokens(x_BLC, 1), "x_BLC")
      if cos_Lp is not None:
        cos_Lp, sin_Lp = (padded_tokens(x, -2) for x in (cos_Lp, sin_Lp))
      if cfg.adaptive_norm == "level":
        cond_L6C = padded_tokens(cond_L6C, 0)
    context = BlockContext(
      cos_Lp=cos_Lp,
      sin_Lp=sin_Lp,
      mask_BT=condition.mask_BT,
      cond_L6C=cond_L6C,
      lengths=lengths,
      begin=begin,
      deterministic=deterministic,
      weight_BL=weight_BL,
      place=place,
      probe=() if late is None else late.probe,
    )
    text = condition.by_layer
    if text is not None:
      context = context.replace(text_BTD=text.text_BTD)
    layers = LayerInputs(
      index=jnp.arange(cfg.depth, dtype=jnp.int32),
      drop_rate=jnp.linspace(0.0, cfg.drop_path_rate, cfg.depth),
      cross_k_BTC=condition.cross_k,
      cross_v_BTC=condition.cross_v,
      modulation_B6C=condition.layers_IB6C,
      cross_kernel_DuC=None if text is None else text.kernel_IDuC,
      cross_v_bias_C=None if text is None else text.v_bias_IC,
    )
    carry = (x_BLC.astype(cfg.dtype), cache)
    (x_BLC, cache), _ = self.blocks(carry, layers, context)
    x_BLC = x_BLC[:, :num_tokens]
    if index_Bn is not None:
      grid = schedule.grids[int(lvl_L[0])]
      x_BLC = restore_tokens(x_BLC, index_Bn, input_BLC, late, grid)
    return x_BLC, cache, input_BLC

  def _level_condition(self) -> jax.Array:
    """float32 [K, 6, C]: modulation of every scale, shared by all layers.

    Each scale's embedding is seen next to that of the last scale.
    """
    last = jnp.broadcast_to(self.lvl_embed[-1], self.lvl_embed.shape)
    cond = self.lvl_embed_proj(jnp.concatenate([self.lvl_embed, last], axis=-1))
    cond = self.lvl_embed_adaln(nn.silu(cond))
    return cond.reshape(*cond.shape[:-1], 6, self.config.width)

  def logits(self, x_BLC: jax.Array, condition: Condition) -> jax.Array:
    """float32 [B, L, V] of tokens behind the last block, the product at HIGHEST
    precision."""
    x_BLC = x_BLC.astype(jnp.float32)
    if self.config.logit_norm:
      x_BLC = layer_norm(x_BLC, self.config.norm_eps)
    if condition.head_B2C is not None:
      scale_BC, shift_BC = condition.head_B2C[:, 0], condition.head_B2C[:, 1]
      x_BLC = x_BLC * (1 + scale_BC[:, None]) + shift_BC[:, None]
    logits = self.head(flat_tokens(x_BLC))
    logits = logits.reshape(*x_BLC.shape[:2], self.config.num_logits)
    return constrain(logits, "logits_BLV")
