"""CLIP's image tower (arXiv 2103.00020), read from a local folder.

ViT-B/32, ViT-L/14 and their kin by config.json: a class token, learned
positions, a norm before the pre-norm layers, the class token's state after a
last norm, and CLIP's projection.

B: batch, T: patches and the class token, D: width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from star_jax.convert.state_dict import (
  CONV,
  LINEAR,
  Rule,
  ignore,
  torch_to_jax,
)
from star_jax.text import clip as text_clip

# Mean and standard deviation of CLIP's pictures in [0, 1].
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


@dataclasses.dataclass(frozen=True)
class ClipVisionConfig:
  """The entries of `vision_config` that shape the tower.

  The defaults are those of transformers' CLIPVisionConfig (ViT-B/32).
  """

  hidden_size: int = 768  # D
  intermediate_size: int = 3072
  num_hidden_layers: int = 12
  num_attention_heads: int = 12
  image_size: int = 224
  patch_size: int = 32
  hidden_act: str = "quick_gelu"
  layer_norm_eps: float = 1e-5
  projection_dim: int = 512

  @property
  def places(self) -> int:
    """Patches and the class token."""
    return (self.image_size // self.patch_size) ** 2 + 1


class ClipVision(nn.Module):
  """Pictures to projected vectors."""

  config: ClipVisionConfig

  @nn.compact
  def __call__(self, x_BHW3: jax.Array) -> jax.Array:
    """Args: float32 [B, H, W, 3], normalised by MEAN and STD.

    Returns:
      float32 [B, projection_dim], not of length one.
    """
    c = self.config
    x_BhwD = nn.Conv(
      c.hidden_size,
      (c.patch_size, c.patch_size),
      (c.patch_size, c.patch_size),
      padding="VALID",
      use_bias=False,
      precision=text_clip.HIGHEST,
      name="patches",
    )(x_BHW3)
    x_BTD = rearrange(x_BhwD, "B h w D -> B (h w) D")
    first = self.param("class", nn.initializers.zeros, (c.hidden_size,))
    first_B1D = jnp.broadcast_to(first, (len(x_BTD), 1, c.hidden_size))
    x_BTD = jnp.concatenate([first_B1D, x_BTD], axis=1)
    position_TD = self.param(
      "positions", nn.initializers.zeros, (c.places, c.hidden_size)
    )
    x_BTD = _norm(c, "norm_before")(x_BTD + position_TD[None])
    mask_BTT = jnp.ones((1, c.places, c.places), bool)
    layers = nn.scan(
      text_clip.ClipLayer,
      variable_axes={"params": 0},
      split_rngs={"params": True},
      in_axes=nn.broadcast,
      length=c.num_hidden_layers,
      check_constancy_invariants=self.is_initializing(),
    )
    x_BTD, _ = layers(c, name="layers")(x_BTD, mask_BTT)
    pooled_BD = _norm(c, "norm")(x_BTD[:, 0])
    return nn.Dense(
      c.projection_dim,
      use_bias=False,
      precision=text_clip.HIGHEST,
      name="projection",
    )(pooled_BD)


def _norm(config: ClipVisionConfig, name: str) -> nn.LayerNorm:
  return nn.LayerNorm(
    epsilon=config.layer_norm_eps, use_fast_variance=False, name=name
  )


_TOWER = "vision_model."
# The layers of both towers have the same names.
_LAYER_RULES = tuple(
  dataclasses.replace(rule, key=_TOWER + rule.key)
  for rule in text_clip.RULES
  if rule.key.startswith("encoder.layers.")
)
RULES = (
  Rule(f"{_TOWER}embeddings.class_embedding", "class"),
  Rule(f"{_TOWER}embeddings.patch_embedding.weight", "patches/kernel", CONV),
  Rule(f"{_TOWER}embeddings.position_embedding.weight", "positions"),
  # Spelt so in the published files.
  Rule(f"{_TOWER}pre_layrnorm.weight", "norm_before/scale"),
  Rule(f"{_TOWER}pre_layrnorm.bias", "norm_before/bias"),
  Rule(f"{_TOWER}post_layernorm.weight", "norm/scale"),
  Rule(f"{_TOWER}post_layernorm.bias", "norm/bias"),
  Rule("visual_projection.weight", "projection/kernel", LINEAR),
  ignore(f"{_TOWER}embeddings.position_ids"),
  *_LAYER_RULES,
)


def vision_tower(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """The tensors of the image tower of a CLIPModel or a
  CLIPVisionModelWithProjection."""
  names = (_TOWER, "visual_projection.")
  return {key: x for key, x in state.items() if key.startswith(names)}


def params_from_state(
  state: Mapping[str, np.ndarray], config: ClipVisionConfig, path: Path
) -> dict:
  """Our parameters; `state` in the names of transformers or of open_clip.

  Raises:
    ValueError: the weights are not those of the configuration.
  """
  if "visual.conv1.weight" in state:
    state = from_open_clip(state)
  size = config.image_size
  x = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
  init = ClipVision(config).init
  template = jax.eval_shape(init, jax.random.key(0), x)["params"]
  try:
    return torch_to_jax(vision_tower(state), RULES, template)
  except ValueError as error:
    raise ValueError(
      f"The weights in {path} are not those of its config.json: {error}"
    ) from error


_OPEN_CLIP = {
  "visual.class_embedding": f"{_TOWER}embeddings.class_embedding",
  "visual.conv1.weight": f"{_TOWER}embeddings.patch_embedding.weight",
  "visual.positional_embedding": (
    f"{_TOWER}embeddings.position_embedding.weight"
  ),
  "visual.ln_pre.": f"{_TOWER}pre_layrnorm.",
  "visual.ln_post.": f"{_TOWER}post_layernorm.",
}
_OPEN_CLIP_LAYER = {
  "ln_1.": "layer_norm1.",
  "ln_2.": "layer_norm2.",
  "attn.out_proj.": "self_attn.out_proj.",
  "mlp.c_fc.": "mlp.fc1.",
  "mlp.c_proj.": "mlp.fc2.",
}


def from_open_clip(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """The image tower of an open_clip state dict in transformers' names."""
  out = {}
  for key, x in state.items():
    if not key.startswith("visual."):
      continue
    if key == "visual.proj":
      out["visual_projection.weight"] = np.asarray(x).T
      continue
    if not key.startswith("visual.transformer.resblocks."):
      out[_renamed(key, _OPEN_CLIP)] = x
      continue
    layer, rest = key.removeprefix("visual.transformer.resblocks.").split(
      ".", 1
    )
    place = f"{_TOWER}encoder.layers.{layer}."
    if rest.startswith("attn.in_proj_"):
      kind = rest.removeprefix("attn.in_proj_")
      for name, part in zip("qkv", np.split(np.asarray(x), 3)):
        out[f"{place}self_attn.{name}_proj.{kind}"] = part
    else:
      out[place + _renamed(rest, _OPEN_CLIP_LAYER)] = x
  return out


def _renamed(key: str, names: Mapping[str, str]) -> str:
  for theirs, ours in names.items():
    if key.startswith(theirs):
      return ours + key.removeprefix(theirs)
  return key
