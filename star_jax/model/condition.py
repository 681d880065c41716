"""What the model is conditioned on: texts or classes, in one form.

Everything that depends on the condition alone is computed once per prompt or
label and kept in a `Condition`: the start token, the text's keys and values for
cross-attention, and the modulations of the adaptive norms.

B: batch, K: scales, T: text tokens, D: text width, C: width, N: heads, d: head
channels.
"""

from __future__ import annotations

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from einops import rearrange

from star_jax.model.config import StarConfig
from star_jax.model.layers import HIGHEST, l2_normalize, weight_init
from star_jax.sharding import constrain
from star_jax.text.states import TextStates

# Texts, or classes as int32 [B]; `config.num_classes` is the null class.
Given = TextStates | jax.Array


def batch_of(given: Given) -> int:
  """B, the number of prompts or classes."""
  return jax.tree.leaves(given)[0].shape[0]


@flax.struct.dataclass
class TextByLayer:
  """What a layer computes its keys and values of the text from.

  In training with weights that devices share, so that no device has those of
  all layers at once.

  text_BTD: states of the text.
  kernel_IDuC, v_bias_IC: float32, of all layers.
  """

  text_BTD: jax.Array
  kernel_IDuC: jax.Array
  v_bias_IC: jax.Array


@flax.struct.dataclass
class Condition:
  """What the layers read of B prompts or labels.

  start_BC: float32, what the start token is made from.
  cross_k, cross_v: [layers, B, T, C] in the compute dtype, keys (normalised)
    and values of the text; None without cross-attention, or with `by_layer`.
  by_layer: takes their place in training on devices that share weights.
  mask_BT: bool, text tokens to attend to; None without a text.
  layers_IB6C: float32 [layers, B, 6, C], modulation of every layer; None unless
    adaptive_norm is "block".
  shared_B6C: float32, the part of the modulation that all layers share; None
    unless adaptive_norm is "shared".
  head_B2C: float32, scale and shift before the head; None without either.
  """

  start_BC: jax.Array
  cross_k: jax.Array | None = None
  cross_v: jax.Array | None = None
  mask_BT: jax.Array | None = None
  layers_IB6C: jax.Array | None = None
  shared_B6C: jax.Array | None = None
  head_B2C: jax.Array | None = None
  by_layer: TextByLayer | None = None

  def __getitem__(self, rows) -> Condition:
    """The prompts or labels `rows`: a slice or an array of indices."""
    assert self.by_layer is None
    stacked = ("cross_k", "cross_v", "layers_IB6C")
    return Condition(
      **{
        name: x if x is None else x[:, rows] if name in stacked else x[rows]
        for name, x in vars(self).items()
      }
    )


class ClassEmbedding(nn.Module):
  """One row a class and one for the null class."""

  config: StarConfig

  @nn.compact
  def __call__(self, label_B: jax.Array) -> jax.Array:
    cfg = self.config
    table = self.param(
      "embedding",
      weight_init(cfg.input_std),
      (cfg.num_classes + 1, cfg.width),
    )
    return table[label_B]


class CrossKeyValue(nn.Module):
  """Keys (normalised) and values of the text, for all layers in one product.

  Kept out of the scanned block so that a sampler computes them once a prompt.
  """

  config: StarConfig

  def setup(self):
    cfg = self.config
    self.kv = self.param(
      "kv",
      weight_init(cfg.input_std),
      (cfg.depth, cfg.text_dim, 2, cfg.width),
    )
    self.v_bias = self.param(
      "v_bias", nn.initializers.zeros_init(), (cfg.depth, cfg.width)
    )

  def __call__(self, text_BTD: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Both [layers, B, T, C] in the compute dtype."""
    dtype = jnp.dtype(self.config.dtype)
    k, v = jnp.einsum(
      "btd,iduc->uibtc", text_BTD.astype(dtype), self.kv.astype(dtype)
    )
    k = _normalized_keys(self.config, k)
    v = v + self.v_bias.astype(dtype)[:, None, None]
    return constrain(k, "cross_LBTC"), constrain(v, "cross_LBTC")

  def by_layer(self, text_BTD: jax.Array) -> TextByLayer:
    """For layers that compute their own, see `TextByLayer`."""
    return TextByLayer(text_BTD, self.kv, self.v_bias)


def text_keys_values(
  config: StarConfig,
  text_BTD: jax.Array,
  kernel_DuC: jax.Array,
  v_bias_C: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  """What `CrossKeyValue` computes, of one layer: both [B, T, C]."""
  dtype = jnp.dtype(config.dtype)
  # One product each: gathered, and its gradient scattered, by itself.
  k, v = (
    text_BTD.astype(dtype) @ kernel_DuC[:, i].astype(dtype) for i in range(2)
  )
  return _normalized_keys(config, k), v + v_bias_C.astype(dtype)


def _normalized_keys(config: StarConfig, k: jax.Array) -> jax.Array:
  if not config.attn_l2_norm:
    return k
  k = rearrange(k, "... t (n d) -> ... t n d", n=config.num_heads)
  return rearrange(l2_normalize(k), "... t n d -> ... t (n d)")


def gamma_last_init(config: StarConfig, layers: int | None):
  """Weights of a modulation: the gammas start near zero.

  Args:
    layers: None: one projection shared by all layers, which the official code
      does not scale; their offsets are.
  """
  init = weight_init(config.weight_std)

  def draw(key, shape):
    drawn = init(key, shape)
    if layers is None:
      return drawn
    factor = jnp.full((6, 1), config.init_adaln)
    return drawn * factor.at[:2].set(config.init_adaln_gamma)

  return draw


class AdaptiveNorm(nn.Module):
  """SiLU of the condition, then one linear map to six vectors: of every layer
  ("block"), or once for all of them ("shared").

  The six are gamma of attention and MLP, scale of both, shift of both.
  """

  config: StarConfig

  @nn.compact
  def __call__(self, cond_BC: jax.Array) -> jax.Array:
    """float32 [layers, B, 6, C], or [B, 6, C] for "shared"."""
    cfg = self.config
    layers = cfg.depth if cfg.adaptive_norm == "block" else None
    lead = () if layers is None else (layers,)
    kernel = self.param(
      "kernel", gamma_last_init(cfg, layers), (*lead, cfg.width, 6, cfg.width)
    )
    zeros = nn.initializers.zeros_init()
    bias = self.param("bias", zeros, (*lead, 6, cfg.width))
    x_BC, split = nn.silu(cond_BC), (6, cfg.width)
    if layers is None:
      out = jnp.einsum("bc,cge->bge", x_BC, kernel, precision=HIGHEST)
      return out + bias
    # A product for every layer: as one for all of them, XLA on a CPU first
    # transposes their kernels, which takes ten times as long.
    out = jnp.matmul(
      jnp.broadcast_to(x_BC, (layers, *x_BC.shape)),
      kernel.reshape(layers, cfg.width, -1),
      precision=HIGHEST,
    )
    return out.reshape(*out.shape[:2], *split) + bias[:, None]


class HeadNorm(nn.Module):
  """Scale and shift of the features before the head: float32 [B, 2, C]."""

  config: StarConfig

  @nn.compact
  def __call__(self, cond_BC: jax.Array) -> jax.Array:
    cfg = self.config
    kernel = self.param(
      "kernel",
      weight_init(cfg.weight_std * cfg.init_adaln),
      (cfg.width, 2, cfg.width),
    )
    zeros = nn.initializers.zeros_init()
    bias = self.param("bias", zeros, (2, cfg.width))
    out = jnp.einsum("bc,cge->bge", nn.silu(cond_BC), kernel, precision=HIGHEST)
    return out + bias
