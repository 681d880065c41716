"""Official checkpoints of VAR, STAR and their VQVAE to bundles.

Files are mapped into memory and written layer by layer, so that a conversion
needs little more than its largest layer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from star_jax.bundle import save_bundle
from star_jax.convert.refine import converted_refine
from star_jax.convert.source import check_size, read_official
from star_jax.convert.star import converted_star, refine_keys
from star_jax.convert.state_dict import Converted
from star_jax.convert.var import converted_var
from star_jax.convert.vqvae import converted_vqvae
from star_jax.model.config import StarConfig
from star_jax.model.refine import RefineConfig
from star_jax.scales import OWN_ASPECT
from star_jax.text.encoder import load_text_encoder, text_encoder_names
from star_jax.text.settings import TextSettings
from star_jax.tokenizer.config import VQVAEConfig

# What the authors' demos draw with.
VAR_SAMPLING = {
  "cfg_scale": 4.0,
  "top_k": 900,
  "top_p": 0.95,
  "temperature": 1.0,
  "gumbel_smooth": False,
  "smooth_filtered": True,
  "refine": "off",
  "aspect": OWN_ASPECT,
}
STAR_SAMPLING = {
  **VAR_SAMPLING,
  "top_k": 600,
  "top_p": 0.8,
  "smooth_filtered": False,
}
# Cross-attention: of every sample, or as published, of batch row 0 for all.
MODES = ("per_sample", "batch0")
# (encoder, tokens) of the authors, by the width of the text states.
_TEXT_OF_WIDTH = {1024: ("clip", 77), 2048: ("t5", 120)}


@dataclasses.dataclass(frozen=True)
class Conversion:
  """What was made of a checkpoint.

  Attributes:
    hash: of the bundle.
    left_out: names of tensors of a refinement head, where the settings do not
      say which scales it refines.
  """

  hash: str
  left_out: tuple[str, ...] = ()

  def remark(self) -> str:
    """A sentence about what was left out, "" if nothing was."""
    if not self.left_out:
      return ""
    families = sorted({name.partition(".")[0] for name in self.left_out})
    return (
      f"{len(self.left_out)} tensors of the refinement head are left out"
      f" ({', '.join(families)}), since the settings do not say"
      " refine.first_scale: the model draws without it."
    )


def convert_var(
  var: str | Path,
  vae: str | Path,
  out: str | Path,
  *,
  model: Mapping[str, Any],
  tokenizer: Mapping[str, Any],
  licence: str,
  storage: str = "float16",
) -> Conversion:
  """An official VAR and its VQVAE as a bundle.

  Args:
    var, vae: their files.
    out: folder of the bundle.
    model, tokenizer: settings, see configs/presets.py.
    licence: of the weights, in words.
    storage: dtype on disk.

  Raises:
    ValueError: see `read_official`; a file of another size, by its settings;
      unknown or missing keys and other shapes, by name.
  """
  star_config = StarConfig.from_dict(dict(model))
  if not star_config.num_classes:
    raise ValueError("These settings are of a STAR, not of a VAR.")
  state = read_official(var, "var")
  check_size(var, state, star_config)
  tokenizer_config, tokenizer_params = _vqvae(vae, tokenizer, star_config)
  written = save_bundle(
    out,
    tokenizer_config=tokenizer_config,
    tokenizer_params=tokenizer_params,
    star_config=star_config,
    star_params=converted_var(state, star_config),
    sampling=_sampling(VAR_SAMPLING, star_config),
    licence=licence,
    notes={"from": [Path(var).name, Path(vae).name]},
    storage=storage,
  )
  return Conversion(written)


def convert_star(
  star: str | Path,
  vae: str | Path,
  out: str | Path,
  *,
  model: Mapping[str, Any],
  tokenizer: Mapping[str, Any],
  licence: str,
  refine: Mapping[str, Any] | None = None,
  text: str | None = None,
  mode: str = "per_sample",
  storage: str = "float16",
) -> Conversion:
  """An official STAR and its VQVAE as a bundle; see `convert_var`.

  Args:
    refine: settings of the refinement head that the file may hold; None leaves
      it out.
    text: folder of the text encoder, or the name of an installed one. None:
      the bundle names the encoder of the authors and does not hold it.
    mode: cross-attention that the weights need, of MODES; the bundle records
      it in its settings and notes.
  """
  if mode not in MODES:
    raise ValueError(f"--mode is one of {', '.join(MODES)}, got {mode!r}.")
  star_config = StarConfig.from_dict(
    {**model, "legacy_batch0_cross_attention": mode == "batch0"}
  )
  if not star_config.text_dim:
    raise ValueError("These settings are of a VAR, not of a STAR.")
  state = read_official(star, "star")
  check_size(star, state, star_config)
  params = converted_star(state, star_config)
  head, without = converted_head(state, star_config, refine)
  tokenizer_config, tokenizer_params = _vqvae(vae, tokenizer, star_config)
  written = save_bundle(
    out,
    tokenizer_config=tokenizer_config,
    tokenizer_params=tokenizer_params,
    star_config=star_config,
    star_params=params,
    refine_config=head.config if head else None,
    refine_params=head.params if head else None,
    text=_text_settings(text, star_config.text_dim, Path(out), storage),
    sampling=_sampling(STAR_SAMPLING, star_config),
    licence=licence,
    notes={
      "from": [Path(star).name, Path(vae).name],
      "cross_attention": mode,
      "left_out": list(without),
    },
    storage=storage,
  )
  return Conversion(written, without)


class Head(NamedTuple):
  """The refinement head of a file."""

  config: RefineConfig
  params: Converted


def converted_head(
  state: Mapping[str, np.ndarray],
  star_config: StarConfig,
  refine: Mapping[str, Any] | None,
) -> tuple[Head | None, tuple[str, ...]]:
  """The head, if the file has one and the settings tell which scales it
  refines; and the keys that are left out.

  Raises:
    ValueError: settings of another head, or a missing key, by name.
  """
  found = refine_keys(state)
  if not found or refine is None:
    return None, found
  config = RefineConfig(**refine)
  config.check(star_config)
  return Head(config, converted_refine(state, star_config, config)), ()


def convert_vae(
  vae: str | Path,
  out: str | Path,
  *,
  tokenizer: Mapping[str, Any],
  licence: str,
  storage: str = "float16",
) -> Conversion:
  """An official VQVAE as the bundle of a tokenizer; see `convert_var`."""
  config, params = _vqvae(vae, tokenizer)
  written = save_bundle(
    out,
    tokenizer_config=config,
    tokenizer_params=params,
    licence=licence,
    notes={"from": [Path(vae).name]},
    storage=storage,
  )
  return Conversion(written)


def _sampling(defaults: Mapping[str, Any], config: StarConfig) -> dict:
  """The authors' values; a smaller codebook keeps fewer tokens."""
  return {**defaults, "top_k": min(defaults["top_k"], config.vocab_size)}


