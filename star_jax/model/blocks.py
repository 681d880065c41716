"""The transformer block and its parts, from small to large.

One block serves training (all scales at once) and decoding (one scale and the
cache); which of the two it is, is a static field of `BlockContext`.

B: batch, K: scales, L: tokens at hand (all scales, or one), T: text tokens,
C: width, N: heads, d: head channels, p: rotation planes.
"""

from __future__ import annotations

import math

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from einops import rearrange
from jax.ad_checkpoint import checkpoint_name

from star_jax.model.attention import (
  KEPT,
  attend,
  cached_attention,
  cached_token_attention,
  scale_causal_attention,
  within_scale_attention,
)
from star_jax.model.attention_backends import SPLASH, backend_of
from star_jax.model.cache import KVCache, fill_cache
from star_jax.model.condition import text_keys_values
from star_jax.model.config import StarConfig
from star_jax.model.layers import (
  drop_path,
  flat_tokens,
  l2_normalize,
  layer_norm,
  weight_init,
)
from star_jax.model.projections import (
  PRODUCT,
  IntoHeads,
  OutOfHeads,
  product_into_heads,
  split_heads,
)
from star_jax.model.rope import apply_rope, apply_rope_by_product
from star_jax.model.sequence import sequence_attention
from star_jax.sharding import SEQUENCE, axis_size, constrain

# What each choice of `StarConfig.remat` keeps of a layer.
_KEEP = jax.checkpoint_policies.save_only_these_names
REMAT_POLICIES = {
  "layer": jax.checkpoint_policies.nothing_saveable,
  "attention": _KEEP(KEPT),
  "dots": _KEEP(KEPT, PRODUCT),
}
MAX_LOG_SCALE = math.log(100.0)
INIT_LOG_SCALE = math.log(4.0)


@flax.struct.dataclass
class LayerInputs:
  """What differs from layer to layer besides parameters (scanned over)."""

  index: jax.Array  # int32
  drop_rate: jax.Array  # float32
  cross_k_BTC: jax.Array | None
  cross_v_BTC: jax.Array | None
  modulation_B6C: jax.Array | None
  cross_kernel_DuC: jax.Array | None = None
  cross_v_bias_C: jax.Array | None = None


@flax.struct.dataclass
class BlockContext:
  """What all layers share.

  cos_Lp, sin_Lp: rotary tables of the tokens at hand (with leading axes [B, 1]
    where samples differ), None without RoPE.
  mask_BT: text tokens to attend to; None without a text.
  cond_L6C: modulation of each token before the layer's own offset (with
    leading axes [B, 1] where it is one of the sample); None where all layers
    have modulations of their own, or none.
  lengths: tokens of every scale at hand.
  begin: offset of the scale that is decoded; None: all scales at once.
  place: int32, the token that is decoded where tokens come one by one.
  text_BTD: what layers compute their keys and values of the text from; None:
    they are given.
  within_scales: scales do not see each other, only the first token sees and is
    seen by all.
  deterministic: no drop path.
  weight_BL: see `scale_causal_attention`.
  probe: which tokens leave their queries in the cache.
  """

  cos_Lp: jax.Array | None
  sin_Lp: jax.Array | None
  mask_BT: jax.Array | None
  cond_L6C: jax.Array | None
  lengths: tuple[int, ...] = flax.struct.field(pytree_node=False)
  begin: int | None = flax.struct.field(pytree_node=False)
  deterministic: bool = flax.struct.field(pytree_node=False)
  weight_BL: jax.Array | None = None
  place: jax.Array | None = None
  text_BTD: jax.Array | None = None
  within_scales: bool = flax.struct.field(pytree_node=False, default=False)
  probe: tuple[int, ...] = flax.struct.field(pytree_node=False, default=())


def output_std(config: StarConfig, scaled: bool) -> float:
  """Of the weights that lead back into the residual stream: smaller the more
  layers there are, in the layers of the transformer itself."""
  factor = math.sqrt(2 * config.depth) if scaled else 1.0
  return config.weight_std / factor


def _is_direct(
  config: StarConfig, context: BlockContext, cache: KVCache | None
) -> bool:
  """See `projections`: in training on a TPU. Caches hold flat channels."""
  return (
    cache is None
    and context.begin is None
    and axis_size(SEQUENCE) == 1
    and backend_of(config) == SPLASH
  )


class Mlp(nn.Module):
  """Two linear layers with GELU (tanh form)."""

  config: StarConfig
  scaled_output: bool = True

  @nn.compact
  def __call__(self, x_BLC: jax.Array) -> jax.Array:
    cfg, std = self.config, self.config.weight_std
    dtype = jnp.dtype(cfg.dtype)
    x, shape = flat_tokens(x_BLC), x_BLC.shape
    x = nn.Dense(
      cfg.mlp_width, dtype=dtype, kernel_init=weight_init(std), name="fc1"
    )(x)
    x = nn.gelu(checkpoint_name(x, PRODUCT), approximate=True)
    std = output_std(cfg, self.scaled_output)
    x = nn.Dense(
      cfg.width, dtype=dtype, kernel_init=weight_init(std), name="fc2"
    )(x)
    return checkpoint_name(x.reshape(shape), PRODUCT)


