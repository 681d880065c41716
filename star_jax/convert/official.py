"""Official checkpoints of VAR and its VQVAE to bundles, and back.

Nothing in a file is executed, and files are mapped into memory, so that a
conversion needs little more than the largest tensor.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from star_jax.bundle import load_bundle, save_bundle
from star_jax.convert.pth import read_pth
from star_jax.convert.state_dict import Converted
from star_jax.convert.var import converted_var, var_to_torch
from star_jax.convert.vqvae import converted_vqvae, vqvae_to_torch
from star_jax.model.config import StarConfig
from star_jax.tensor_file import read_tensors, write_tensors
from star_jax.tokenizer.config import VQVAEConfig

# Where the state dict lies in files of the official trainer and of others.
_VAR_NESTS = ("trainer", "var_wo_ddp", "model", "state_dict")
_VAE_NESTS = ("trainer", "vae_local", "model", "state_dict")
_PREFIXES = ("module.", "_orig_mod.")
# What the authors' demo draws with.
VAR_SAMPLING = {
  "cfg_scale": 4.0,
  "top_k": 900,
  "top_p": 0.95,
  "temperature": 1.0,
  "gumbel_smooth": False,
  "smooth_filtered": True,
}


def read_official(
  path: str | Path, nests: tuple[str, ...]
) -> dict[str, np.ndarray]:
  """The flat state dict of a .pth or .safetensors file.

  Args:
    path: of the file.
    nests: dicts that the state dict may lie in, from the outside in.

  Raises:
    ValueError: another kind of file, one that asks to run something, or one
      without a state dict.
    OSError: the file cannot be read.
  """
  path = Path(path)
  if path.suffix == ".safetensors":
    state: Any = read_tensors(path)
  else:
    state = read_pth(path)
  for nest in nests:
    if isinstance(state, Mapping) and isinstance(state.get(nest), Mapping):
      state = state[nest]
  if not isinstance(state, Mapping) or not all(
    isinstance(value, np.ndarray) for value in state.values()
  ):
    raise ValueError(f"{path} holds no state dict of tensors.")
  return {_bare(key): value for key, value in state.items()}


def _bare(key: str) -> str:
  """Without what wrappers of the trainer put before a name."""
  while key.startswith(_PREFIXES):
    key = key.partition(".")[2]
  return key


def convert_var(
  var: str | Path,
  vae: str | Path,
  out: str | Path,
  *,
  model: Mapping[str, Any],
  tokenizer: Mapping[str, Any],
  licence: str,
  storage: str = "float16",
) -> str:
  """An official VAR and its VQVAE as a bundle.

  Args:
    var, vae: their files.
    out: folder of the bundle.
    model, tokenizer: settings, see configs/presets.py.
    licence: of the weights, in words.
    storage: dtype on disk.

  Returns:
    The hash of the bundle.

  Raises:
    ValueError: see `read_official`; unknown or missing keys and other shapes,
      by name.
  """
  star_config = StarConfig.from_dict(dict(model))
  tokenizer_config = VQVAEConfig.from_dict(
    {**tokenizer, "schedule": star_config.schedule}
  )
  return save_bundle(
    out,
    tokenizer_config=tokenizer_config,
    tokenizer_params=_vqvae(vae, tokenizer_config),
    star_config=star_config,
    star_params=converted_var(read_official(var, _VAR_NESTS), star_config),
    sampling=VAR_SAMPLING,
    licence=licence,
    notes={"from": [Path(var).name, Path(vae).name]},
    storage=storage,
  )


def convert_vae(
  vae: str | Path,
  out: str | Path,
  *,
  tokenizer: Mapping[str, Any],
  licence: str,
  storage: str = "float16",
) -> str:
  """An official VQVAE as the bundle of a tokenizer; see `convert_var`."""
  config = VQVAEConfig.from_dict(dict(tokenizer))
  return save_bundle(
    out,
    tokenizer_config=config,
    tokenizer_params=_vqvae(vae, config),
    licence=licence,
    notes={"from": [Path(vae).name]},
    storage=storage,
  )


def _vqvae(path: str | Path, config: VQVAEConfig) -> Converted:
  return converted_vqvae(read_official(path, _VAE_NESTS), config)


def export_official(bundle: str | Path, out: str | Path) -> list[Path]:
  """A bundle in the official layout: vae.safetensors, and var.safetensors for
  a model of classes.

  Returns:
    The files that were written.

  Raises:
    ValueError: the bundle holds a model of texts, or is damaged.
  """
  found, out = load_bundle(bundle), Path(out)
  states = {
    "vae": vqvae_to_torch(found.params["tokenizer"], found.tokenizer_config)
  }
  if found.star_config is not None:
    if not found.star_config.num_classes:
      raise ValueError(
        f"{bundle} holds a model of texts; written back are models of classes."
      )
    states["var"] = var_to_torch(found.params["star"], found.star_config)
  out.mkdir(parents=True, exist_ok=True)
  written = []
  for name, state in states.items():
    written.append(out / f"{name}.safetensors")
    write_tensors(
      written[-1],
      {key: (x.shape, str(x.dtype)) for key, x in state.items()},
      state.__getitem__,
    )
  return written
