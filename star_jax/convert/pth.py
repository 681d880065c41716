"""Reads PyTorch `.pth` / `.pt` / `.ckpt` files without torch and without
executing anything that is stored in them.

A `.pth` file is a pickle, and a pickle is a program: it may import any module
and call any function. Here the unpickler knows a short list of globals (tensor
and storage constructors, OrderedDict); each is replaced by a harmless
stand-in of ours, and any other name ends the reading with an error that says
what the file asked for. Both layouts are read:

- legacy (torch < 1.6): five pickles, then the raw storages one by one;
- zip (torch >= 1.6): `<name>/data.pkl` and one stored member per storage.

Tensors come back as read-only numpy views of the memory-mapped file, so that
reading a file costs no memory until the arrays are used.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import mmap
import os
import pickle
import struct
import zipfile
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001

_STORAGE_DTYPES = {
  "DoubleStorage": np.float64,
  "FloatStorage": np.float32,
  "HalfStorage": np.float16,
  "BFloat16Storage": ml_dtypes.bfloat16,
  "LongStorage": np.int64,
  "IntStorage": np.int32,
  "ShortStorage": np.int16,
  "CharStorage": np.int8,
  "ByteStorage": np.uint8,
  "BoolStorage": np.bool_,
}


@dataclasses.dataclass
class _Storage:
  """One flat block of memory in the file; `data` is filled in afterwards."""

  key: str
  dtype: np.dtype
  numel: int
  data: np.ndarray | None = None


@dataclasses.dataclass
class _Tensor:
  """A strided window on a storage, in elements."""

  storage: _Storage
  offset: int
  shape: tuple[int, ...]
  strides: tuple[int, ...]


def _rebuild_tensor(storage, offset, shape, strides, *_) -> _Tensor:
  """Stands in for torch._utils._rebuild_tensor(_v2)."""
  if not isinstance(storage, _Storage):
    raise pickle.UnpicklingError("a tensor without a storage")
  numbers = (offset, *shape, *strides)
  if not all(isinstance(n, int) and n >= 0 for n in numbers):
    raise pickle.UnpicklingError(f"a tensor with shape {shape!r}")
  return _Tensor(storage, offset, tuple(shape), tuple(strides))


def _rebuild_parameter(data, *_):
  """Stands in for torch._utils._rebuild_parameter."""
  return data


def _size(values=()):
  """Stands in for torch.Size."""
  return tuple(values)


def _allowed_globals() -> dict[tuple[str, str], Any]:
  """The only names a file may use, and what they become here."""
  allowed: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("torch", "Size"): _size,
  }
  for name, dtype in _STORAGE_DTYPES.items():
    allowed["torch", name] = np.dtype(dtype)
  return allowed


class _RestrictedUnpickler(pickle.Unpickler):
  """Refuses every global that is not a tensor part; imports nothing."""

  def __init__(self, file, path: str):
    super().__init__(file, encoding="utf-8")
    self._path = path
    self._allowed = _allowed_globals()
    self.storages: dict[str, _Storage] = {}

  def find_class(self, module: str, name: str):
    if (module, name) not in self._allowed:
      raise ValueError(
        f"{self._path} asks for {module}.{name}, which is not a part of a"
        " plain state dict: the file was refused and nothing in it was"
        " executed."
      )
    return self._allowed[module, name]

  def persistent_load(self, pid):
    if not (isinstance(pid, tuple) and len(pid) >= 5 and pid[0] == "storage"):
      raise pickle.UnpicklingError(f"an unknown reference {pid!r:.80}")
    _, dtype, key, _, numel = pid[:5]
    if len(pid) > 5 and pid[5] is not None:
      raise pickle.UnpicklingError("a storage that is a view of another one")
    if not isinstance(dtype, np.dtype) or not isinstance(numel, int):
      raise pickle.UnpicklingError(f"a storage of type {dtype!r:.80}")
    key = str(key)
    return self.storages.setdefault(key, _Storage(key, dtype, numel))


class _Cursor:
  """File-like reader over a memory map that knows its position."""

  def __init__(self, buffer: memoryview, position: int = 0):
    self._buffer, self.position = buffer, position

  def read(self, n: int = -1) -> bytes:
    end = len(self._buffer) if n < 0 else self.position + n
    out = bytes(self._buffer[self.position : end])
    self.position += len(out)
    return out

  def readinto(self, target) -> int:
    out = self.read(len(target))
    target[: len(out)] = out
    return len(out)

  def readline(self) -> bytes:
    line = bytearray()
    while (byte := self.read(1)) and byte != b"\n":
      line += byte
    return bytes(line) + byte


def _to_array(tensor: _Tensor, path: str) -> np.ndarray:
  """A read-only numpy view, after checking that it stays in its storage."""
  data = tensor.storage.data
  if len(tensor.shape) != len(tensor.strides):
    raise ValueError(f"{path} is damaged: a tensor has no valid strides.")
  if math.prod(tensor.shape) == 0:
    return np.zeros(tensor.shape, tensor.storage.dtype)
  last = tensor.offset + sum(
    (n - 1) * s for n, s in zip(tensor.shape, tensor.strides)
  )
  if data is None or last >= len(data):
    raise ValueError(
      f"{path} is damaged: a tensor of shape {tensor.shape} reaches beyond"
      f" its storage {tensor.storage.key!r}."
    )
  return np.lib.stride_tricks.as_strided(
    data[tensor.offset :],
    tensor.shape,
    [s * data.itemsize for s in tensor.strides],
    writeable=False,
  )


def _resolve(value: Any, path: str) -> Any:
  """Replaces tensors by arrays inside dicts, lists and tuples."""
  if isinstance(value, _Tensor):
    return _to_array(value, path)
  if isinstance(value, dict):
    return {k: _resolve(v, path) for k, v in value.items()}
  if isinstance(value, (list, tuple)):
    return type(value)(_resolve(v, path) for v in value)
  return value


def _attach(
  storage: _Storage, buffer: memoryview, start: int, length: int, path: str
) -> None:
  """Points `storage` at `length` bytes of the file from `start` on."""
  needed = storage.numel * storage.dtype.itemsize
  if storage.numel < 0 or needed > length or start + needed > len(buffer):
    raise ValueError(
      f"{path} is truncated: storage {storage.key!r} needs {needed} bytes,"
      f" {max(0, min(length, len(buffer) - start))} are there."
    )
  raw = np.frombuffer(buffer[start : start + needed], np.uint8)
  storage.data = raw.view(storage.dtype)


def _read_legacy(buffer: memoryview, path: str) -> Any:
  cursor = _Cursor(buffer)
  magic, protocol, info = (
    _RestrictedUnpickler(cursor, path).load() for _ in range(3)
  )
  if magic != _LEGACY_MAGIC or protocol != _LEGACY_PROTOCOL:
    raise ValueError(
      f"{path} is a pickle but not a PyTorch checkpoint of a known layout."
    )
  if not info.get("little_endian", True):
    raise ValueError(f"{path} was written on a big-endian machine.")
  unpickler = _RestrictedUnpickler(cursor, path)
  value = unpickler.load()
  for key in _RestrictedUnpickler(cursor, path).load():
    if key not in unpickler.storages:
      raise ValueError(f"{path} is damaged: storage {key!r} is unknown.")
    head = cursor.read(8)
    if len(head) < 8:
      raise ValueError(f"{path} is truncated before storage {key!r}.")
    (numel,) = struct.unpack("<q", head)
    storage = unpickler.storages[key]
    length = numel * storage.dtype.itemsize
    _attach(storage, buffer, cursor.position, length, path)
    cursor.position += length
  return _resolve(value, path)


def _member_start(buffer: memoryview, info: zipfile.ZipInfo) -> int:
  """Where the bytes of a stored member begin (zip local file header)."""
  name_len, extra_len = struct.unpack_from(
    "<HH", buffer, info.header_offset + 26
  )
  return info.header_offset + 30 + name_len + extra_len


def _read_zip(buffer: memoryview, path: str) -> Any:
  with zipfile.ZipFile(path) as archive:
    members = {info.filename: info for info in archive.infolist()}
    pickles = [m for m in members if m.split("/")[-1] == "data.pkl"]
    if len(pickles) != 1:
      raise ValueError(f"{path} is a zip file but holds no PyTorch checkpoint.")
    root = pickles[0][: -len("data.pkl")]
    order = members.get(root + "byteorder")
    if order is not None and archive.read(order) != b"little":
      raise ValueError(f"{path} was written on a big-endian machine.")
    for info in members.values():
      if info.compress_type != zipfile.ZIP_STORED:
        raise ValueError(
          f"{path} has the compressed member {info.filename!r}; PyTorch"
          " checkpoints store their members as they are."
        )
    start = _member_start(buffer, members[pickles[0]])
    size = members[pickles[0]].file_size
    unpickler = _RestrictedUnpickler(
      _Cursor(buffer[start : start + size]), path
    )
    value = unpickler.load()
    for key, storage in unpickler.storages.items():
      info = members.get(f"{root}data/{key}")
      if info is None:
        raise ValueError(f"{path} is damaged: storage {key!r} is missing.")
      start = _member_start(buffer, info)
      _attach(storage, buffer, start, info.file_size, path)
  return _resolve(value, path)


def read_pth(path: str | os.PathLike) -> Any:
  """The object saved in a PyTorch file, with numpy arrays for tensors.

  Args:
    path: a legacy or zip checkpoint holding dicts, lists, tuples, numbers,
      strings and tensors.

  Returns:
    The same structure; every tensor is a read-only numpy array (bfloat16 as
    `ml_dtypes.bfloat16`) backed by the file, OrderedDicts become dicts.

  Raises:
    FileNotFoundError: no such file.
    ValueError: the file asks for anything but tensors and containers, or is
      truncated, damaged or of another kind. Nothing in it is ever executed.
  """
  path = os.fspath(path)
  with open(path, "rb") as f:
    if os.fstat(f.fileno()).st_size == 0:
      raise ValueError(f"{path} is empty.")
    # The map stays open as long as an array refers to it.
    buffer = memoryview(mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ))
  try:
    if zipfile.is_zipfile(path):
      return _read_zip(buffer, path)
    return _read_legacy(buffer, path)
  except ValueError:
    raise
  except Exception as error:  # a damaged pickle may raise nearly anything
    raise ValueError(
      f"{path} cannot be read as a PyTorch checkpoint:"
      f" {type(error).__name__}: {error}."
    ) from error


def read_state_dict(path: str | os.PathLike) -> dict[str, np.ndarray]:
  """`read_pth` for a file that is a flat dict of tensors.

  Raises:
    ValueError: as `read_pth`, or the file holds something else; the sentence
      names the first entry that is not a tensor.
  """
  value = read_pth(path)
  if not isinstance(value, Mapping):
    raise ValueError(
      f"{os.fspath(path)} holds a {type(value).__name__}, not a state dict."
    )
  for key, entry in value.items():
    if not isinstance(key, str) or not isinstance(entry, np.ndarray):
      raise ValueError(
        f"{os.fspath(path)} is not a flat state dict: {key!r} is a"
        f" {type(entry).__name__}."
      )
  return dict(value)
