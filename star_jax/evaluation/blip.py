"""BLIP's text encoder that looks at a picture (arXiv 2201.12086, section 3.1).

A ViT (pre-norm, exact GELU, learned positions, a class token, a last norm)
turns the picture into tokens; a BERT whose every layer has a cross-attention
to them between self-attention and MLP reads the caption. Names of the weights
are those of salesforce/BLIP (models/vit.py, models/med.py). All products state
HIGHEST precision: pictures are ranked by what comes out.

B: batch, H W: pixels, T: tokens of the text, S: tokens that are looked at
(of the text, or patches and the class token), D: width, N: heads, d: width of
a head.
"""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from star_jax.convert.state_dict import CONV, Rule, linear, squeeze

_HIGHEST = jax.lax.Precision.HIGHEST


@dataclasses.dataclass(frozen=True)
class BlipImageConfig:
  """The ViT; the defaults are BLIP's "large" at 224 px (models/blip.py)."""

  image_size: int = 224
  patch_size: int = 16
  width: int = 1024  # D
  layers: int = 24
  heads: int = 16  # N
  mlp_width: int = 4096
  norm_eps: float = 1e-6

  @property
  def places(self) -> int:
    """Patches and the class token."""
    return (self.image_size // self.patch_size) ** 2 + 1


@dataclasses.dataclass(frozen=True)
class BlipTextConfig:
  """The BERT; the defaults are BLIP's configs/med_config.json."""

  vocab_size: int = 30524  # BERT's 30522, [DEC] and [ENC]
  max_positions: int = 512
  width: int = 768  # D
  layers: int = 12
  heads: int = 12  # N
  mlp_width: int = 3072
  norm_eps: float = 1e-12


def attend(
  q_BTD: jax.Array,
  k_BSD: jax.Array,
  v_BSD: jax.Array,
  heads: int,
  mask_BS: jax.Array | None = None,
) -> jax.Array:
  """Softmax attention by heads, [B, T, D]; mask True = may be looked at."""
  q, k, v = (
    rearrange(x, "B T (N d) -> B N T d", N=heads) for x in (q_BTD, k_BSD, v_BSD)
  )
  logits_BNTS = jnp.einsum("BNtd,BNsd->BNts", q, k, precision=_HIGHEST)
  logits_BNTS = logits_BNTS * np.float32(q.shape[-1] ** -0.5)
  if mask_BS is not None:
    lowest = jnp.finfo(jnp.float32).min
    logits_BNTS = jnp.where(mask_BS[:, None, None, :], logits_BNTS, lowest)
  attn_BNTS = jax.nn.softmax(logits_BNTS, axis=-1)
  mixed = jnp.einsum("BNts,BNsd->BNtd", attn_BNTS, v, precision=_HIGHEST)
  return rearrange(mixed, "B N T d -> B T (N d)")


class BlipImageLayer(nn.Module):
  """Norm and attention, norm and MLP, each added to its input."""

  config: BlipImageConfig

  @nn.compact
  def __call__(self, x_BSD: jax.Array):
    """Returns (x_BSD, None): the carry and output of `nn.scan`."""
    c = self.config
    normed = _norm(c, "attention_norm")(x_BSD)
    q, k, v = jnp.split(_dense(3 * c.width, "qkv")(normed), 3, axis=-1)
    mixed = attend(q, k, v, c.heads)
    x_BSD = x_BSD + _dense(c.width, "attention_out")(mixed)
    hidden = _dense(c.mlp_width, "mlp_in")(_norm(c, "mlp_norm")(x_BSD))
    hidden = jax.nn.gelu(hidden, approximate=False)
    return x_BSD + _dense(c.width, "mlp_out")(hidden), None


class BlipImage(nn.Module):
  """Pictures to tokens."""

  config: BlipImageConfig

  @nn.compact
  def __call__(self, x_BHW3: jax.Array) -> jax.Array:
    """Args: float32 [B, H, W, 3], normalised. Returns float32 [B, S, D]."""
    c = self.config
    x_BhwD = nn.Conv(
      c.width,
      (c.patch_size, c.patch_size),
      (c.patch_size, c.patch_size),
      padding="VALID",
      precision=_HIGHEST,
      name="patches",
    )(x_BHW3)
    x_BSD = rearrange(x_BhwD, "B h w D -> B (h w) D")
    first_D = self.param("class", nn.initializers.zeros, (c.width,))
    first_B1D = jnp.broadcast_to(first_D, (len(x_BSD), 1, c.width))
    x_BSD = jnp.concatenate([first_B1D, x_BSD], axis=1)
    position_SD = self.param(
      "positions", nn.initializers.zeros, (c.places, c.width)
    )
    x_BSD = x_BSD + position_SD[None]
    layers = nn.scan(
      BlipImageLayer,
      variable_axes={"params": 0},
      split_rngs={"params": True},
      length=c.layers,
      check_constancy_invariants=self.is_initializing(),
    )
    x_BSD, _ = layers(c, name="layers")(x_BSD)
    return _norm(c, "norm")(x_BSD)


class BlipTextLayer(nn.Module):
  """Self-attention, attention to the picture, MLP; a norm after each sum."""

  config: BlipTextConfig

  @nn.compact
  def __call__(
    self, x_BTD: jax.Array, mask_BT: jax.Array, image_BSD: jax.Array
  ):
    """Returns (x_BTD, None): the carry and output of `nn.scan`."""
    c = self.config

    def attention(name: str, x_BTD, seen_BSD, mask_BS):
      q, k, v = (
        _dense(c.width, f"{name}_{part}")(x)
        for part, x in zip(("query", "key", "value"), (x_BTD, *2 * [seen_BSD]))
      )
      mixed = attend(q, k, v, c.heads, mask_BS)
      out = _dense(c.width, f"{name}_out")(mixed)
      return _norm(c, f"{name}_norm")(x_BTD + out)

    x_BTD = attention("self", x_BTD, x_BTD, mask_BT)
    x_BTD = attention("cross", x_BTD, image_BSD, None)
    hidden = _dense(c.mlp_width, "mlp_in")(x_BTD)
    hidden = jax.nn.gelu(hidden, approximate=False)
    hidden = _dense(c.width, "mlp_out")(hidden)
    return _norm(c, "mlp_norm")(x_BTD + hidden), None


class BlipText(nn.Module):
  """Token ids and the tokens of a picture to states of the text.

  Every token sees every other (the encoder of BLIP, not its decoder). There
  are no token types.
  """

  config: BlipTextConfig

  @nn.compact
  def __call__(
    self, ids_BT: jax.Array, mask_BT: jax.Array, image_BSD: jax.Array
  ) -> jax.Array:
    """Args: int32 ids, bool mask (True = keep). Returns float32 [B, T, D].

    Padding positions get states too; whoever reads them masks them.
    """
    c = self.config
    x_BTD = nn.Embed(c.vocab_size, c.width, name="words")(ids_BT)
    position_TD = nn.Embed(c.max_positions, c.width, name="positions")(
      jnp.arange(ids_BT.shape[1])
    )
    x_BTD = _norm(c, "norm")(x_BTD + position_TD[None])
    layers = nn.scan(
      BlipTextLayer,
      variable_axes={"params": 0},
      split_rngs={"params": True},
      in_axes=(nn.broadcast, nn.broadcast),
      length=c.layers,
      check_constancy_invariants=self.is_initializing(),
    )
    x_BTD, _ = layers(c, name="layers")(x_BTD, mask_BT, image_BSD)
    return x_BTD


def _dense(features: int, name: str) -> nn.Dense:
  return nn.Dense(features, precision=_HIGHEST, name=name)


def _norm(config: BlipImageConfig | BlipTextConfig, name: str) -> nn.LayerNorm:
  return nn.LayerNorm(
    epsilon=config.norm_eps, use_fast_variance=False, name=name
  )


def _norm_rules(key: str, path: str) -> tuple[Rule, Rule]:
  return (
    Rule(f"{key}.weight", f"{path}/scale"),
    Rule(f"{key}.bias", f"{path}/bias"),
  )


def _layer_rules(place: str, path: str, names, make) -> tuple[Rule, ...]:
  """Of all layers; `names`: module in the state dict -> ours."""
  return tuple(
    rule
    for theirs, ours in names.items()
    for rule in make(f"{place}.{{layer}}.{theirs}", f"{path}/layers/{ours}")
  )


def image_rules(key: str, path: str) -> tuple[Rule, ...]:
  """Of a `BlipImage` under `path`; keys begin with `key`."""
  blocks = f"{key}.blocks"
  dense = {
    "attn.qkv": "qkv",
    "attn.proj": "attention_out",
    "mlp.fc1": "mlp_in",
    "mlp.fc2": "mlp_out",
  }
  norms = {"norm1": "attention_norm", "norm2": "mlp_norm"}
  return (
    Rule(f"{key}.cls_token", f"{path}/class", squeeze(0, 1)),
    Rule(f"{key}.pos_embed", f"{path}/positions", squeeze(0)),
    Rule(f"{key}.patch_embed.proj.weight", f"{path}/patches/kernel", CONV),
    Rule(f"{key}.patch_embed.proj.bias", f"{path}/patches/bias"),
    *_norm_rules(f"{key}.norm", f"{path}/norm"),
    *_layer_rules(blocks, path, dense, linear),
    *_layer_rules(blocks, path, norms, _norm_rules),
  )


def text_rules(key: str, path: str) -> tuple[Rule, ...]:
  """Of a `BlipText` under `path`; keys begin with `key`."""
  layer, words = f"{key}.encoder.layer", f"{key}.embeddings"
  kinds = {"attention": "self", "crossattention": "cross"}
  dense = {
    **{
      f"{theirs}.self.{part}": f"{ours}_{part}"
      for theirs, ours in kinds.items()
      for part in ("query", "key", "value")
    },
    **{f"{theirs}.output.dense": f"{o}_out" for theirs, o in kinds.items()},
    "intermediate.dense": "mlp_in",
    "output.dense": "mlp_out",
  }
  norms = {
    **{
      f"{theirs}.output.LayerNorm": f"{o}_norm" for theirs, o in kinds.items()
    },
    "output.LayerNorm": "mlp_norm",
  }
  return (
    Rule(f"{words}.word_embeddings.weight", f"{path}/words/embedding"),
    Rule(f"{words}.position_embeddings.weight", f"{path}/positions/embedding"),
    *_norm_rules(f"{words}.LayerNorm", f"{path}/norm"),
    *_layer_rules(layer, path, dense, linear),
    *_layer_rules(layer, path, norms, _norm_rules),
  )
