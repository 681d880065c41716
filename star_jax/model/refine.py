"""The refinement head of STAR's causal-driven stable sampling (arXiv
2406.10797, section 3.4; golden README, rules 26 to 28).

The transformer draws all tokens of a scale at once, so that neighbours may
disagree. The head looks at one scale again, at the tokens that are already
fixed and at the transformer's features, and says what the others should be. It
is trained on random masks while the rest is frozen.

B: batch, L: tokens of the refined scales, l: of one, T: 1 token of text, C:
width, V: vocabulary, Cv: code width.
"""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from star_jax.model.blocks import BlockContext, LayerInputs, remat_block
from star_jax.model.config import StarConfig
from star_jax.model.layers import (
  HIGHEST,
  flat_tokens,
  layer_norm,
  weight_init,
)
from star_jax.model.rope import rope_tables

# What the training objective sets the extra class to where a token is visible.
VISIBLE_LOGIT = 10.0


@dataclasses.dataclass(frozen=True)
class RefineConfig:
  """first_scale: index of the coarsest scale that is refined; all finer ones
  are too. depth: self-attention layers of the head."""

  first_scale: int
  depth: int = 3

  def check(self, config: StarConfig) -> None:
    """ValueError unless a head of this kind fits the transformer."""
    scales = config.schedule.num_scales
    if not 1 <= self.first_scale < scales:
      raise ValueError(
        "refine.first_scale is the index of a scale after the first, 1 to"
        f" {scales - 1}, got {self.first_scale}."
      )
    if self.depth < 1:
      raise ValueError(f"refine.depth is at least 1, got {self.depth}.")
    if "rope" not in config.position or not config.text_dim:
      raise ValueError(
        "The refinement head needs a model of texts with rotary positions, got"
        f" position {config.position!r} and text_dim {config.text_dim}."
      )
    if config.head != "softmax":
      raise ValueError(
        "The refinement head predicts whole tokens: it needs a model with head"
        f" 'softmax', got {config.head!r}."
      )
    if config.prediction != "scale":
      raise ValueError(
        "The refinement head needs a model that predicts scale by scale."
      )


class RefineHead(nn.Module):
  """Fixed tokens and features of a scale -> logits of all its tokens.

  `config` is that of the transformer, `refine` what is its own.
  """

  config: StarConfig
  refine: RefineConfig

  @nn.compact
  def __call__(
    self,
    x_BLCv: jax.Array,
    features_BLC: jax.Array,
    pooled_BD: jax.Array,
    scales: tuple[int, ...],
  ) -> jax.Array:
    """float32 logits [B, L, V].

    Args:
      x_BLCv: codes of the tokens that are fixed, zeros elsewhere.
      features_BLC: of the transformer, what its head reads before its norm.
      pooled_BD: of the text.
      scales: static, which scales the L tokens are; they do not see each other.
    """
    cfg, schedule = self.config, self.config.schedule
    assert all(k >= self.refine.first_scale for k in scales), scales
    init = weight_init(cfg.weight_std)

    def dense(features, name):
      return nn.Dense(
        features,
        dtype=jnp.float32,
        precision=HIGHEST,
        kernel_init=init,
        name=name,
      )

    pos_start = self.param("pos_start", init, (cfg.width,))
    lvl_embed = self.param("lvl_embed", init, (schedule.num_scales, cfg.width))
    text_BC = dense(cfg.width, "text_proj")(jnp.asarray(pooled_BD, jnp.float32))
    text_B1C = (text_BC + pos_start)[:, None]
    lengths = tuple(schedule.lengths[k] for k in scales)
    level_L = np.repeat(scales, lengths)
    x_BLC = dense(cfg.width, "word_embed")(x_BLCv) + lvl_embed[level_L]
    both = jnp.concatenate(
      [
        jnp.concatenate([text_B1C, x_BLC], axis=1),
        jnp.concatenate([text_B1C, features_BLC], axis=1),
      ],
      axis=-1,
    )
    x_BLC = dense(cfg.width, "proj")(flat_tokens(both))
    x_BLC = x_BLC.reshape(*both.shape[:2], cfg.width)
    x_BLC = self._layers(x_BLC, scales, lengths)[:, 1:]
    x_BLC = x_BLC.astype(jnp.float32)
    if cfg.logit_norm:
      x_BLC = layer_norm(x_BLC, cfg.norm_eps)
    logits = dense(cfg.vocab_size, "head")(flat_tokens(x_BLC))
    return logits.reshape(*x_BLC.shape[:2], cfg.vocab_size)

  def _layers(self, x_BLC, scales, lengths) -> jax.Array:
    """The blocks, over the text token and the scales behind it."""
    cfg, depth = self.config, self.refine.depth
    cfg = dataclasses.replace(
      cfg, cross_attention=False, adaptive_norm="none", drop_path_rate=0.0
    )
    ends = cfg.schedule.begin_ends
    # The text token turns by the angle of the very first token, which is 0.
    tokens = np.concatenate([[0], *[np.arange(*ends[k]) for k in scales]])
    cos_Lp, sin_Lp = (
      jnp.asarray(table[tokens])
      for table in rope_tables(
        cfg.schedule,
        cfg.head_dim,
        cfg.rope_theta,
        cfg.rope_norm,
        cfg.rope_coords,
      )
    )
    context = BlockContext(
      cos_Lp=cos_Lp,
      sin_Lp=sin_Lp,
      mask_BT=None,
      cond_L6C=None,
      lengths=(1, *lengths),
      begin=None,
      deterministic=True,
      within_scales=True,
    )
    layers = LayerInputs(
      index=jnp.arange(depth, dtype=jnp.int32),
      drop_rate=jnp.zeros(depth),
      cross_k_BTC=None,
      cross_v_BTC=None,
      modulation_B6C=None,
    )
    blocks = nn.scan(
      remat_block(cfg),
      variable_axes={"params": 0},
      split_rngs={"params": True},
      in_axes=(0, nn.broadcast),
      length=depth,
      check_constancy_invariants=self.is_initializing(),
    )(cfg, scaled_output=False, name="blocks")
    (x_BLC, _), _ = blocks((x_BLC.astype(cfg.dtype), None), layers, context)
    return x_BLC


