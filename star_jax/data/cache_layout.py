"""How a token cache lies on disk.

  manifest.json                identity, counts, files with their checksums
  examples-00000.arrayrecord   one record an original, and an index
  texts-00000.arrayrecord      one record a caption, and an index
  examples-00000.json          what the manifest says of a file and, of
  texts-00000.json             examples, the captions that occur in it

All numbers are little-endian. A record of `examples` is

  uint32 V, uint32 L, uint32 bytes a token (2 or 4)
  tokens    uint16 or uint32 [V, L]   all scales of every variant
  captions  uint64 [V]                keys of their captions
  flipped   uint8 [V]                 1: the variant is mirrored
  id        UTF-8, the rest           of the original, see `sources`

one of `texts`

  uint32 t, uint32 D, uint32 P
  states    bfloat16 [t, D]           of the tokens, padding left out
  pooled    bfloat16 [P]
  caption   UTF-8, the rest

The index, the last record of a file, holds the keys of its captions: uint64
[n, V] of n examples, [n] of n texts. A key is the beginning of a caption's
SHA-256; equal captions are stored once in a cache. In a cache of classes
captions are names of classes and the states have no width.

A file counts once its .json is there. Which examples are in it depends on its
number alone, so that several processes share the work without talking to each
other. manifest.json says "complete" once all files count.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

VERSION = 2
MANIFEST = "manifest.json"
COMMAND = "launch/encode_dataset.py"
# Kinds of files.
EXAMPLES, TEXTS = "examples", "texts"

_HEADER = struct.Struct("<III")
_KEY = np.dtype("<u8")
_STATE = np.dtype(ml_dtypes.bfloat16)
_TOKEN = {2: np.dtype("<u2"), 4: np.dtype("<u4")}
_HASH_DIGITS = 16


class ExampleRecord(NamedTuple):
  """An original in its variants.

  idx_VL: tokens, uint16 or uint32. keys_V: uint64, of the captions.
  flipped_V: bool. original: its id.
  """

  idx_VL: np.ndarray
  keys_V: np.ndarray
  flipped_V: np.ndarray
  original: str

  def pack(self) -> bytes:
    """As it lies on disk."""
    width = self.idx_VL.dtype.itemsize
    return b"".join(
      (
        _HEADER.pack(*self.idx_VL.shape, width),
        self.idx_VL.astype(_TOKEN[width]).tobytes(),
        self.keys_V.astype(_KEY).tobytes(),
        self.flipped_V.astype(np.uint8).tobytes(),
        self.original.encode(),
      )
    )

  @classmethod
  def unpack(cls, record: bytes) -> ExampleRecord:
    """The reverse; arrays are views of the record."""
    variants, tokens, width = _HEADER.unpack_from(record)
    count, at = variants * tokens, _HEADER.size
    idx = np.frombuffer(record, _TOKEN[width], count, at)
    at += count * width
    keys = np.frombuffer(record, _KEY, variants, at)
    at += variants * _KEY.itemsize
    flipped = np.frombuffer(record, np.uint8, variants, at)
    at += variants
    idx_VL = idx.reshape(variants, tokens)
    return cls(idx_VL, keys, flipped.astype(bool), record[at:].decode())


class TextRecord(NamedTuple):
  """A caption and its states: text_TD and pooled_D are bfloat16."""

  text_TD: np.ndarray
  pooled_D: np.ndarray
  caption: str

  def pack(self) -> bytes:
    """As it lies on disk."""
    shape = (*self.text_TD.shape, len(self.pooled_D))
    return b"".join(
      (
        _HEADER.pack(*shape),
        _little(self.text_TD.astype(_STATE)).tobytes(),
        _little(self.pooled_D.astype(_STATE)).tobytes(),
        self.caption.encode(),
      )
    )

  @classmethod
  def unpack(cls, record: bytes) -> TextRecord:
    """The reverse; arrays are views of the record."""
    tokens, width, pooled_width = _HEADER.unpack_from(record)
    count, at = tokens * width, _HEADER.size
    text = np.frombuffer(record, "<u2", count, at)
    at += count * _STATE.itemsize
    pooled = np.frombuffer(record, "<u2", pooled_width, at)
    at += pooled_width * _STATE.itemsize
    text_TD = _native(text).reshape(tokens, width)
    return cls(text_TD, _native(pooled), record[at:].decode())


def _little(states: np.ndarray) -> np.ndarray:
  """bfloat16 as little-endian integers of the same bits."""
  return states.view(np.uint16).astype("<u2")


def _native(bits: np.ndarray) -> np.ndarray:
  """The reverse."""
  return bits.astype(np.uint16, copy=False).view(_STATE)


def pack_keys(keys: Sequence[int] | np.ndarray) -> bytes:
  """The index of a file."""
  return np.asarray(keys, _KEY).tobytes()


def unpack_keys(record: bytes) -> np.ndarray:
  """uint64, flat."""
  return np.frombuffer(record, _KEY).astype(np.uint64, copy=False)


def caption_key(caption: str) -> int:
  """64 bits that stand for a caption."""
  digest = hashlib.sha256(caption.encode()).digest()
  return int.from_bytes(digest[:8], "little")


def shard_path(directory: Path, kind: str, number: int) -> Path:
  """Of a file of records."""
  return directory / f"{kind}-{number:05d}.arrayrecord"


def json_hash(value: Any) -> str:
  """Hex digits that change with a JSON value."""
  text = json.dumps(value, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:_HASH_DIGITS]


def check_identity(path: str | Path, saved: dict, wanted: dict) -> None:
  """Refuses a cache that was made by something else, naming what differs.

  Only the keys of `wanted` are compared.
  """
  wanted = plain(wanted)
  differing = [
    f"{key} is {saved.get(key)!r} there and {value!r} here"
    for key, value in sorted(wanted.items())
    if saved.get(key) != value
  ]
  if differing:
    raise ValueError(
      f"The token cache {path} was made by another configuration:"
      f" {'; '.join(differing)}; build a cache in another directory."
    )


def read_manifest(directory: Path) -> dict:
  """The manifest of a cache, complete or not.

  Raises:
    ValueError: there is none, it is damaged, or of another version.
  """
  path = directory / MANIFEST
  try:
    manifest = json.loads(path.read_text("utf-8"))
  except FileNotFoundError as error:
    raise ValueError(
      f"No token cache in {directory}; {COMMAND} builds one."
    ) from error
  except ValueError as error:
    raise ValueError(f"{path} is damaged: {error}.") from error
  version = manifest.get("version")
  if version == 1:
    raise ValueError(
      f"The token cache {directory} is of the earlier format of .npy files,"
      f" which is not read any more: build it anew with {COMMAND}, in another"
      " directory or after removing this one."
    )
  if version != VERSION:
    raise ValueError(
      f"{path} has version {version}, this program reads version {VERSION}."
    )
  return manifest


def plain(tree: Any) -> Any:
  """As JSON gives it back: tuples are lists."""
  return json.loads(json.dumps(tree))
