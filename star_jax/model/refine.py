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
import flax.struct
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


@flax.struct.dataclass
class Surroundings:
  """What the head knows of some scales whatever tokens are fixed.

  kernel_CvC: from the code of a token to the first layer.
  text_B1C, rest_BLC: what else goes into it, of the text and of each token.
  scales: static, which ones.
  """

  kernel_CvC: jax.Array
  text_B1C: jax.Array
  rest_BLC: jax.Array
  scales: tuple[int, ...] = flax.struct.field(pytree_node=False)


class Affine(nn.Module):
  """The weights of a dense layer, [in, out] and [out], for products of theirs
  with each other."""

  shape: tuple[int, int]
  std: float

  @nn.compact
  def __call__(self) -> tuple[jax.Array, jax.Array]:
    return (
      self.param("kernel", weight_init(self.std), self.shape),
      self.param("bias", nn.initializers.zeros_init(), self.shape[1:]),
    )


class RefineHead(nn.Module):
  """Fixed tokens and features of a scale -> logits of all its tokens.

  `config` is that of the transformer, `refine` what is its own.

  The official head embeds the codes, puts the features beside them and takes
  both through one dense layer. Half of that product does not depend on the
  tokens, and embedding and layer are one matrix: `surroundings` computes both
  once for all rounds of a scale.
  """

  config: StarConfig
  refine: RefineConfig

  def setup(self):
    cfg, std = self.config, self.config.weight_std
    init = weight_init(std)
    shape = (cfg.schedule.num_scales, cfg.width)
    self.pos_start = self.param("pos_start", init, (cfg.width,))
    self.lvl_embed = self.param("lvl_embed", init, shape)
    self.text_proj = self._dense(cfg.width)
    self.word_embed = Affine((cfg.code_dim, cfg.width), std)
    self.proj = Affine((2 * cfg.width, cfg.width), std)
    self.blocks = self._blocks()
    self.head = self._dense(cfg.vocab_size)

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
    known = self.surroundings(features_BLC, pooled_BD, scales)
    return self.complete(x_BLCv, known)

  def surroundings(
    self, features_BLC: jax.Array, pooled_BD: jax.Array, scales: tuple[int, ...]
  ) -> Surroundings:
    """What all calls for these scales share; see `__call__`."""
    cfg, schedule = self.config, self.config.schedule
    assert all(k >= self.refine.first_scale for k in scales), scales
    level_L = np.repeat(scales, [schedule.lengths[k] for k in scales])
    embed_CvC, embed_bias_C = self.word_embed()
    both_EC, bias_C = self.proj()
    of_token_CC, of_feature_CC = jnp.split(both_EC, 2)
    pooled_BD = jnp.asarray(pooled_BD, jnp.float32)
    text_BC = self.text_proj(pooled_BD) + self.pos_start
    level_KC = product(self.lvl_embed + embed_bias_C, of_token_CC) + bias_C
    features = product(flat_tokens(features_BLC), of_feature_CC)
    features = features.reshape(*features_BLC.shape[:2], cfg.width)
    text_BC = product(text_BC, of_token_CC + of_feature_CC) + bias_C
    return Surroundings(
      kernel_CvC=product(embed_CvC, of_token_CC),
      text_B1C=text_BC[:, None],
      rest_BLC=features + level_KC[level_L],
      scales=tuple(scales),
    )

  def complete(self, x_BLCv: jax.Array, known: Surroundings) -> jax.Array:
    """float32 logits [B, L, V] of all tokens; see `__call__`."""
    cfg = self.config
    x_BLC = product(flat_tokens(x_BLCv), known.kernel_CvC)
    x_BLC = x_BLC.reshape(known.rest_BLC.shape) + known.rest_BLC
    x_BLC = jnp.concatenate([known.text_B1C, x_BLC], axis=1)
    x_BLC = self._layers(x_BLC, known.scales)[:, 1:]
    x_BLC = x_BLC.astype(jnp.float32)
    if cfg.logit_norm:
      x_BLC = layer_norm(x_BLC, cfg.norm_eps)
    logits = self.head(flat_tokens(x_BLC))
    return logits.reshape(*x_BLC.shape[:2], cfg.vocab_size)

  def _dense(self, features: int) -> nn.Dense:
    return nn.Dense(
      features,
      dtype=jnp.float32,
      precision=HIGHEST,
      kernel_init=weight_init(self.config.weight_std),
    )

  def _plain(self) -> StarConfig:
    """Of the blocks."""
    return dataclasses.replace(
      self.config,
      cross_attention=False,
      adaptive_norm="none",
      drop_path_rate=0.0,
    )

  def _blocks(self) -> nn.Module:
    cfg = self._plain()
    blocks = nn.scan(
      remat_block(cfg),
      variable_axes={"params": 0},
      split_rngs={"params": True},
      in_axes=(0, nn.broadcast),
      length=self.refine.depth,
      check_constancy_invariants=self.is_initializing(),
    )
    return blocks(cfg, scaled_output=False)

  def _layers(self, x_BLC: jax.Array, scales: tuple[int, ...]) -> jax.Array:
    """The blocks, over the text token and the scales behind it."""
    cfg, depth = self._plain(), self.refine.depth
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
      lengths=(1, *[cfg.schedule.lengths[k] for k in scales]),
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
    x_BLC = x_BLC.astype(cfg.dtype)
    (x_BLC, _), _ = self.blocks((x_BLC, None), layers, context)
    return x_BLC


def product(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """float32, not rounded by the hardware."""
  return jnp.matmul(x.astype(jnp.float32), kernel, precision=HIGHEST)


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
