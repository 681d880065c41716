"""A Hugging Face text encoder as a compact folder, such as text/ in a bundle.

What is written is the same layout again, flat: config.json, the tokenizer files
byte for byte, model.safetensors with the official names and tensors of the text
encoder alone. `transformers` reads it too, so the way back is the identity.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from star_jax.bundle import STORAGE_DTYPES, to_storage
from star_jax.tensor_file import write_tensors
from star_jax.text import clip, t5
from star_jax.text.hf_folder import (
  CONFIG,
  WEIGHTS,
  Family,
  TextFolder,
  model_folder,
  read_json,
)
from star_jax.text.settings import TextSettings

FAMILIES = (clip.FAMILY, t5.FAMILY)
RECORD = "conversion.json"


def family_of(folder: str | os.PathLike) -> Family:
  """Which text encoder a folder holds, by its config.json.

  Raises:
    ValueError: there is none, or one of another kind.
  """
  file = model_folder(Path(folder)) / CONFIG
  found = read_json(file).get("model_type")
  for family in FAMILIES:
    if found in family.model_types:
      return family
  known = [kind for family in FAMILIES for kind in family.model_types]
  raise ValueError(
    f"{file} has model_type = {found!r}; converted are {', '.join(known)}."
  )


def convert_text(
  folder: str | os.PathLike,
  out: str | os.PathLike,
  *,
  storage: str = "float16",
  max_tokens: int | None = None,
) -> TextSettings:
  """Copies the text encoder of a folder, without vision tower or decoder.

  Args:
    folder: a flat folder or a diffusers pipeline, see `text.hf_folder`.
    out: created if needed; files of the same names are replaced.
    storage: dtype on disk of matrices, one of STORAGE_DTYPES; vectors are
      float32.
    max_tokens: the window that the fingerprint is of, by default the usual one
      of the encoder. The folder itself has no window.

  Returns:
    The settings that a bundle names the encoder by. Their fingerprint is that
    of `folder` where `storage` keeps every value. `out`/conversion.json says
    how many tensors were kept and dropped.

  Raises:
    ValueError: a file is missing, damaged or of another model; a value does
      not fit the storage dtype; or `out` is where the files come from.
    OSError: the folder cannot be written.
  """
  if storage not in STORAGE_DTYPES:
    raise ValueError(
      f"Text encoders are stored as one of {STORAGE_DTYPES}, got {storage!r}."
    )
  family, out = family_of(folder), Path(out)
  source = TextFolder(folder, family)
  if out.resolve() in (source.path.resolve(), source.model.resolve()):
    raise ValueError(
      f"{out} holds the text encoder to convert; give another folder."
    )
  # Everything is read once, so that nothing is written of a broken folder.
  source.tokens()
  _ = source.converted
  out.mkdir(parents=True, exist_ok=True)
  for name in WEIGHTS:  # of an earlier conversion or another layout
    (out / name).unlink(missing_ok=True)
  for file in source.tokenizer_files():
    shutil.copyfile(file, out / file.name)
  _write_json(out / CONFIG, _config_of(source))
  _write_weights(out / WEIGHTS[0], source, storage)
  max_tokens = family.max_tokens if max_tokens is None else max_tokens
  fingerprint = TextFolder(out, family).fingerprint(max_tokens)
  record = {
    "text_encoder": family.name,
    "storage": storage,
    "tensors": {"kept": len(source.state), "dropped": source.dropped},
    "max_tokens": max_tokens,
    "fingerprint": fingerprint,
  }
  _write_json(out / RECORD, record)
  return TextSettings(family.name, max_tokens, fingerprint)


def _config_of(source: TextFolder) -> dict:
  """config.json of the encoder alone: of a whole CLIP its text part."""
  if source.entries["model_type"] != "clip":
    return source.entries
  return {
    **source.entries["text_config"],
    "model_type": "clip_text_model",
    "architectures": ["CLIPTextModel"],
  }


def _write_weights(path: Path, source: TextFolder, storage: str) -> None:
  dtypes = {
    key: storage if x.ndim > 1 else "float32" for key, x in source.state.items()
  }
  # A half-written file has another name, and the folder then no weights.
  temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
  try:
    write_tensors(
      temporary,
      {key: (x.shape, dtypes[key]) for key, x in source.state.items()},
      lambda key: to_storage(key, source.state[key], dtypes[key]),
    )
    os.replace(temporary, path)
  finally:
    temporary.unlink(missing_ok=True)


def _write_json(path: Path, entries: dict) -> None:
  path.write_text(json.dumps(entries, indent=2, sort_keys=True) + "\n", "utf-8")