def head_scale(module: nn.Module, config: StarConfig) -> jax.Array:
  """float32 [N, 1, 1]: learned temperature of every head, at most 100."""
  scale_mul = module.param(
    "scale_mul", nn.initializers.constant(INIT_LOG_SCALE), (config.num_heads,)
  )
  return jnp.exp(jnp.minimum(scale_mul, MAX_LOG_SCALE))[:, None, None]


def logit_scale(config: StarConfig) -> float:
  """Factor on the logits where q and k are not normalised."""
  return 1.0 if config.attn_l2_norm else 0.25 / math.sqrt(config.head_dim)


class SelfAttention(nn.Module):
  """Scale-causal self-attention with rotary positions and QK norm."""

  config: StarConfig
  scaled_output: bool = True

  @nn.compact
  def __call__(
    self,
    x_BLC: jax.Array,
    context: BlockContext,
    cache: KVCache | None,
    layer: jax.Array,
  ) -> tuple[jax.Array, KVCache | None]:
    cfg, width = self.config, self.config.width
    dtype = jnp.dtype(cfg.dtype)
    # One product for q, k and v. The key has no bias.
    kernel = self.param(
      "qkv", weight_init(cfg.weight_std), (width, 3, width)
    ).astype(dtype)
    zeros = nn.initializers.zeros_init()
    q_bias = self.param("q_bias", zeros, (width,)).astype(dtype)
    v_bias = self.param("v_bias", zeros, (width,)).astype(dtype)
    direct = _is_direct(cfg, context, cache)
    if direct:
      q, k, v = (
        product_into_heads(x_BLC, kernel[:, i], bias_C, cfg.num_heads)
        for i, bias_C in enumerate((q_bias, None, v_bias))
      )
    else:
      q, k, v = self._side_by_side(x_BLC, kernel)
      q, v = q + q_bias, v + v_bias
      q, k = (
        checkpoint_name(split_heads(x, cfg.num_heads), PRODUCT) for x in (q, k)
      )
    if context.cos_Lp is not None:
      turn = apply_rope_by_product if direct else apply_rope
      q, k = (turn(x, context.cos_Lp, context.sin_Lp) for x in (q, k))
    if cfg.attn_l2_norm:
      q = (l2_normalize(q) * head_scale(self, cfg)).astype(dtype)
      k = l2_normalize(k)
    if context.probe:
      queries = rearrange(q[:, :, context.probe], "b n w d -> b w (n d)")
      cache = cache.replace(probe=cache.probe.at[layer].set(queries))

    def in_heads(v):
      return v if direct else split_heads(v, cfg.num_heads)

    options = {"scale": logit_scale(cfg), "query_block": cfg.query_block}
    if context.place is not None:
      out, cache = cached_token_attention(
        q,
        rearrange(k, "b n l d -> b l (n d)"),
        v,
        cache,
        layer,
        context.place,
        scale=options["scale"],
      )
    elif context.within_scales:
      out = within_scale_attention(
        q,
        k,
        in_heads(v),
        context.lengths,
        backend=backend_of(cfg),
        **options,
      )
    elif context.begin is None:
      if cache is None and axis_size(SEQUENCE) > 1:
        attention = sequence_attention
      else:
        attention = scale_causal_attention
        options["backend"] = backend_of(cfg)
      out = attention(
        q,
        k,
        in_heads(v),
        context.lengths,
        weight_BL=context.weight_BL,
        **options,
      )
      if cache is not None:
        k = rearrange(k, "b n l d -> b l (n d)")
        cache = fill_cache(cache, k, v, layer)
    else:
      k = rearrange(k, "b n l d -> b l (n d)")
      out, cache = cached_attention(
        q,
        k,
        v,
        cache,
        layer,
        context.begin,
        backend=backend_of(cfg),
        **options,
      )
    std = output_std(cfg, self.scaled_output)
    project = OutOfHeads(width, cfg.num_heads, dtype, std, direct, name="proj")
    return project(out), cache

  def _side_by_side(self, x_BLC, kernel) -> tuple[jax.Array, ...]:
    """q, k, v [B, L, C], without biases."""
    if axis_size("fsdp") > 1:
      # Gathered, and their gradients scattered, one after the other.
      flat = (flat_tokens(x_BLC) @ kernel[:, i] for i in range(3))
      return tuple(x.reshape(x_BLC.shape) for x in flat)
    x = jnp.einsum("...c,cte->...te", flat_tokens(x_BLC), kernel)
    x = x.reshape(*x_BLC.shape[:2], 3, self.config.width)
    return tuple(x[:, :, i] for i in range(3))