def _vqvae(
  path: str | Path,
  settings: Mapping[str, Any],
  star_config: StarConfig | None = None,
) -> tuple[VQVAEConfig, Converted]:
  """The tokenizer of a file, with the schedule of the model if there is one."""
  if star_config is not None:
    settings = {**settings, "schedule": star_config.schedule}
  config = VQVAEConfig.from_dict(settings)
  state = read_official(path, "vae")
  check_size(path, state, config)
  return config, converted_vqvae(state, config)


def _text_settings(
  text: str | None, width: int, out: Path, storage: str
) -> TextSettings:
  """Which text encoder the bundle names, and its folder in the bundle.

  Raises:
    ValueError: no encoder of this width is known, or another one was given.
  """
  name, tokens = _TEXT_OF_WIDTH.get(width, (None, 77))
  if text is None:
    if name is None:
      raise ValueError(
        f"No text encoder of width {width} is known: give --text, a folder or"
        f" one of {', '.join(text_encoder_names())}."
      )
    return TextSettings(name, tokens, "")
  if text in text_encoder_names() and not Path(text).is_dir():
    encoder = load_text_encoder(text, tokens)
  else:
    from star_jax.convert.hf_text import convert_text

    made = convert_text(text, out / "text", storage=storage)
    encoder = load_text_encoder(made.name, made.max_tokens, out / "text")
  if encoder.width != width:
    raise ValueError(
      f"The model reads text states of width {width}, the text encoder"
      f" {encoder.name} makes {encoder.width}."
    )
  return TextSettings.of(encoder)
