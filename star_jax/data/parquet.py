"""Parquet files with a row for each picture.

The column of pictures holds their bytes, a struct with "bytes" and "path" (as
Hugging Face's data sets have it) or a path beside the Parquet file; that of
captions a string or a list of strings. A picture is read with the row group
that it is in: groups of about a hundred rows are read in any order without
waiting, those of a million are not.
"""

from __future__ import annotations

import bisect
import functools
import itertools
from pathlib import Path
from typing import Any

from star_jax.data.listing import (
  class_name,
  clean_captions,
  file_labels,
  find_files,
)

# Row groups whose pictures are kept in memory.
_GROUPS = 8


def _pyarrow():
  """The module, or ValueError if it is not installed."""
  try:
    import pyarrow.parquet
  except ImportError:
    raise ValueError(
      "Parquet files need the package pyarrow, which is not installed: python"
      " -m pip install pyarrow."
    ) from None
  return pyarrow


class ParquetListing:
  """See `listing.Listing`; a picture's name is its file and its id or row.

  Args:
    path: a .parquet, a folder of them, or a pattern.
    image, caption: columns.
    id: column of what names a picture; empty: file and number of the row.
    classes: captions are names or numbers of classes, taken as they are.

  Raises:
    ValueError: pyarrow is not installed, no such files or columns, no rows, or
      a damaged file, by name.
  """

  kind = "parquet"

  def __init__(
    self,
    path: str,
    *,
    image: str = "image",
    caption: str = "caption",
    id: str = "",
    classes: bool = False,
  ):
    pyarrow = _pyarrow()
    self._files = find_files(path, ".parquet", self.kind)
    self._labels = file_labels([file.with_suffix("") for file in self._files])
    self._image, self._caption, self._classes = image, caption, classes
    self.where = str(path)
    self._captions, self._ids = [], []
    # Each row group: (file, number in it), and where it ends.
    self._groups: list[tuple[int, int]] = []
    sizes: list[int] = []
    for number, file in enumerate(self._files):
      try:
        with pyarrow.parquet.ParquetFile(file) as opened:
          _check_columns(file, opened, [image, caption, *filter(None, [id])])
          self._read_columns(opened, number, id)
          for group in range(opened.num_row_groups):
            self._groups.append((number, group))
            sizes.append(opened.metadata.row_group(group).num_rows)
      except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).split("\n")[0].rstrip(".")
        raise ValueError(f"{file} cannot be read ({reason}).") from None
    self._ends = list(itertools.accumulate(sizes))
    if not self._captions:
      raise ValueError(f"{self.where} holds no rows.")

  def _read_columns(self, opened, number: int, id: str) -> None:
    """All captions, and the names of all rows of a file."""
    columns = opened.read(columns=[self._caption, *filter(None, [id])])
    captions = columns[self._caption].to_pylist()
    rows = columns[id].to_pylist() if id else range(len(captions))
    self._captions += captions
    self._ids += [f"{self._labels[number]}/{row}" for row in rows]

  def __len__(self) -> int:
    return len(self._captions)

  def name(self, number: int) -> str:
    return self._ids[number]

  def captions(self, number: int) -> tuple[str, ...]:
    value, where = self._captions[number], f"its {self._caption}"
    if self._classes:
      return class_name(value, where)
    return clean_captions(value, where)

  def picture(self, number: int) -> Path | bytes:
    at = bisect.bisect_right(self._ends, number)
    file, group = self._groups[at]
    row = number - (self._ends[at - 1] if at else 0)
    column = _image_column(self._files[file], group, self._image)
    value = column[row].as_py()
    if isinstance(value, dict):
      value = value.get("bytes") or value.get("path")
    if isinstance(value, str):
      return self._files[file].parent / value
    if not isinstance(value, bytes):
      raise ValueError(f"its {self._image} holds no picture")
    return value


@functools.lru_cache(maxsize=_GROUPS)
def _image_column(path: Path, group: int, name: str) -> Any:
  """The pictures of a row group.

  Raises:
    ValueError: they cannot be read.
  """
  pyarrow = _pyarrow()
  try:
    with pyarrow.parquet.ParquetFile(path) as opened:
      return opened.read_row_group(group, columns=[name])[name]
  except (pyarrow.ArrowException, OSError) as error:
    reason = str(error).split("\n")[0].rstrip(".")
    raise ValueError(f"row group {group} cannot be read ({reason})") from None


def _check_columns(path: Path, opened, wanted: list[str]) -> None:
  names = opened.schema_arrow.names
  if missing := [name for name in wanted if name not in names]:
    raise ValueError(
      f"{path} has the columns {', '.join(names)}, not {', '.join(missing)};"
      " config.data_options.parquet names those to read (image, caption, id)."
    )
