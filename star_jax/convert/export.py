"""Bundles back to the official layout, as safetensors."""

from __future__ import annotations

from collections import ChainMap
from pathlib import Path

from star_jax.bundle import Bundle, load_bundle
from star_jax.convert.refine import refine_rules
from star_jax.convert.star import star_rules
from star_jax.convert.state_dict import Restored
from star_jax.convert.var import var_rules
from star_jax.convert.vqvae import vqvae_rules
from star_jax.tensor_file import write_tensors


def export_official(bundle: str | Path, out: str | Path) -> list[Path]:
  """A bundle in the official layout: vae.safetensors, and var.safetensors for
  a model of classes or star.safetensors for one of texts.

  All are float32. A refinement head lies in the file of its transformer.
  Tensors that nothing reads (STAR's class embedding, the tokenizer's usage
  statistic) are zeros; what a conversion left out is not written.

  Args:
    bundle: its folder.
    out: folder to write to, made if needed.

  Returns:
    The files that were written.

  Raises:
    ValueError: the bundle is damaged, or its model has no official layout.
    OSError: a file cannot be read or written.
  """
  found, out = load_bundle(bundle, mapped=True), Path(out)
  _check_layout(bundle, found)
  states = {
    "vae": [
      Restored(found.params["tokenizer"], vqvae_rules(found.tokenizer_config))
    ]
  }
  config = found.star_config
  if config is not None:
    name = "var" if config.num_classes else "star"
    rules = var_rules(config) if config.num_classes else star_rules(config)
    states[name] = [Restored(found.params["star"], rules)]
    if found.refine_config is not None:
      rules = refine_rules(config, found.refine_config)
      states[name].append(Restored(found.params["refine"], rules))
  out.mkdir(parents=True, exist_ok=True)
  written = []
  for name, parts in states.items():
    written.append(out / f"{name}.safetensors")
    facts = {key: fact for part in parts for key, fact in part.facts.items()}
    write_tensors(written[-1], facts, ChainMap(*parts).__getitem__)
  return written


def _check_layout(path: str | Path, bundle: Bundle) -> None:
  """Raises for what the official code has no name for."""
  tokenizer, model = bundle.tokenizer_config, bundle.star_config
  ours = {
    "patch_size": tokenizer.patch_size != 1,
    "linear_path": tokenizer.linear_path,
    "growth": tokenizer.growth != "bicubic",
    "quantizer": tokenizer.quantizer != "vq",
    "decoder_norm": tokenizer.decoder_norm != "group",
    "head": model is not None and model.head != "softmax",
    "position": model is not None and model.position == "rope+absolute",
    "rope_coords": model is not None and model.rope_coords != "checkpoint",
    "adaptive_norm": model is not None
    and (model.adaptive_norm in ("block", "shared")) != bool(model.num_classes),
  }
  if names := [name for name, unknown in ours.items() if unknown]:
    raise ValueError(
      f"{path} has no official layout: its {', '.join(names)} is of star_jax"
      " alone."
    )
