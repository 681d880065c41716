"""Generated pictures for given prompts, kept on disk chunk by chunk.

A run that was stopped goes on with the first chunk that is not there. The
folder's name is a hash of all that decides the pictures.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from star_jax.api import StarPipeline
from star_jax.metrics.progress import Progress

CHUNK = 64


def generate(
  pipeline: StarPipeline,
  prompts: Sequence[str],
  *,
  seed: int,
  batch: int,
  settings: Mapping[str, Any],
  folder: Path,
  label: str,
) -> np.ndarray:
  """One picture a prompt: uint8 [N, H, W, 3].

  Args:
    pipeline: the model.
    prompts: N of them.
    seed: chunk c of CHUNK prompts is drawn with a seed of its own made from
      this one, so that any chunk can be drawn alone.
    batch: pictures drawn at once.
    settings: sampling knobs that replace the bundle's.
    folder: where chunks are kept.
    label: of the progress line.
  """
  return generate_with_tokens(
    pipeline,
    prompts,
    seed=seed,
    batch=batch,
    settings=settings,
    folder=folder,
    label=label,
  )[0]


def generate_with_tokens(
  pipeline: StarPipeline, prompts: Sequence[str], **options
) -> tuple[np.ndarray, np.ndarray]:
  """What `generate` returns, and the tokens, int32 [N, L]."""
  parts = list(chunks(pipeline, prompts, **options))
  return (
    np.concatenate([part.image for part in parts]),
    np.concatenate([part.tokens for part in parts]),
  )


@dataclasses.dataclass(frozen=True)
class Chunk:
  """Pictures of consecutive prompts.

  Attributes:
    path: the file they are kept in.
    image: uint8 [n, H, W, 3].
    tokens: int32 [n, L].
    seconds: that drawing them took, nan if it is not known.
  """

  path: Path
  image: np.ndarray
  tokens: np.ndarray
  seconds: float


def chunks(
  pipeline: StarPipeline,
  prompts: Sequence[str],
  *,
  seed: int,
  batch: int,
  settings: Mapping[str, Any],
  folder: Path,
  label: str,
) -> Iterator[Chunk]:
  """The pictures of `generate`, CHUNK at a time: memory does not grow."""
  chosen = pipeline.settings(**settings)
  identity = {
    "bundle": pipeline.bundle.hash,
    "seed": seed,
    "batch": batch,
    "settings": chosen,
    "prompts": list(prompts),
  }
  text = json.dumps(identity, sort_keys=True).encode()
  place = folder / hashlib.sha256(text).hexdigest()[:16]
  place.mkdir(parents=True, exist_ok=True)
  progress = Progress(label)
  for start in range(0, len(prompts), CHUNK):
    path = place / f"{start:06d}.npz"
    chunk = read_chunk(path)
    if chunk is None:
      begin = time.perf_counter()
      drawn = pipeline.sample_all(
        prompts[start : start + CHUNK],
        _chunk_seed(seed, start // CHUNK),
        batch=batch,
        **chosen,
      )
      image = np.stack([np.asarray(picture) for picture in drawn.images])
      seconds = time.perf_counter() - begin
      chunk = Chunk(path, image, drawn.tokens_BL, seconds)
      _write(chunk)
    yield chunk
    progress(min(start + CHUNK, len(prompts)), len(prompts))


def _chunk_seed(seed: int, chunk: int) -> int:
  return int(np.random.SeedSequence((seed, chunk)).generate_state(1)[0])


def read_chunk(path: Path) -> Chunk | None:
  """A chunk from disk, None when it is absent or not whole."""
  try:
    with np.load(path) as data:
      seconds = float(data["seconds"]) if "seconds" in data.files else math.nan
      return Chunk(path, data["image"], data["tokens"], seconds)
  except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
    return None


def _write(chunk: Chunk) -> None:
  path = chunk.path
  temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp.npz")
  np.savez_compressed(
    temporary, image=chunk.image, tokens=chunk.tokens, seconds=chunk.seconds
  )
  os.replace(temporary, path)
