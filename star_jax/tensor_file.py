"""Safetensors files read and written one tensor after the other.

The library's own functions hold all tensors in memory; converting a checkpoint
of gigabytes should need no more than a layer of it. The format: 8 bytes
with the length of the header (little-endian), the header (JSON: name -> dtype,
shape, begin and end in what follows), the tensors.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import struct
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import ml_dtypes  # noqa: F401 (numpy then knows bfloat16)
import numpy as np

_NAMES = {
  "float32": "F32",
  "float16": "F16",
  "bfloat16": "BF16",
  "int32": "I32",
  "int64": "I64",
}
_DTYPES = {theirs: np.dtype(ours) for ours, theirs in _NAMES.items()}
_LARGEST_HEADER = 100_000_000


def write_tensors(
  path: Path,
  tensors: Mapping[str, tuple[tuple[int, ...], str]],
  get: Callable[[str], np.ndarray | Iterable[np.ndarray]],
) -> tuple[str, int]:
  """Writes the tensors to a file.

  Args:
    path: of the file.
    tensors: name -> (shape, dtype), one of float32, float16, bfloat16, int32
      and int64.
    get: makes the tensor of a name, or its pieces along the first axis one
      after the other; called once for each name.

  Returns:
    (SHA-256 of the file in hex, its bytes).

  Raises:
    OSError: the file cannot be written.
  """
  # Wide types first, so that every tensor is aligned; readers map the file.
  order = sorted(tensors, key=lambda n: (-_bytes(tensors[n][1]), n))
  header, end = {}, 0
  for name in order:
    shape, dtype = tensors[name]
    begin, end = end, end + int(np.prod(shape)) * _bytes(dtype)
    header[name] = {
      "dtype": _NAMES[dtype],
      "shape": list(shape),
      "data_offsets": [begin, end],
    }
  text = json.dumps(header, separators=(",", ":")).encode()
  text += b" " * (-len(text) % 8)
  digest, size = hashlib.sha256(), 0
  with open(path, "wb") as file:

    def write(data) -> None:
      nonlocal size
      file.write(data)
      digest.update(data)
      size += len(data)

    write(struct.pack("<Q", len(text)))
    write(text)
    for name in order:
      shape, dtype = tensors[name]
      begin, value = size, get(name)
      if isinstance(value, np.ndarray):
        assert value.shape == tuple(shape), (name, value.shape, shape)
        value = (value,)
      for piece in value:
        assert piece.dtype == dtype, (name, piece.dtype, dtype)
        flat = np.ascontiguousarray(piece).reshape(-1)
        write(memoryview(flat.view(np.uint8)))
        del piece, flat
      assert size - begin == int(np.prod(shape)) * _bytes(dtype), name
  return digest.hexdigest(), size


def read_tensors(path: Path) -> dict[str, np.ndarray]:
  """Read-only views of the memory-mapped file, by name.

  Raises:
    ValueError: not such a file, cut off, or of another dtype.
    OSError: the file cannot be read.
  """
  data = np.memmap(path, np.uint8, "r") if path.stat().st_size else b""
  try:
    (length,) = struct.unpack("<Q", bytes(data[:8]))
    if length > min(_LARGEST_HEADER, len(data) - 8):
      raise ValueError("its header is longer than the file")
    header = json.loads(bytes(data[8 : 8 + length]))
    header.pop("__metadata__", None)
    body = data[8 + length :]
    return {name: _view(body, name, facts) for name, facts in header.items()}
  except (struct.error, KeyError, TypeError, AttributeError, ValueError) as e:
    raise ValueError(f"{path} is not a whole safetensors file: {e}.") from e


def drop_pages(array: np.ndarray) -> None:
  """Gives back the memory that holds the file behind a mapped array.

  What was read of a mapped file counts as memory of this process until it is
  dropped; it is read again where it is needed again. Arrays that no file
  stands behind are left alone.
  """
  owner = array
  while owner is not None and not isinstance(owner, mmap.mmap):
    if isinstance(owner, memoryview):
      owner = owner.obj
    else:
      owner = getattr(owner, "base", None)
  if owner is not None and hasattr(mmap, "MADV_DONTNEED"):
    owner.madvise(mmap.MADV_DONTNEED)


def _view(body: np.ndarray, name: str, facts: dict) -> np.ndarray:
  if facts["dtype"] not in _DTYPES:
    raise ValueError(
      f"{name} is {facts['dtype']}, read are {', '.join(_DTYPES)}"
    )
  dtype, (begin, end) = _DTYPES[facts["dtype"]], facts["data_offsets"]
  size = int(np.prod(facts["shape"])) * dtype.itemsize
  if not 0 <= begin <= end <= len(body) or end - begin != size:
    raise ValueError(f"{name} lies outside of the file")
  return body[begin:end].view(dtype).reshape(facts["shape"])


def _bytes(dtype: str) -> int:
  return np.dtype(dtype).itemsize