def draw_visible(key: jax.Array, batch: int, num_tokens: int) -> jax.Array:
  """bool [B, L], True where a token is shown to the head in training.

  The share of a sample is arccos(r) / (pi / 2) with r uniform.
  """
  share_key, token_key = jax.random.split(key)
  r_B1 = jax.random.uniform(share_key, (batch, 1))
  share_B1 = jnp.arccos(r_B1) / (jnp.pi / 2)
  return jax.random.uniform(token_key, (batch, num_tokens)) < share_B1


def refine_loss(
  logits_BLV: jax.Array,
  idx_BL: jax.Array,
  visible_BL: jax.Array,
  num_tokens: int,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """The objective of the head, and what is logged beside it.

  Cross-entropy with one class more: hidden tokens against all of them, the
  extra one at logit 0; visible ones are the extra class at logit 10 and the
  others at 0, a constant. It is the sum over the tokens at hand by the number
  of tokens of all scales.

  Args:
    logits_BLV: of the head.
    idx_BL: the tokens.
    visible_BL: bool, those that were shown.
    num_tokens: L of the whole schedule.

  Returns:
    The loss, and the metrics loss (per token at hand), loss_hidden and
    acc_hidden (over the hidden tokens alone, without the extra class).
  """
  logits_BLV = logits_BLV.astype(jnp.float32)
  target_BLV = jnp.arange(logits_BLV.shape[-1]) == idx_BL[..., None]
  target_BL = jnp.sum(jnp.where(target_BLV, logits_BLV, 0.0), axis=-1)
  among_BL = jax.nn.logsumexp(logits_BLV, axis=-1)
  hidden_BL = jnp.logaddexp(among_BL, 0.0) - target_BL
  vocab = logits_BLV.shape[-1]
  constant = np.log1p(vocab * np.exp(-VISIBLE_LOGIT))
  loss_BL = jnp.where(visible_BL, constant, hidden_BL)
  loss = jnp.mean(jnp.sum(loss_BL, axis=1) / num_tokens)
  hidden = ~visible_BL
  count = jnp.maximum(jnp.sum(hidden), 1)
  hit_BL = target_BL >= jnp.max(logits_BLV, axis=-1)
  metrics = {
    "loss": jnp.mean(loss_BL),
    "loss_hidden": jnp.sum((among_BL - target_BL) * hidden) / count,
    "acc_hidden": jnp.sum(hit_BL & hidden) / count,
  }
  return loss, metrics
