"""ArrayRecord files: writing one, and reading records of many by number."""

from __future__ import annotations

import os
from collections import OrderedDict
from pathlib import Path

# Files that stay open at once, well below what a process may have.
OPEN_FILES = 128


def open_writer(path: Path):
  """A writer of records that are read one by one, in any order.

  One record a group, so that one record is one small read; nothing is
  compressed: pictures and tokens hardly shrink.
  """
  from array_record.python import array_record_module

  return array_record_module.ArrayRecordWriter(
    str(path), "group_size:1,uncompressed"
  )


def open_reader(path: Path):
  """A reader that reads nothing ahead.

  Raises:
    ValueError: no such file, or it is damaged or of another format.
  """
  from array_record.python import array_record_module

  try:
    reader = array_record_module.ArrayRecordReader(
      str(path), "readahead_buffer_size:0"
    )
    if not reader.num_records():
      reader.read([0])  # says what is wrong
    return reader
  except (RuntimeError, ValueError, IndexError) as error:
    raise ValueError(
      f"{path} cannot be read as ArrayRecord ({_reason(error)})."
    ) from None


class Readers:
  """Records of many files; the files asked for last stay open.

  May be sent to other processes.
  """

  def __init__(self):
    self._open = OrderedDict()

  def __getstate__(self):
    return {"_open": OrderedDict()}

  def count(self, path: Path) -> int:
    """How many records a file has; ValueError as in `read`."""
    return self._reader(path).num_records()

  def read(self, path: Path, number: int) -> bytes:
    """One record.

    Raises:
      ValueError: the file is missing or damaged, or has fewer records; its
        name is in the message.
    """
    reader = self._reader(path)
    try:
      (record,) = reader.read([number])
    except (RuntimeError, ValueError, IndexError) as error:
      raise ValueError(
        f"Record {number} of {path} cannot be read ({_reason(error)})."
      ) from None
    return record

  def last(self, path: Path) -> bytes:
    """The last record of a file; ValueError as in `read`."""
    return self.read(path, self.count(path) - 1)

  def _reader(self, path: Path):
    # A reader must not cross a fork, so each process opens its own.
    place = (os.getpid(), path)
    reader = self._open.pop(place, None)
    if reader is None:
      reader = open_reader(path)
    self._open[place] = reader
    while len(self._open) > OPEN_FILES:
      # Not closed: another thread may be reading; it closes when let go.
      self._open.popitem(last=False)
    return reader


def _reason(error: Exception) -> str:
  """The first sentence of what the library says."""
  return str(error).split(";")[0].split("\n")[0].strip()