class CrossAttention(nn.Module):
  """Every image token attends to the text tokens of its own sample.

  Keys and values come from `condition.CrossKeyValue`.
  """

  config: StarConfig

  @nn.compact
  def __call__(
    self,
    x_BLC: jax.Array,
    k_BTC: jax.Array,
    v_BTC: jax.Array,
    context: BlockContext,
    cache: KVCache | None,
  ) -> jax.Array:
    cfg, heads = self.config, self.config.num_heads
    dtype, mask_BT = jnp.dtype(cfg.dtype), context.mask_BT
    batch = x_BLC.shape[0]
    if cfg.legacy_batch0_cross_attention:
      x_BLC, k_BTC, v_BTC, mask_BT = (
        x[:1] for x in (x_BLC, k_BTC, v_BTC, mask_BT)
      )
    direct = _is_direct(cfg, context, cache)
    layer = cfg.width, heads, dtype, cfg.weight_std, direct
    q = IntoHeads(*layer, name="q")(x_BLC)
    k, v = (split_heads(x, heads) for x in (k_BTC, v_BTC))
    if cfg.attn_l2_norm:
      q = (l2_normalize(q) * head_scale(self, cfg)).astype(dtype)
    out = attend(q, k, v, logit_scale(cfg), mask_BT[:, None, None, :])
    out = OutOfHeads(*layer, name="proj")(checkpoint_name(out, PRODUCT))
    return jnp.broadcast_to(out, (batch, *out.shape[1:]))


class Modulation(nn.Module):
  """What a layer adds to a modulation that all layers share.

  The six are gamma of attention and MLP, scale of both, shift of both.
  """

  config: StarConfig

  @nn.compact
  def __call__(self, cond_L6C: jax.Array) -> jax.Array:
    cfg = self.config

    def init(key, shape):
      factor = jnp.full((6, 1), cfg.init_adaln).at[:2].set(cfg.init_adaln_gamma)
      std = factor / math.sqrt(cfg.base_width or cfg.width)
      return jax.random.normal(key, shape) * std

    return cond_L6C + self.param("ada_gss", init, (6, cfg.width))


class Block(nn.Module):
  """Self-attention, cross-attention, MLP, each on normalised input.

  The carry is (x_BLC, cache or None), as `nn.scan` wants it. `scaled_output`:
  see `output_std`.
  """

  config: StarConfig
  scaled_output: bool = True

  @nn.compact
  def __call__(
    self,
    carry: tuple[jax.Array, KVCache | None],
    layer: LayerInputs,
    context: BlockContext,
  ) -> tuple[tuple[jax.Array, KVCache | None], None]:
    cfg = self.config
    x, cache = carry
    modulation = None
    if layer.modulation_B6C is not None:
      modulation = layer.modulation_B6C[:, None]
    elif context.cond_L6C is not None:
      modulation = Modulation(cfg, name="modulation")(context.cond_L6C)
    if modulation is not None:
      modulation = tuple(jnp.moveaxis(modulation, -2, 0))

    y, cache = SelfAttention(cfg, self.scaled_output, name="attn")(
      self._norm(x, modulation, 0), context, cache, layer.index
    )
    x = x + self._residual(y, modulation, 0, layer, context)
    cross_k, cross_v = layer.cross_k_BTC, layer.cross_v_BTC
    if context.text_BTD is not None:
      cross_k, cross_v = text_keys_values(
        cfg, context.text_BTD, layer.cross_kernel_DuC, layer.cross_v_bias_C
      )
    if cross_k is not None:
      # Unmodulated and never dropped: the official block.
      x = x + CrossAttention(cfg, name="cross_attn")(
        self._norm(x, None, 0), cross_k, cross_v, context, cache
      )
    y = Mlp(cfg, self.scaled_output, name="mlp")(self._norm(x, modulation, 1))
    x = x + self._residual(y, modulation, 1, layer, context)
    return (constrain(x, "x_BLC"), cache), None

  def _norm(self, x, modulation, branch: int) -> jax.Array:
    x = layer_norm(x, self.config.norm_eps)
    if modulation is not None:
      x = x * (1 + modulation[2 + branch]) + modulation[4 + branch]
    return x.astype(self.config.dtype)

  def _residual(self, y, modulation, branch: int, layer, context) -> jax.Array:
    if modulation is not None:
      y = (y * modulation[branch]).astype(y.dtype)
    if context.deterministic or self.config.drop_path_rate == 0:
      return y
    return drop_path(y, layer.drop_rate, self.make_rng("drop_path"))


def remat_block(config: StarConfig) -> type[nn.Module]:
  """`Block` with the backward pass that `config.remat` asks for."""
  if config.remat == "none":
    return Block
  policy = REMAT_POLICIES[config.remat]
  return nn.remat(Block, prevent_cse=False, policy=policy)
