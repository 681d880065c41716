"""Sets of pictures that are read a batch at a time.

A folder of picture files (with or without subfolders), a .npz or .npy of uint8
pictures as OpenAI's evaluator reads them, or anything with `read`.

N: pictures, H W: pixels.
"""

from __future__ import annotations

import dataclasses
import hashlib
import threading
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image, UnidentifiedImageError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
_THREADS = 8


class Pictures(Protocol):
  """Pictures by number.

  `identity` changes with the pictures: a run that was stopped goes on only
  with the same ones.
  """

  identity: str

  def __len__(self) -> int: ...

  def read(self, start: int, stop: int) -> np.ndarray:
    """uint8 [stop - start, H, W, 3]."""


def open_pictures(path: str | Path) -> Pictures:
  """A folder, or a .npz (array arr_0) or .npy of uint8 [N, H, W, 3].

  Raises:
    ValueError: nothing there, or nothing that is a picture.
  """
  path = Path(path)
  if path.is_dir():
    return PictureFolder.of(path)
  if path.suffix in (".npz", ".npy") and path.is_file():
    return PictureArray(path)
  raise ValueError(
    f"There are no pictures at {path}: give a folder of"
    f" {', '.join(SUFFIXES)} files, or a .npz with the array arr_0."
  )


@dataclasses.dataclass(frozen=True)
class PictureFolder:
  """Picture files of one size.

  Attributes:
    root: the folder.
    names: of the files, relative to it, sorted.
  """

  root: Path
  names: tuple[str, ...]

  @classmethod
  def of(cls, root: str | Path) -> PictureFolder:
    """All pictures in the folder and in those below it."""
    root = Path(root)
    names = sorted(
      str(file.relative_to(root))
      for file in root.rglob("*")
      if file.suffix.lower() in SUFFIXES
    )
    if not names:
      raise ValueError(
        f"The folder {root} holds no pictures ({', '.join(SUFFIXES)})."
      )
    return cls(root, tuple(names))

  def __len__(self) -> int:
    return len(self.names)

  @property
  def identity(self) -> str:
    """Over names, sizes and times of the files, not their content."""
    digest = hashlib.sha256()
    for name in self.names:
      stat = (self.root / name).stat()
      digest.update(f"{name} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]

  def categories(self) -> dict[str, PictureFolder]:
    """The pictures of each subfolder, as MJHQ-30K lays them out.

    Raises:
      ValueError: a picture lies in no subfolder.
    """
    groups: dict[str, list[str]] = {}
    for name in self.names:
      parts = Path(name).parts
      if len(parts) < 2:
        raise ValueError(
          f"Scores of each category need the pictures in a subfolder for each;"
          f" {self.root / name} is in none."
        )
      groups.setdefault(parts[0], []).append(name)
    return {
      category: PictureFolder(self.root, tuple(names))
      for category, names in sorted(groups.items())
    }

  def read(self, start: int, stop: int) -> np.ndarray:
    """See `Pictures`.

    Raises:
      ValueError: a file is no picture or not of the size of the first one.
    """
    files = [self.root / name for name in self.names[start:stop]]
    with ThreadPoolExecutor(_THREADS) as pool:
      images = list(pool.map(_read, files))
    size = images[0].shape if start == 0 else _read_size(self, images)
    for file, image in zip(files, images):
      if image.shape != size:
        raise ValueError(
          f"The pictures of {self.root} are of different sizes:"
          f" {size[1]} x {size[0]} pixels and, {file.name},"
          f" {image.shape[1]} x {image.shape[0]}."
        )
    return np.stack(images)


def _read(file: Path) -> np.ndarray:
  try:
    with Image.open(file) as image:
      return np.asarray(image.convert("RGB"))
  except (UnidentifiedImageError, OSError, SyntaxError) as error:
    raise ValueError(f"{file} is not a readable picture.") from error


def _read_size(folder: PictureFolder, images) -> tuple[int, ...]:
  """The shape of the first picture of the folder, from its header."""
  with Image.open(folder.root / folder.names[0]) as image:
    return (image.height, image.width, 3)


class PictureArray:
  """uint8 [N, H, W, 3] in a .npy, or as arr_0 in a .npz, read in order.

  The array is streamed out of the file; nothing of it is ever unpickled.
  """

  def __init__(self, path: str | Path, name: str = "arr_0"):
    """Raises ValueError unless the file holds such an array."""
    self.path, self._name = Path(path), name
    self._lock = threading.Lock()
    try:
      self._file = self._open()
      shape, fortran, dtype = _header(self._file)
    except (ValueError, KeyError, OSError, zipfile.BadZipFile) as error:
      raise ValueError(
        f"{self.path} holds no pictures: the array {name} is missing or"
        " damaged."
      ) from error
    if fortran or dtype != np.uint8 or len(shape) != 4 or shape[-1] != 3:
      raise ValueError(
        f"{self.path} holds {dtype} {shape}; pictures are uint8 [N, H, W, 3]."
      )
    self._shape, self._begin = shape, self._file.tell()

  def __len__(self) -> int:
    return self._shape[0]

  @property
  def identity(self) -> str:
    stat = self.path.stat()
    text = f"{self.path.name} {stat.st_size} {stat.st_mtime_ns}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]

  def _open(self):
    if self.path.suffix == ".npy":
      return self.path.open("rb")
    return zipfile.ZipFile(self.path).open(f"{self._name}.npy")

  def read(self, start: int, stop: int) -> np.ndarray:
    """See `Pictures`; forwards is fast, backwards reads from the start."""
    each = int(np.prod(self._shape[1:]))
    stop = min(stop, len(self))
    with self._lock:
      self._file.seek(self._begin + start * each)
      data = self._file.read((stop - start) * each)
    if len(data) != (stop - start) * each:
      raise ValueError(f"{self.path} is truncated.")
    return np.frombuffer(data, np.uint8).reshape(-1, *self._shape[1:])


def _header(file) -> tuple[tuple[int, ...], bool, np.dtype]:
  version = np.lib.format.read_magic(file)
  if version == (1, 0):
    return np.lib.format.read_array_header_1_0(file)
  return np.lib.format.read_array_header_2_0(file)


def batches(
  pictures: Pictures, size: int, start: int = 0
) -> Iterator[tuple[int, np.ndarray]]:
  """(number of the first one, uint8 [n, H, W, 3]), the next batch being read
  while one is worked on."""
  begins: Sequence[int] = range(start, len(pictures), size)
  if not begins:
    return
  with ThreadPoolExecutor(1) as pool:
    read = lambda b: pictures.read(b, min(b + size, len(pictures)))  # noqa: E731
    ahead = pool.submit(read, begins[0])
    for i, begin in enumerate(begins):
      image = ahead.result()
      if i + 1 < len(begins):
        ahead = pool.submit(read, begins[i + 1])
      yield begin, image
