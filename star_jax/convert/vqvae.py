"""VAR's official VQVAE state dict and our tokenizer parameters."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from star_jax.convert.state_dict import (
  CONV,
  CONV_1X1,
  Converted,
  Rule,
  ignore,
  jax_to_torch,
)
from star_jax.tokenizer.config import VQVAEConfig
from star_jax.tokenizer.vqvae import VQVAE


def vqvae_rules(config: VQVAEConfig) -> tuple[Rule, ...]:
  """Rules for every key of the official layout.

  `quantize.ema_vocab_hit_SV` is a training statistic of the authors' runs that
  no computation reads; we write zeros of the shape of this schedule.
  """
  quantizer = (
    Rule("quantize.embedding.weight", "quantizer/codebook_VCv"),
    *_phi_rules(config.share_quant_resi),
    *_unused_phi_rules(config),
    ignore(
      "quantize.ema_vocab_hit_SV",
      shape=(config.schedule.num_scales, config.vocab_size),
    ),
  )
  # (theirs, ours): everything the encoder and decoder are made of.
  modules = [
    ("{side}.mid.{block}", "{side}/mid/{block}"),
    ("encoder.down.{i}.downsample", "encoder/down_{i}_downsample"),
    ("decoder.up.{i}.upsample", "decoder/up_{i}_upsample"),
    ("encoder.down.{i}.block.{j}", "encoder/down_{i}_block_{j}"),
    ("decoder.up.{i}.block.{j}", "decoder/up_{i}_block_{j}"),
    ("encoder.down.{i}.attn.{j}", "encoder/down_{i}_attn_{j}"),
    ("decoder.up.{i}.attn.{j}", "decoder/up_{i}_attn_{j}"),
    ("{side}", "{side}"),
  ]
  layers = []
  for theirs, ours in modules:
    layers += _layer_rules(theirs, ours)
  outer = [
    Rule("{name}.weight", "{name}/kernel", CONV),
    Rule("{name}.bias", "{name}/bias"),
  ]
  return (*quantizer, *layers, *outer)


def vqvae_from_torch(
  state: Mapping[str, np.ndarray], config: VQVAEConfig
) -> dict[str, Any]:
  """`VQVAE` parameters (float32) from an official state dict.

  Args:
    state: arrays by official key name, e.g. from
      `safetensors.numpy.load_file`; float16 storage is fine.
    config: the tokenizer the weights belong to.

  Raises:
    ValueError: a key is unknown or missing, or a shape differs.
  """
  return converted_vqvae(state, config).tree()


def converted_vqvae(
  state: Mapping[str, np.ndarray], config: VQVAEConfig
) -> Converted:
  """`vqvae_from_torch`, parameter by parameter."""
  return Converted(state, vqvae_rules(config), template(config))


def vqvae_to_torch(
  params: Mapping[str, Any], config: VQVAEConfig
) -> dict[str, np.ndarray]:
  """The official state dict of our parameters; inverse of the above.

  `patch_size` above 1 has no official counterpart: names still correspond,
  but the official code cannot run the weights.
  """
  return jax_to_torch(params, vqvae_rules(config))


def _phi_rules(share_quant_resi: int) -> tuple[Rule, ...]:
  """The three official spellings, by how phi is shared."""
  if share_quant_resi == 1:
    theirs, ours = "quantize.quant_resi.qresi", "quantizer/phi_0"
  elif share_quant_resi == 0:
    theirs, ours = "quantize.quant_resi.{j}", "quantizer/phi_{j}"
  else:
    theirs, ours = "quantize.quant_resi.qresi_ls.{j}", "quantizer/phi_{j}"
  return (
    Rule(f"{theirs}.weight", f"{ours}/kernel", CONV),
    Rule(f"{theirs}.bias", f"{ours}/bias"),
  )


def _unused_phi_rules(config: VQVAEConfig) -> list[Rule]:
  """The official module has every phi, also those that no scale is nearest to
  (fewer scales than phis); we make those that are used."""
  if config.share_quant_resi < 2:
    return []
  width, key = config.code_dim, "quantize.quant_resi.qresi_ls"
  rules = []
  for j in range(config.share_quant_resi):
    rules.append(ignore(f"{key}.{j}.weight", shape=(width, width, 3, 3)))
    rules.append(ignore(f"{key}.{j}.bias", shape=(width,)))
  return rules


def _layer_rules(theirs: str, ours: str) -> list[Rule]:
  """Rules for the layers inside one module."""
  rules = [
    # The projections of the attention are 1x1 convolutions there.
    Rule(f"{theirs}.qkv.weight", f"{ours}/qkv/kernel", CONV_1X1),
    Rule(f"{theirs}.proj_out.weight", f"{ours}/proj_out/kernel", CONV_1X1),
    # Norms have a scale where convolutions have a kernel.
    Rule(f"{theirs}.{{layer_name}}.weight", f"{ours}/{{layer_name}}/scale"),
    Rule(
      f"{theirs}.{{layer_name}}.weight", f"{ours}/{{layer_name}}/kernel", CONV
    ),
    Rule(f"{theirs}.{{layer_name}}.bias", f"{ours}/{{layer_name}}/bias"),
  ]
  return rules


@functools.cache
def template(config: VQVAEConfig) -> dict[str, Any]:
  """Shapes of all parameters, without computing any."""
  image = jax.ShapeDtypeStruct((1, *config.image_size, 3), jnp.float32)
  variables = jax.eval_shape(VQVAE(config).init, jax.random.key(0), image)
  return variables["params"]
