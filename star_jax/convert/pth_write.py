"""Writes PyTorch zip checkpoints without torch, one tensor after the other.

For tests and measurements: what they convert should be the kind of file that
people have. The program is the one torch.save writes for dicts of tensors.
"""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import ml_dtypes  # noqa: F401 (numpy then knows bfloat16)
import numpy as np

STORAGES = {
  "float32": "FloatStorage",
  "float16": "HalfStorage",
  "bfloat16": "BFloat16Storage",
  "int64": "LongStorage",
}


def write_pth(
  path: str | Path,
  tensors: Mapping[str, tuple[tuple[int, ...], str]],
  get: Callable[[str], np.ndarray | Iterable[bytes]],
  nests: Iterable[str] = (),
) -> None:
  """A zip checkpoint as torch.save writes it.

  Args:
    path: of the file.
    tensors: name -> (shape, dtype), of STORAGES.
    get: makes the tensor of a name, or the bytes of it piece by piece.
    nests: names of dicts that the state dict lies in, from the outside in.
  """
  program = tensor_dict(tensors)
  for name in reversed(tuple(nests)):
    program = ordered_dict({name: program})
  with zipfile.ZipFile(path, "w") as archive:
    archive.writestr("archive/data.pkl", b"\x80\x02" + program + b".")
    archive.writestr("archive/byteorder", "little")
    for key in tensors:
      with archive.open(f"archive/data/{key}", "w", force_zip64=True) as file:
        pieces = get(key)
        if isinstance(pieces, np.ndarray):
          pieces = (np.ascontiguousarray(pieces).tobytes(),)
        for piece in pieces:
          file.write(piece)


def tensor_dict(tensors: Mapping[str, tuple[tuple[int, ...], str]]) -> bytes:
  """Program of a dict of contiguous tensors, each on a storage of its name."""
  programs = {}
  for key, (shape, dtype) in tensors.items():
    strides = np.cumprod((1, *shape[:0:-1]))[::-1][: len(shape)].tolist()
    programs[key] = tensor_program(key, dtype, shape, strides)
  return ordered_dict(programs)


def tensor_program(
  key: str,
  dtype: str,
  shape: Iterable[int],
  strides: Iterable[int],
  offset: int = 0,
  numel: int | None = None,
) -> bytes:
  """Pickle program of a tensor on storage `key`, as torch.save writes it."""
  shape = tuple(shape)
  numel = int(np.prod(shape)) if numel is None else numel
  return (
    b"ctorch._utils\n_rebuild_tensor_v2\n("
    + b"(" + text(b"storage") + f"ctorch\n{STORAGES[dtype]}\n".encode()
    + text(key.encode()) + text(b"cpu") + integer(numel) + b"tQ"
    + integer(offset) + integers(shape) + integers(strides)
    + b"\x89ccollections\nOrderedDict\n)RtR"
  )  # fmt: skip


def ordered_dict(programs: Mapping[str, bytes]) -> bytes:
  """Program of an OrderedDict of other programs."""
  items = b"".join(text(k.encode()) + v for k, v in programs.items())
  return b"ccollections\nOrderedDict\n)R(" + items + b"u"


def text(raw: bytes) -> bytes:
  """Opcode of a string."""
  return b"X" + struct.pack("<I", len(raw)) + raw


def integer(value: int) -> bytes:
  """Opcode of an integer of up to 31 bits."""
  return b"J" + struct.pack("<i", value)


def integers(values: Iterable[int]) -> bytes:
  """Opcodes of a tuple of integers."""
  return b"(" + b"".join(map(integer, values)) + b"t"
