"""Official checkpoint files: which kind they are, and their flat state dict.

Nothing in a file is executed, and files are mapped into memory.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from star_jax.convert.pth import read_pth
from star_jax.model.config import StarConfig
from star_jax.tensor_file import read_tensors
from star_jax.tokenizer.config import VQVAEConfig

# What wrappers of the trainers put before every name.
_PREFIXES = ("module.", "_orig_mod.")
_BLOCK = re.compile(r"blocks\.(\d+)\.")


@dataclasses.dataclass(frozen=True)
class Kind:
  """One kind of official checkpoint.

  Attributes:
    words: what it is, for a sentence.
    nests: dicts that its state dict may lie in, from the outside in: both
      trainers save {"trainer": {"var_wo_ddp": ..., "vae_local": ...}}.
    marks: keys that no other kind has.
  """

  words: str
  nests: tuple[str, ...]
  marks: tuple[str, ...]


_TRANSFORMER = ("trainer", "var_wo_ddp", "model", "state_dict")
KINDS = {
  "var": Kind(
    "a VAR transformer (official_var)",
    _TRANSFORMER,
    ("head_nm.ada_lin.1.weight", "head.weight", "pos_1LC"),
  ),
  "star": Kind(
    "a STAR transformer (official_star)",
    _TRANSFORMER,
    ("encoder_proj.weight", "head_logits.weight"),
  ),
  "vae": Kind(
    "the tokenizer, a VQVAE (official_vae)",
    ("trainer", "vae_local", "model", "state_dict"),
    ("quantize.embedding.weight", "decoder.conv_out.weight"),
  ),
}


def read_official(path: str | Path, kind: str) -> dict[str, np.ndarray]:
  """The flat state dict of a .pth or .safetensors file.

  Args:
    path: of the file.
    kind: of KINDS.

  Returns:
    Read-only views of the file by official name, without prefixes of wrappers.

  Raises:
    ValueError: another kind of file or of checkpoint, one that asks to run
      something, or one without a state dict.
    OSError: the file cannot be read.
  """
  path = Path(path)
  if path.suffix == ".safetensors":
    state: Any = read_tensors(path)
  else:
    state = read_pth(path)
  for nest in KINDS[kind].nests:
    if isinstance(state, Mapping) and isinstance(state.get(nest), Mapping):
      state = state[nest]
  if not isinstance(state, Mapping) or not all(
    isinstance(value, np.ndarray) for value in state.values()
  ):
    raise ValueError(f"{path} holds no state dict of tensors.")
  bare = {_bare(key): value for key, value in state.items()}
  if len(bare) != len(state):
    raise ValueError(
      f"{path} holds the same names with and without the prefix of a wrapper"
      f" ({' or '.join(_PREFIXES)})."
    )
  found = kind_of(bare)
  if found is None:
    raise ValueError(
      f"{path} is not {KINDS[kind].words}: its keys are"
      f" {', '.join(sorted(bare)[:4]) or 'none'}, ..."
    )
  if found != kind:
    raise ValueError(
      f"{path} holds {KINDS[found].words}, asked for was {KINDS[kind].words}."
    )
  return bare


def kind_of(state: Mapping[str, np.ndarray]) -> str | None:
  """The kind most of whose marks are there; None: no mark of any."""
  share = {
    name: sum(mark in state for mark in kind.marks) / len(kind.marks)
    for name, kind in KINDS.items()
  }
  best = max(share, key=share.__getitem__)
  return best if share[best] else None


def check_size(
  path: str | Path,
  state: Mapping[str, np.ndarray],
  config: StarConfig | VQVAEConfig,
) -> None:
  """Raises unless what shapes tell about a model is what its settings say.

  A preset of another size would otherwise end in hundreds of keys.

  Raises:
    ValueError: naming every difference.
  """
  found, wanted = sizes_of(state), _sizes_wanted(config)
  other = [
    f"{name} {found[name]} (the settings say {wanted[name]})"
    for name in wanted
    if name in found and found[name] != wanted[name]
  ]
  if other:
    raise ValueError(
      f"{path} is of another size than the preset: it has {', '.join(other)}."
    )


def sizes_of(state: Mapping[str, np.ndarray]) -> dict[str, int]:
  """What the shapes of a state dict tell, by the names of our settings."""
  places = {
    "width": ("pos_start", 2),
    "num_heads": ("blocks.0.attn.scale_mul_1H11", 1),
    "scales": ("lvl_embed.weight", 0),
    "tokens": ("pos_1LC", 1),
    "text_dim": ("encoder_proj.weight", 1),
    "vocab_size": ("quantize.embedding.weight", 0),
    "code_dim": ("quantize.embedding.weight", 1),
    "ch": ("encoder.conv_in.weight", 0),
  }
  if "pos_start" in state:
    head = "head.weight" if "head.weight" in state else "head_logits.weight"
    places |= {"vocab_size": (head, 0), "code_dim": ("word_embed.weight", 1)}
  sizes = {
    name: state[key].shape[axis]
    for name, (key, axis) in places.items()
    if key in state and state[key].ndim > axis
  }
  blocks = [int(m.group(1)) for m in map(_BLOCK.match, state) if m]
  if blocks:
    sizes["depth"] = max(blocks) + 1
  return sizes


def _sizes_wanted(config: StarConfig | VQVAEConfig) -> dict[str, int]:
  names = ["vocab_size", "code_dim"]
  if isinstance(config, VQVAEConfig):
    return {name: getattr(config, name) for name in (*names, "ch")}
  names += ["depth", "width", "num_heads"]
  names += ["text_dim"] if config.text_dim else []
  return {name: getattr(config, name) for name in names} | {
    "scales": config.schedule.num_scales,
    "tokens": config.schedule.num_tokens,
  }


def _bare(key: str) -> str:
  """Without what wrappers of the trainer put before a name."""
  while key.startswith(_PREFIXES):
    key = key.partition(".")[2]
  return key
