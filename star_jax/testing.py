"""Tiny models with random weights: for tests, and to try a command without a
trained bundle. Everything is drawn from a fixed seed."""

from __future__ import annotations

import os
from typing import Any

import flax.traverse_util
import numpy as np

from star_jax.bundle import save_bundle
from star_jax.model.config import StarConfig
from star_jax.model.star import Star
from star_jax.scales import OWN_ASPECT, ScaleSchedule
from star_jax.shapes import expected_shapes
from star_jax.text.encoder import load_text_encoder
from star_jax.text.settings import TextSettings
from star_jax.text.states import TextStates
from star_jax.tokenizer.config import VQVAEConfig
from star_jax.tokenizer.vqvae import VQVAE

TEXT_ENCODER, TEXT_TOKENS = "minilm-l6", 16
SAMPLING = {
  "cfg_scale": 2.0,
  "top_k": 0,
  "top_p": 1.0,
  "temperature": 1.0,
  "gumbel_smooth": False,
  "smooth_filtered": False,
  "refine": "off",
  "aspect": OWN_ASPECT,
}


def tiny_tokenizer_config(
  patch_nums=(1, 2, 3), vocab_size: int = 24
) -> VQVAEConfig:
  """A tokenizer of a few thousand weights, 4 pixels a latent position."""
  return VQVAEConfig(
    schedule=ScaleSchedule.from_patch_nums(patch_nums),
    vocab_size=vocab_size,
    code_dim=4,
    ch=32,
    ch_mult=(1,),
    num_res_blocks=1,
    attention=False,
    patch_size=4,
  )


def tiny_star_config(
  tokenizer: VQVAEConfig, text_dim: int = 12, **overrides
) -> StarConfig:
  """A two-layer transformer for `tokenizer`."""
  values = dict(
    schedule=tokenizer.schedule,
    vocab_size=tokenizer.vocab_size,
    code_dim=tokenizer.code_dim,
    depth=2,
    width=16,
    num_heads=2,
    text_dim=text_dim,
    rope_norm=float(tokenizer.schedule.final_grid[0]),
    drop_path_rate=0.0,
  )
  return StarConfig(**{**values, **overrides})


def random_params(module: VQVAE | Star, seed: int = 0) -> Any:
  """Parameters drawn with numpy (nothing is compiled), none of them zero, so
  that no path of the model is silent."""
  rng = np.random.default_rng(seed)
  params = {}
  for path, shape in expected_shapes(module).items():
    name, noise = path.split("/")[-1], rng.standard_normal(shape)
    if name == "kernel":
      # Convolutions are [3, 3, in, out], dense layers [..., in, out].
      fan_in = np.prod(shape[:-1]) if len(shape) == 4 else shape[-2]
      value = noise / np.sqrt(fan_in)
    elif name == "scale":
      value = 1 + 0.2 * noise
    elif name == "scale_mul":
      value = np.log(4.0) + 0.2 * noise
    else:
      value = 0.4 * noise
    params[path] = value.astype(np.float32)
  return flax.traverse_util.unflatten_dict(params, sep="/")


def random_text(batch: int, tokens: int, width: int, seed=0) -> TextStates:
  """Text states of prompts of different lengths (at least one token)."""
  rng = np.random.default_rng(seed)
  lengths = 1 + np.arange(batch) % tokens
  return TextStates(
    text_BTD=rng.standard_normal((batch, tokens, width)).astype(np.float32),
    text_mask_BT=np.arange(tokens)[None] < lengths[:, None],
    pooled_BD=rng.standard_normal((batch, width)).astype(np.float32),
  )


def save_tiny_class_bundle(
  directory: str | os.PathLike,
  seed: int = 0,
  tokenizer_config: VQVAEConfig | None = None,
  **overrides,
) -> str:
  """A bundle with a random model of three classes, two letters each.

  Args:
    directory: of the bundle.
    seed: of the weights.
    tokenizer_config: None: `tiny_tokenizer_config`.
    **overrides: of the `StarConfig`.

  Returns:
    The hash of the bundle.
  """
  tokenizer_config = tokenizer_config or tiny_tokenizer_config()
  star_config = tiny_star_config(
    tokenizer_config,
    text_dim=0,
    num_classes=3,
    adaptive_norm="block",
    position="absolute",
    cross_attention=False,
    **overrides,
  )
  return save_bundle(
    directory,
    tokenizer_config=tokenizer_config,
    tokenizer_params=random_params(VQVAE(tokenizer_config), seed),
    star_config=star_config,
    star_params=random_params(Star(star_config), seed),
    class_names=("aa", "bb", "cc"),
    sampling=SAMPLING,
    licence="none: random weights",
    storage="float32",
  )


def save_tiny_bundle(directory: str | os.PathLike, seed: int = 0) -> str:
  """A bundle with a random model behind the default text encoder.

  Returns:
    The hash of the bundle. Its pictures are 12 x 12 pixels of noise.
  """
  encoder = load_text_encoder(TEXT_ENCODER, TEXT_TOKENS)
  tokenizer_config = tiny_tokenizer_config()
  star_config = tiny_star_config(tokenizer_config, text_dim=encoder.width)
  return save_bundle(
    directory,
    tokenizer_config=tokenizer_config,
    tokenizer_params=random_params(VQVAE(tokenizer_config), seed),
    star_config=star_config,
    star_params=random_params(Star(star_config), seed),
    text=TextSettings.of(encoder),
    sampling=SAMPLING,
    licence="none: random weights",
    notes={"steps": 0},
    storage="float32",
  )
