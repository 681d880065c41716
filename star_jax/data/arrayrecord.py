"""ArrayRecord files with a picture in each record.

A record is 4 bytes (little-endian length of the header), the header, a JSON
object with "caption" or "captions" and, if it likes, "id", and the bytes of a
picture file: what `pack_record` of the art store makes, too.
"""

from __future__ import annotations

import bisect
import itertools
import struct
from typing import Any

from star_jax.data.art.store import unpack_record
from star_jax.data.listing import (
  class_name,
  clean_captions,
  file_labels,
  find_files,
)
from star_jax.data.shard_files import Readers


class ArrayRecordListing:
  """See `listing.Listing`; a picture's name is its "id", or file and number.

  Args:
    path: an .arrayrecord, a folder of them, or a pattern.
    caption: field of the header.
    classes: captions are names or numbers of classes, taken as they are.

  Raises:
    ValueError: no such files, no records, or a damaged file, by name.
  """

  kind = "arrayrecord"

  def __init__(
    self, path: str, *, caption: str = "caption", classes: bool = False
  ):
    self._files = find_files(path, ".arrayrecord", self.kind)
    self._labels = file_labels([file.with_suffix("") for file in self._files])
    self._field, self._classes = caption, classes
    self.where = str(path)
    self._readers = Readers()
    counts = [self._readers.count(file) for file in self._files]
    self._ends = list(itertools.accumulate(counts))

  def __len__(self) -> int:
    return self._ends[-1]

  def name(self, number: int) -> str:
    file, at = self._place(number)
    try:
      named = self._record(number)[0].get("id")
    except ValueError:
      named = None
    return str(named or f"{self._labels[file]}/{at}")

  def captions(self, number: int) -> tuple[str, ...]:
    header, _ = self._record(number)
    value, where = header.get(self._field), f'its "{self._field}"'
    if self._classes:
      return class_name(value, where)
    return clean_captions(header.get("captions", value), where)

  def picture(self, number: int) -> bytes:
    return self._record(number)[1]

  def _place(self, number: int) -> tuple[int, int]:
    file = bisect.bisect_right(self._ends, number)
    return file, number - (self._ends[file - 1] if file else 0)

  def _record(self, number: int) -> tuple[dict[str, Any], bytes]:
    file, at = self._place(number)
    record = self._readers.read(self._files[file], at)
    try:
      header, image = unpack_record(record)
    except (struct.error, ValueError):
      header, image = None, b""
    if not isinstance(header, dict):
      raise ValueError("the record does not begin with the length of a header")
    return header, image
